# SPDX-License-Identifier: Apache-2.0
"""Flower's state without the bookkeeping: tasks still end when nobody holds them; the bell rings for whole messages only."""

import time
from pathlib import Path

import pytest
from flwr.app import ConfigRecord, Message, Metadata, RecordDict
from flwr.app.message import make_message
from flwr.server.superlink.linkstate import SqlLinkState
from flwr.supercore.constant import NOOP_ACCOUNT_NAME, NOOP_FEDERATION_ID, TaskType
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects, get_object_tree
from flwr.superlink.federation import NoOpFederationManager

from common.flower_compat import link_state
from common.flower_compat.link_state import LeanLinkState
from common.flower_compat.object_store import FileObjectStoreFactory
from common.flower_compat.superlink_waiting import Bell


@pytest.fixture
def bell() -> Bell:
    return Bell()


@pytest.fixture
def state(tmp_path: Path, bell: Bell) -> LeanLinkState:
    path = str(tmp_path / "superlink.sqlite")
    made = LeanLinkState(path, NoOpFederationManager(), FileObjectStoreFactory(path).store(), bell=bell)
    made.initialize()
    return made


def message_for(run_id: int, node_id: int) -> Message:
    """An instruction as the SuperLink gets it."""
    metadata = Metadata(
        run_id=run_id,
        message_id="",
        src_node_id=1,
        dst_node_id=node_id,
        reply_to_message_id="",
        group_id="",
        created_at=time.time(),
        ttl=100.0,
        message_type="train",
    )
    message = make_message(metadata=metadata, content=RecordDict({"a": ConfigRecord({"x": 1})}))
    vars(message.metadata)["_message_id"] = message.object_id
    return message


def test_the_bell_rings_when_the_last_object_is_there(state: LeanLinkState, bell: Bell) -> None:
    node_id = state.create_node("us", NOOP_ACCOUNT_NAME, b"key", 30.0)
    state.activate_node(node_id, 30.0)
    run_id = state.create_run(None, None, None, {}, NOOP_FEDERATION_ID, None, "us", TaskType.SERVER_APP)
    message = message_for(run_id, node_id)
    objects = get_all_nested_objects(message)
    session = state.start_session(run_id)
    stored, missing = state.store_message_and_object_tree(message, get_object_tree(message), session)
    assert stored and set(missing) == set(objects) and bell.count == 0
    for number, (identifier, one) in enumerate(objects.items(), 1):
        assert state.store_object(run_id, session, identifier, one.deflate())
        assert bell.count == (number == len(objects))


def test_who_is_late_is_looked_for_at_intervals(state: LeanLinkState, monkeypatch: pytest.MonkeyPatch) -> None:
    looks: list[float] = []
    now = [100.0]
    monkeypatch.setattr(SqlLinkState, "_cleanup_expired_task_tokens", lambda _: looks.append(now[0]))
    monkeypatch.setattr(link_state.time, "monotonic", lambda: now[0])
    for moment in (100.0, 100.2, 100.49, 100.5, 100.6, 101.0):
        now[0] = moment
        state.get_run_status(set())
    assert looks == [100.0, 100.5, 101.0]
