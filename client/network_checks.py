# SPDX-License-Identifier: Apache-2.0
"""The way to the coordinator, step by step: name, proxy, connection, TLS, certificate, clock. Each step that fails is named by itself."""

from __future__ import annotations

import socket
from urllib.parse import SplitResult, urlsplit
from urllib.request import getproxies, proxy_bypass

from client.checks import Check, Doctor, NotTested
from common.errors import CoordinatorRefused, CoordinatorUnreachable, InputError

CONNECT_SECONDS = 10.0
AHEAD_SECONDS, BEHIND_SECONDS = 5.0, 305.0
"""Flower's node authentication takes a message whose time is at most 5 s ahead of the server's clock and 305 s behind it."""


def name(doctor: Doctor) -> str:
    """The coordinator's host name has an address."""
    host = _target(doctor).hostname or ""
    if _proxy(host) is not None:
        raise NotTested("the proxy looks the name up")
    addresses = _resolved(host, "the coordinator's host")
    return f"{host} is {', '.join(sorted(addresses))}"


def proxy(doctor: Doctor) -> str:
    """The proxy that stands in the environment can be reached."""
    found = _proxy(_target(doctor).hostname or "")
    if found is None:
        return "none is set for this host (HTTPS_PROXY, NO_PROXY): a direct connection"
    host, port = found.hostname or "", found.port or 80
    _resolved(host, "the proxy")
    _connect(host, port, "the proxy of HTTPS_PROXY")
    return f"through {host}:{port}"


def connection(doctor: Doctor) -> str:
    """The coordinator's port answers."""
    target = _target(doctor)
    host, port = target.hostname or "", target.port or 443
    if _proxy(host) is not None:
        raise NotTested("the proxy makes the connection")
    _connect(host, port, "the coordinator")
    return f"{host}:{port} answers"


def tls(doctor: Doctor) -> str:
    """The server's certificate comes from the invitation's authority and is for this host."""
    doctor.coordinator.reach()
    return "the server's certificate comes from the authority of the invitation and is for this host"


def welcome(doctor: Doctor) -> str:
    """The coordinator takes the site's certificate."""
    if not doctor.home.certificate.exists():
        raise NotTested("there is no certificate yet")
    doctor.coordinator.time()
    return "the coordinator knows this site's certificate"


def clock(doctor: Doctor) -> str:
    """This machine's clock against the coordinator's."""
    before = doctor.clock()
    try:
        theirs = doctor.coordinator.time()
    except (CoordinatorRefused, CoordinatorUnreachable) as error:
        raise NotTested("the coordinator does not tell this site the time yet") from error
    after = doctor.clock()
    ahead = (before + after) / 2 - theirs
    unsure = (after - before) / 2
    where = f"{abs(ahead):.1f} s {'ahead of' if ahead > 0 else 'behind'} the coordinator's"
    if not -BEHIND_SECONDS - unsure < ahead < AHEAD_SECONDS + unsure:
        raise InputError(
            f"this machine's clock is {where}; it may be {AHEAD_SECONDS:.0f} s ahead and {BEHIND_SECONDS:.0f} s behind. Set the clock of "
            "the wrong one by NTP (timedatectl)"
        )
    return f"this machine's clock is {where}"


def _target(doctor: Doctor) -> SplitResult:
    return urlsplit(doctor.coordinator.url)


def _proxy(host: str) -> SplitResult | None:
    """The proxy for `host` by the environment, as the HTTP client takes it."""
    proxies = getproxies()
    text = proxies.get("https") or proxies.get("all")
    if not text or proxy_bypass(host):
        return None
    return urlsplit(text if "://" in text else f"http://{text}")


def _resolved(host: str, what: str) -> set[str]:
    try:
        return {str(found[4][0]) for found in socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)}
    except (OSError, UnicodeError) as error:
        raise CoordinatorUnreachable(
            f"{what} {host} has no address ({getattr(error, 'strerror', None) or error}); check the spelling and this machine's DNS"
        ) from error


def _connect(host: str, port: int, what: str) -> None:
    try:
        socket.create_connection((host, port), CONNECT_SECONDS).close()
    except OSError as error:
        raise CoordinatorUnreachable(
            f"{what} does not answer at {host}:{port} ({error.strerror or error}); check that it runs, and the firewall (outbound, TCP)"
        ) from error


NETWORK_CHECKS: tuple[tuple[str, Check], ...] = (
    ("name", name),
    ("proxy", proxy),
    ("connection", connection),
    ("tls", tls),
    ("welcome", welcome),
    ("clock", clock),
)
