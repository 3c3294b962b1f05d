# SPDX-License-Identifier: Apache-2.0
"""Addresses as people write them."""

import pytest

from common.listen import Listen, parse_listen


@pytest.mark.parametrize(
    ("text", "listen", "is_loopback"),
    [
        ("127.0.0.1:9464", Listen("127.0.0.1", 9464), True),
        ("localhost:1", Listen("localhost", 1), True),
        ("[::1]:65535", Listen("::1", 65535), True),
        ("0.0.0.0:80", Listen("0.0.0.0", 80), False),
        ("monitor.example:80", Listen("monitor.example", 80), False),
    ],
)
def test_addresses(text: str, listen: Listen, is_loopback: bool) -> None:
    found = parse_listen(text)
    assert found == listen and str(found) == text and listen.is_loopback is is_loopback


def test_off_is_nowhere() -> None:
    assert parse_listen("off") is None


@pytest.mark.parametrize(
    "text", ["", "9464", ":9464", "127.0.0.1:", "127.0.0.1:x", "127.0.0.1:0", "127.0.0.1:65536", "::1:9464", "Off", "[::1]"]
)
def test_what_is_no_address(text: str) -> None:
    with pytest.raises(ValueError, match="must be HOST:PORT, such as"):
        parse_listen(text)
