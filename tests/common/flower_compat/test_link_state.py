# SPDX-License-Identifier: Apache-2.0
"""Flower's state without the bookkeeping: tasks still end when nobody holds them; the bell rings for whole messages only."""

import threading
import time
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import pytest
from flwr.app import ConfigRecord, Message, Metadata, RecordDict
from flwr.app.message import make_message
from flwr.server.superlink.linkstate import SqlLinkState
from flwr.supercore.constant import NOOP_ACCOUNT_NAME, NOOP_FEDERATION_ID, OBJECT_PUSH_SESSION_TTL_SECONDS, TaskType
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects, get_object_tree
from flwr.superlink.federation import NoOpFederationManager

from common.flower_compat import link_state
from common.flower_compat.large_objects import IN_A_FILE, objects_folder, write_own_object
from common.flower_compat.link_state import LeanLinkState
from common.flower_compat.object_store import FileObjectStoreFactory
from common.flower_compat.superlink_waiting import Bells


@pytest.fixture
def bells() -> Bells:
    return Bells()


@pytest.fixture
def state(tmp_path: Path, bells: Bells) -> LeanLinkState:
    return opened(tmp_path, bells)


def opened(folder: Path, bells: Bells) -> LeanLinkState:
    """The state in the database in `folder`."""
    path = str(folder / "superlink.sqlite")
    made = LeanLinkState(path, NoOpFederationManager(), FileObjectStoreFactory(path).store(), bells=bells)
    made.initialize()
    return made


def message_for(run_id: int, sender: int, receiver: int, answered: str = "", value: int = 1) -> Message:
    """An instruction or a reply as the SuperLink gets it."""
    metadata = Metadata(
        run_id=run_id,
        message_id="",
        src_node_id=sender,
        dst_node_id=receiver,
        reply_to_message_id=answered,
        group_id="",
        created_at=time.time(),
        ttl=50.0 if answered else 100.0,
        message_type="train",
    )
    message = make_message(metadata=metadata, content=RecordDict({"a": ConfigRecord({"x": value})}))
    vars(message.metadata)["_message_id"] = message.object_id
    return message


@dataclass(frozen=True)
class Begun:
    """A message that was delivered, and the reply to it, of which everything but the last object is there."""

    run_id: int
    node_id: int
    answered: str
    reply: Message
    session: str
    last: str

    def push_last(self, state: LeanLinkState) -> bool:
        return state.store_object(self.run_id, self.session, self.last, get_all_nested_objects(self.reply)[self.last].deflate())


@pytest.fixture
def begun(state: LeanLinkState) -> Begun:
    node_id = state.create_node("us", NOOP_ACCOUNT_NAME, b"key", 300.0)
    state.activate_node(node_id, 300.0)
    run_id = state.create_run(None, None, None, {}, NOOP_FEDERATION_ID, None, "us", TaskType.SERVER_APP)
    sent = message_for(run_id, 1, node_id)
    pushed(state, run_id, sent)
    assert [one.metadata.message_id for one in state.get_message_ins(node_id, 1)] == [sent.object_id]
    reply = message_for(run_id, node_id, 1, sent.object_id)
    session, last = pushed(state, run_id, reply, leave=1)
    return Begun(run_id, node_id, sent.object_id, reply, session, last)


def pushed(state: LeanLinkState, run_id: int, message: Message, leave: int = 0) -> tuple[str, str]:
    """Push a message, but not its last `leave` objects; the session, and the last object."""
    objects = get_all_nested_objects(message)
    session = state.start_session(run_id)
    stored, missing = state.store_message_and_object_tree(message, get_object_tree(message), session)
    assert stored and missing
    for identifier in missing[: len(missing) - leave]:
        assert state.store_object(run_id, session, identifier, objects[identifier].deflate())
    return session, missing[-1]


def replies(state: LeanLinkState, begun: Begun) -> list[str]:
    """What the run's server gets when it asks for replies."""
    found = state.get_message_res({begun.answered}, begun.run_id)
    state.delete_messages({one.metadata.reply_to_message_id for one in found})  # as Flower does with what it gives out
    return [one.metadata.message_id for one in found]


def test_a_reply_is_given_out_when_it_is_whole(state: LeanLinkState, begun: Begun) -> None:
    assert replies(state, begun) == []
    assert begun.push_last(state)
    assert replies(state, begun) == [begun.reply.object_id]


