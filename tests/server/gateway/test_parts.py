# SPDX-License-Identifier: Apache-2.0
"""The gateway's parts alone: buckets, origins, what is remembered of the database, what belongs to whom, the access log."""

import asyncio
import json
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as some

from common.errors import StorageError
from server.gateway.access_log import QUIET_SECONDS, AccessLog, printable_path
from server.gateway.addressed import KEPT_MESSAGES, KEPT_SESSIONS, Addressed, Taken
from server.gateway.fresh import MAX_AGE_SECONDS, Fresh
from server.gateway.limits import Buckets, Limits, Rate, origin
from server.state import State


class Clock:
    """Time in a test's hands."""

    def __init__(self, now: float = 1000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


# ---- limits


def test_a_bucket_gives_its_burst_and_then_its_rate() -> None:
    clock = Clock()
    buckets = Buckets(Rate(per_second=2.0, burst=3.0), clock)
    assert [buckets.take("a") for _ in range(4)] == [0.0, 0.0, 0.0, 0.5]
    assert buckets.take("b") == 0.0, "each key has its own"
    clock.now += 0.5
    assert [buckets.take("a"), buckets.take("a")] == [0.0, 0.5]
    clock.now += 3600
    assert [buckets.take("a") for _ in range(4)] == [0.0, 0.0, 0.0, 0.5], "never more than the burst"


@given(some.lists(some.floats(0.0, 5.0), min_size=1, max_size=60))
def test_no_order_of_requests_gets_more_than_burst_and_rate(pauses: list[float]) -> None:
    clock = Clock()
    buckets = Buckets(Rate(2.0, 3.0), clock)
    passed = 0
    for pause in pauses:
        clock.now += pause
        passed += buckets.take("a") == 0.0
    assert passed <= 3.0 + 2.0 * sum(pauses) + 1e-6


def test_a_flood_of_addresses_takes_bounded_memory_and_frees_nobody() -> None:
    clock = Clock()
    buckets = Buckets(Rate(0.001, 2.0), clock, max_keys=10)
    assert [buckets.take("flooder") for _ in range(3)][-1] > 0
    for number in range(100):
        buckets.take(f"other {number}")
    assert len(buckets._levels) <= 10
    assert buckets.take("flooder") > 0, "the emptiest are remembered longest"


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("::ffff:192.0.2.7", "192.0.2.7"),
        ("", ""),
        ("socket", "socket"),
    ],
)
def test_one_origin(address: str, expected: str) -> None:
    assert origin(address) == expected


def test_the_usual_limits_allow_a_round_of_a_large_model() -> None:
    limits = Limits()
    objects_of_densenet = 2 * (2 * 364 + 10)
    assert limits.site.burst > 2 * objects_of_densenet and limits.enrol.per_second < limits.site.per_second / 100


# ---- what is remembered of the database


def test_fresh_reads_again_after_a_write_and_after_a_second(tmp_path: Path) -> None:
    state, clock, reads = State(tmp_path / "state.sqlite"), Clock(), []
    fresh = Fresh(tmp_path / "state.sqlite", clock)

    def read() -> int:
        reads.append(1)
        return len(reads)

    async def scene() -> list[int]:
        seen = [await fresh.get("key", read), await fresh.get("key", read), await fresh.get("other", read)]
        with state.writing() as database:
            database.execute("INSERT INTO invitation VALUES ('a', 'b', 0, NULL)")
        seen += [await fresh.get("key", read), await fresh.get("key", read)]
        clock.now += MAX_AGE_SECONDS / 2
        seen.append(await fresh.get("key", read))
        clock.now += MAX_AGE_SECONDS
        return [*seen, await fresh.get("key", read)]

    assert asyncio.run(scene()) == [1, 1, 2, 3, 3, 3, 4]
    fresh.close()


def test_what_was_read_before_a_write_is_not_kept_after_it(tmp_path: Path) -> None:
    """A slow read that began before a write must not answer requests that come after the write."""
    state = State(tmp_path / "state.sqlite")
    fresh = Fresh(tmp_path / "state.sqlite", Clock())

    def slow() -> str:
        with state.writing() as database:
            database.execute("INSERT INTO invitation VALUES ('a', 'b', 0, NULL)")
        return "old"

    async def scene() -> list[str]:
        return [await fresh.get("key", slow), await fresh.get("key", lambda: "new")]

    assert asyncio.run(scene()) == ["old", "new"]
    fresh.close()


def test_errors_are_not_remembered(tmp_path: Path) -> None:
    State(tmp_path / "state.sqlite")
    fresh = Fresh(tmp_path / "state.sqlite", Clock())

    def fails() -> str:
        raise StorageError("no")

    async def scene() -> str:
        with pytest.raises(StorageError):
            await fresh.get("key", fails)
        return await fresh.get("key", lambda: "read")

    assert asyncio.run(scene()) == "read"
    fresh.close()


