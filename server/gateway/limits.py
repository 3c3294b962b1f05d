# SPDX-License-Identifier: Apache-2.0
"""How much one site, and one address without a certificate, may ask of the gateway."""

from __future__ import annotations

import ipaddress
import time
from collections.abc import Callable
from dataclasses import dataclass

from common.enrolment import MAX_REQUEST_BYTES
from common.flower_compat.fleet_records import MAX_OBJECTS, MAX_PUSH_BYTES
from common.protocol import MAX_ARRAY_BYTES

MIB = 1 << 20


@dataclass(frozen=True)
class Rate:
    """So many requests a second in the long run, and so many at once."""

    per_second: float
    burst: float


@dataclass(frozen=True)
class Limits:
    """The limits of one gateway. A round of a model with 400 tensors is some 2,000 requests of a site.

    `reply_bytes`, `reply_objects`, `replies_to_a_message`: what is taken in reply to one message, all attempts together. A lost connection
    lets a site push its reply again (only what is missing); the largest reply fits twice. At most `at_once` objects may come on top,
    those that are on their way when the bound is reached.
    `large_at_once`: bodies of more than `fleet_bytes` that are taken from one site at a time; the others wait, unread.
    """

    site: Rate = Rate(1000.0, 5000.0)
    stranger: Rate = Rate(5.0, 50.0)
    enrol: Rate = Rate(2.0, 30.0)
    at_once: int = 32
    enrol_at_once: int = 4
    large_at_once: int = 2
    object_bytes: int = MAX_PUSH_BYTES
    fleet_bytes: int = MIB
    enrol_bytes: int = MAX_REQUEST_BYTES
    own_bytes: int = 4 * MIB
    reply_bytes: int = 2 * (MAX_ARRAY_BYTES + 64 * MIB)
    reply_objects: int = 2 * MAX_OBJECTS
    replies_to_a_message: int = 1000
    chunk_seconds: float = 30.0
    enrol_seconds: float = 10.0


class Buckets:
    """Token buckets, one for each key: full at first, refilled at the rate. What is full again is forgotten."""

    def __init__(self, rate: Rate, clock: Callable[[], float] = time.monotonic, max_keys: int = 10_000) -> None:
        self._rate, self._clock, self._max_keys = rate, clock, max_keys
        self._levels: dict[str, tuple[float, float]] = {}

    def take(self, key: str) -> float:
        """Take one token of `key`: 0 when there was one, else the seconds until there is."""
        now = self._clock()
        level = self._level(key, now)
        if level < 1.0:
            return (1.0 - level) / self._rate.per_second
        if key not in self._levels and len(self._levels) >= self._max_keys:
            self._forget(now)
        self._levels[key] = (level - 1.0, now)
        return 0.0

    def _level(self, key: str, now: float) -> float:
        level, since = self._levels.get(key, (self._rate.burst, now))
        return min(self._rate.burst, level + (now - since) * self._rate.per_second)

    def _forget(self, now: float) -> None:
        """Drop what is full; if all are in use, the fuller half, so that memory stays bounded under any flood."""
        levels = {key: self._level(key, now) for key in self._levels}
        kept = [key for key in sorted(levels, key=levels.__getitem__) if levels[key] < self._rate.burst][: self._max_keys // 2]
        self._levels = {key: (levels[key], now) for key in kept}


def origin(address: str) -> str:
    """What counts as one stranger: an IPv4 address, or the /64 network of an IPv6 address, which one host may own whole."""
    try:
        parsed = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if isinstance(parsed, ipaddress.IPv6Address):
        return str(parsed.ipv4_mapped or ipaddress.ip_network((parsed, 64), strict=False))
    return str(parsed)
