# SPDX-License-Identifier: Apache-2.0
"""Where a small page of ours is served, as people write it in a settings file: `127.0.0.1:9464`, `[::1]:9464`, or `off`."""

from __future__ import annotations

import ipaddress
from typing import NamedTuple

OFF = "off"


class Listen(NamedTuple):
    """An address to listen on."""

    host: str
    port: int

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine reaches it."""
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return self.host == "localhost"

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def parse_listen(text: str) -> Listen | None:
    """The address; None for `off`. Raises ValueError that says what to write."""
    if text == OFF:
        return None
    host, colon, port = text.rpartition(":")
    if not (colon and host and port.isascii() and port.isdigit() and 0 < int(port) < 1 << 16) or (":" in host) != host.startswith("["):
        raise ValueError(f'must be HOST:PORT, such as 127.0.0.1:9464, or off; is "{text[:40]}"')
    return Listen(host.strip("[]"), int(port))


def checked_listen(text: str) -> str:
    """`text`, if it can be read. Raises ValueError."""
    parse_listen(text)
    return text