# ---- what belongs to whom


def test_only_the_newest_messages_and_sessions_are_known(tmp_path: Path) -> None:
    state = State(tmp_path / "state.sqlite")
    addressed = Addressed(state)

    async def scene() -> None:
        for number in range(KEPT_MESSAGES + 2):
            await addressed.deliver("north", 1, f"m{number}", [f"part{number}"])
        for number in range(KEPT_SESSIONS + 2):
            await addressed.open("north", 1, "m2", f"s{number}")

    asyncio.run(scene())
    for known in (addressed, Addressed(state)):
        assert [known.has_message("north", 1, name) for name in ("m0", "m1", "m2")] == [False, False, True]
        assert [known.has_object("north", 1, name) for name in ("part1", "part2")] == [False, True]
        assert [known.has_session("north", 1, name) for name in ("s0", "s1", "s2")] == [False, False, True]
        assert not known.has_session("south", 1, "s2") and not known.has_session("north", 2, "s2") and not known.has_session("north", 1, "")
    with state.reading() as database:
        assert database.execute("SELECT COUNT(*) FROM addressed").fetchone()[0] == 2 * KEPT_MESSAGES
        assert database.execute("SELECT COUNT(*) FROM push_session").fetchone()[0] == KEPT_SESSIONS


def test_what_came_is_counted_by_message_over_all_sessions(tmp_path: Path) -> None:
    state = State(tmp_path / "state.sqlite")
    addressed = Addressed(state)

    async def scene() -> None:
        for message, session in (("m", "s"), ("m", "t"), ("other", "u")):
            await addressed.deliver("north", 1, message, [])
            await addressed.open("north", 1, message, session)
            addressed.took_reply("north", 1, message)
        for session, size_bytes in (("s", 5), ("s", 6), ("t", 1), ("u", 100)):
            addressed.took_object("north", session, size_bytes)

    asyncio.run(scene())
    assert addressed.taken("north", 1, "m") == addressed.taken_with("north", "t") == Taken(replies=2, objects=3, size_bytes=12)
    assert addressed.taken("north", 1, "other") == Taken(1, 1, 100)
    assert addressed.taken("north", 2, "m") == addressed.taken("south", 1, "m") == addressed.taken_with("south", "s") == Taken()
    restarted = Addressed(state)
    restarted.took_object("north", "s", 7)
    restarted.took_object("north", "u", 8)
    assert restarted.taken_with("north", "t") == Taken(0, 2, 15), "sessions of before the restart share one count"


def test_counts_go_with_their_message(tmp_path: Path) -> None:
    addressed = Addressed(State(tmp_path / "state.sqlite"))

    async def scene() -> None:
        for number in range(KEPT_MESSAGES + 1):
            await addressed.deliver("north", 1, f"m{number}", [])
            addressed.took_reply("north", 1, f"m{number}")

    asyncio.run(scene())
    assert [addressed.taken("north", 1, f"m{number}").replies for number in (0, 1, KEPT_MESSAGES)] == [0, 1, 1]


# ---- the access log


def lines(folder: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (folder / "access.log").read_text().splitlines()]


def test_routine_and_floods_are_counted_not_listed(tmp_path: Path) -> None:
    clock = Clock(time.time())
    log = AccessLog(tmp_path, clock)
    for _ in range(500):
        log.write({"site": "north", "path": "/v1/fleet/pull-messages", "status": 200, "routine": 1})
        log.write({"address": "192.0.2.7", "path": "/x", "status": 429, "code": "TOO_MANY_REQUESTS"})
    log.write({"site": "north", "path": "/v1/fleet/get-run", "status": 200, "code": None})
    assert [line.get("path") for line in lines(tmp_path)] == ["/v1/fleet/get-run"]
    assert "code" not in lines(tmp_path)[0]
    clock.now += QUIET_SECONDS
    log.write({"site": "north", "path": "/v1/fleet/get-run", "status": 403, "code": "RUN_NOT_APPROVED"})
    counted = [(line["who"], line["what"], line["count"]) for line in lines(tmp_path) if "count" in line]
    assert counted == [("north", "/v1/fleet/pull-messages", 500), ("192.0.2.7", "TOO_MANY_REQUESTS", 500)]
    log.write({"site": "north", "path": "/v1/fleet/pull-messages", "status": 200, "routine": 1})
    log.close()
    assert lines(tmp_path)[-1]["count"] == 1


def test_a_path_in_the_log_is_short_and_printable() -> None:
    assert printable_path(b"/\xff\r\n\x1b[31m" + b"a" * 500).startswith("/\\xff")
    assert len(printable_path(b"a" * 500)) == 120
    assert "\n" not in json.dumps(printable_path(b"/\n"))