def test_a_reply_that_is_announced_in_that_very_moment_waits_too(
    state: LeanLinkState, begun: Begun, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the look at what has begun to come and the giving out: else its run would have it, and its site could not send it again."""
    sent = message_for(begun.run_id, 1, begun.node_id)
    pushed(state, begun.run_id, sent)
    state.get_message_ins(begun.node_id, 1)
    reply = message_for(begun.run_id, begun.node_id, 1, sent.object_id, value=2)
    announcing = threading.Thread(target=pushed, args=(state, begun.run_id, reply, 1))
    look = state._arriving

    def look_and_be_late(message_ids: set[str]) -> set[str]:
        found = look(message_ids)
        announcing.start()
        announcing.join(1.0)
        return found

    monkeypatch.setattr(state, "_arriving", look_and_be_late)
    assert state.get_message_res({sent.object_id}, begun.run_id) == []
    monkeypatch.undo()
    announcing.join(10.0)
    pushed(state, begun.run_id, reply)
    assert [one.metadata.message_id for one in state.get_message_res({sent.object_id}, begun.run_id)] == [reply.object_id]


def test_a_reply_that_broke_off_is_sent_again(state: LeanLinkState, begun: Begun) -> None:
    """Flower has forgotten the message by then, asks for no object of a reply to nothing, and the site believes that all is well."""
    assert replies(state, begun) == []
    session, _ = pushed(state, begun.run_id, begun.reply)
    assert session != begun.session
    assert replies(state, begun) == [begun.reply.object_id]


def test_another_reply_takes_the_place_of_one_that_broke_off(state: LeanLinkState, begun: Begun) -> None:
    """The daemon died while it sent; the next one does not know what, and says that it was interrupted."""
    another = message_for(begun.run_id, begun.node_id, 1, begun.answered, value=2)
    pushed(state, begun.run_id, another)
    assert not begun.push_last(state), "what is left of the first is not wanted any more"
    assert replies(state, begun) == [another.object_id]
    assert state.object_store.get(begun.reply.object_id) is None


@pytest.mark.parametrize("whose", ["its own", "a stranger's"])
def test_a_reply_that_is_whole_or_anothers_keeps_its_place(state: LeanLinkState, begun: Begun, whose: str) -> None:
    sender = begun.node_id
    if whose == "a stranger's":
        sender = state.create_node("them", NOOP_ACCOUNT_NAME, b"other key", 300.0)
    else:
        assert begun.push_last(state)
    another = message_for(begun.run_id, sender, 1, begun.answered, value=2)
    assert state.store_message_and_object_tree(another, get_object_tree(another), state.start_session(begun.run_id)) == (False, [])
    if whose == "a stranger's":
        assert begun.push_last(state)
    assert replies(state, begun) == [begun.reply.object_id]


def test_a_reply_that_nobody_waits_for_leaves_nothing_in_memory(state: LeanLinkState, begun: Begun) -> None:
    """The message was answered and is forgotten; whoever answers again and again fills no list."""
    begun.push_last(state)
    assert replies(state, begun) == [begun.reply.object_id]
    late = message_for(begun.run_id, begun.node_id, 1, begun.answered)
    for _ in range(3):
        session = state.start_session(begun.run_id)
        assert state.store_message_and_object_tree(late, get_object_tree(late), session) == (False, [])
    assert vars(state)["_ways"] == {}


def test_a_reply_that_broke_off_long_ago_is_none(state: LeanLinkState, begun: Begun, monkeypatch: pytest.MonkeyPatch) -> None:
    later = link_state.now() + timedelta(seconds=OBJECT_PUSH_SESSION_TTL_SECONDS + 1)
    monkeypatch.setattr(link_state, "now", lambda: later)
    assert replies(state, begun) == []
    assert state.object_store.get(begun.reply.object_id) is None, "it was forgotten"
    monkeypatch.undo()
    pushed(state, begun.run_id, begun.reply)
    assert replies(state, begun) == [begun.reply.object_id], "and may come again"


def rung(bells: Bells) -> tuple[int, int]:
    return bells.sites.count, bells.runs.count


def test_a_bell_rings_when_the_last_object_is_there(state: LeanLinkState, bells: Bells) -> None:
    """That of the sites for a message, that of the runs for the reply."""
    node_id = state.create_node("us", NOOP_ACCOUNT_NAME, b"key", 30.0)
    state.activate_node(node_id, 30.0)
    run_id = state.create_run(None, None, None, {}, NOOP_FEDERATION_ID, None, "us", TaskType.SERVER_APP)
    sent = message_for(run_id, 1, node_id)
    before = rung(bells)
    for message, after in ((sent, (1, 0)), (message_for(run_id, node_id, 1, sent.object_id), (1, 1))):
        objects = get_all_nested_objects(message)
        session = state.start_session(run_id)
        stored, missing = state.store_message_and_object_tree(message, get_object_tree(message), session)
        assert stored and missing
        for number, identifier in enumerate(missing, 1):
            assert rung(bells) == before
            assert state.store_object(run_id, session, identifier, objects[identifier].deflate())
            assert rung(bells) == (after if number == len(missing) else before)
        before = after


def test_after_a_restart_nobody_knows_which_bell_and_both_ring(state: LeanLinkState, bells: Bells, tmp_path: Path) -> None:
    node_id = state.create_node("us", NOOP_ACCOUNT_NAME, b"key", 30.0)
    state.activate_node(node_id, 30.0)
    run_id = state.create_run(None, None, None, {}, NOOP_FEDERATION_ID, None, "us", TaskType.SERVER_APP)
    message = message_for(run_id, 1, node_id)
    session = state.start_session(run_id)
    _, missing = state.store_message_and_object_tree(message, get_object_tree(message), session)
    again = opened(tmp_path, bells)
    for identifier in missing:
        again.store_object(run_id, session, identifier, get_all_nested_objects(message)[identifier].deflate())
    assert rung(bells) == (1, 1)


def test_what_lies_in_its_file_is_not_asked_for(state: LeanLinkState, bells: Bells, tmp_path: Path) -> None:
    """One push of two messages that share a part: of each only its own object is asked for, and then it is given out."""
    node_id = state.create_node("us", NOOP_ACCOUNT_NAME, b"key", 300.0)
    state.activate_node(node_id, 300.0)
    run_id = state.create_run(None, None, None, {}, NOOP_FEDERATION_ID, None, "us", TaskType.SERVER_APP)
    messages = [message_for(run_id, 1, node_id), message_for(run_id, 1, node_id)]
    for message in messages:
        in_files(tmp_path, message)
    session = state.start_session(run_id)
    asked = [state.store_message_and_object_tree(message, get_object_tree(message), session) for message in messages]
    assert asked == [(True, [message.object_id]) for message in messages]
    assert bells.sites.count == 0
    for message in messages:
        assert state.store_object(run_id, session, message.object_id, IN_A_FILE)
    assert {one.metadata.message_id for one in state.get_message_ins(node_id, 2)} == {message.object_id for message in messages}
    assert bells.sites.count == 1
    for message in messages:
        for identifier, part in get_all_nested_objects(message).items():
            assert state.object_store.get(identifier) == part.deflate()


def test_of_a_reply_every_part_is_asked_for(state: LeanLinkState, begun: Begun, tmp_path: Path) -> None:
    """A site may announce what others have sent: it gets no share in what lies in the files."""
    sent = message_for(begun.run_id, 1, begun.node_id)
    pushed(state, begun.run_id, sent)
    reply = message_for(begun.run_id, begun.node_id, 1, sent.object_id, value=2)
    in_files(tmp_path, reply)
    _, missing = state.store_message_and_object_tree(reply, get_object_tree(reply), state.start_session(begun.run_id))
    assert set(missing) == set(get_all_nested_objects(reply))


def in_files(folder: Path, message: Message) -> None:
    """Put all parts of a message where the store keeps large objects, as the run's server does before it announces them."""
    for identifier, part in get_all_nested_objects(message).items():
        write_own_object(objects_folder(folder / "superlink.sqlite"), identifier, part.deflate())


def test_who_is_late_is_looked_for_at_intervals(state: LeanLinkState, monkeypatch: pytest.MonkeyPatch) -> None:
    looks: list[float] = []
    now = [100.0]
    monkeypatch.setattr(SqlLinkState, "_cleanup_expired_task_tokens", lambda _: looks.append(now[0]))
    monkeypatch.setattr(link_state.time, "monotonic", lambda: now[0])
    for moment in (100.0, 100.2, 100.49, 100.5, 100.6, 101.0):
        now[0] = moment
        state.get_run_status(set())
    assert looks == [100.0, 100.5, 101.0]
