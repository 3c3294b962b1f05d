# SPDX-License-Identifier: Apache-2.0
"""The conformance suite of a Grid: what the round loop relies on, whatever carries the messages.

Each check gets a grid with at least two nodes that run `tests.support.apps:app`.
"""

import time

from flwr.app import ConfigRecord, Message, RecordDict
from flwr.serverapp import Grid


def ask(node: int, **facts: object) -> Message:
    return Message(RecordDict({"ask": ConfigRecord({"ask": True, **facts})}), node, "train", ttl=60.0)


def told(reply: Message) -> dict:
    return dict(reply.content.config_records["reply"])


def wait_for(grid: Grid, identifiers: list[str], seconds: float = 30.0) -> list[Message]:
    deadline, replies = time.monotonic() + seconds, []
    while len(replies) < len(identifiers) and time.monotonic() < deadline:
        replies += list(grid.pull_messages(identifiers))
        time.sleep(0.01)
    return replies


def check_every_node_answers(grid: Grid) -> None:
    nodes = list(grid.get_node_ids())
    replies = list(grid.send_and_receive([ask(node, echo=f"to {node}") for node in nodes], timeout=30))
    assert sorted(told(reply)["partition"] for reply in replies) == list(range(len(nodes)))
    assert {reply.metadata.src_node_id: told(reply)["echo"] for reply in replies} == {node: f"to {node}" for node in nodes}


def check_state_stays_with_its_node(grid: Grid) -> None:
    first, second = list(grid.get_node_ids())[:2]
    before = told(next(iter(grid.send_and_receive([ask(first)], timeout=30))))["seen"]
    other = told(next(iter(grid.send_and_receive([ask(second)], timeout=30))))["seen"]
    after = told(next(iter(grid.send_and_receive([ask(first)], timeout=30))))["seen"]
    assert after == before + 1
    assert other <= before


def check_error_reply(grid: Grid) -> None:
    node = next(iter(grid.get_node_ids()))
    (reply,) = grid.send_and_receive([ask(node, **{"raise": True})], timeout=30)
    assert reply.has_error()
    assert not reply.has_content()
    (reply,) = grid.send_and_receive([ask(node, echo="alive")], timeout=30)
    assert told(reply)["echo"] == "alive"


def check_timeout_returns_what_is_there(grid: Grid) -> None:
    slow, fast = list(grid.get_node_ids())[:2]
    started = time.monotonic()
    replies = list(grid.send_and_receive([ask(fast, echo="fast"), ask(slow, sleep=3.0, echo="slow")], timeout=1.5))
    assert time.monotonic() - started < 2.9
    assert [told(reply)["echo"] for reply in replies] == ["fast"]


def check_late_reply_belongs_to_its_own_message(grid: Grid) -> None:
    node = next(iter(grid.get_node_ids()))
    assert list(grid.send_and_receive([ask(node, sleep=1.0, echo="late")], timeout=0.3)) == []
    (reply,) = grid.send_and_receive([ask(node, echo="next")], timeout=30)
    assert told(reply)["echo"] == "next"


def check_late_reply_can_still_be_pulled_once(grid: Grid) -> None:
    node = next(iter(grid.get_node_ids()))
    identifiers = list(grid.push_messages([ask(node, sleep=0.5, echo="late")]))
    assert list(grid.pull_messages(identifiers)) == []
    (reply,) = wait_for(grid, identifiers)
    assert told(reply)["echo"] == "late"
    assert reply.metadata.reply_to_message_id == identifiers[0]
    assert [again for again in grid.pull_messages(identifiers) if again.has_content()] == []


def check_unknown_node_gets_no_reply(grid: Grid) -> None:
    known = next(iter(grid.get_node_ids()))
    stranger = max(grid.get_node_ids()) + 12345
    identifiers = list(grid.push_messages([ask(stranger), ask(known, echo="known")]))
    replies = [reply for reply in wait_for(grid, identifiers, seconds=3) if reply.has_content()]
    assert [told(reply)["echo"] for reply in replies] == ["known"]


def check_equal_messages_are_two_messages(grid: Grid) -> None:
    node = next(iter(grid.get_node_ids()))
    identifiers = list(grid.push_messages([ask(node, echo="same"), ask(node, echo="same")]))
    assert len(set(identifiers)) == 2
    assert len(wait_for(grid, identifiers)) == 2


CHECKS = [
    check_every_node_answers,
    check_state_stays_with_its_node,
    check_error_reply,
    check_timeout_returns_what_is_there,
    check_late_reply_belongs_to_its_own_message,
    check_late_reply_can_still_be_pulled_once,
    check_unknown_node_gets_no_reply,
    check_equal_messages_are_two_messages,
]
