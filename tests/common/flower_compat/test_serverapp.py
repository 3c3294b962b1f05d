# SPDX-License-Identifier: Apache-2.0
"""How a ServerApp of a real run is run: one bundle, the installed app, replies that are what the SuperLink says they are."""

import hashlib
import importlib
import inspect
import time
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, Message, RecordDict
from flwr.common.constant import ErrorCode
from flwr.common.serde import message_to_proto
from flwr.proto.message_pb2 import Message as ProtoMessage
from flwr.proto.message_pb2 import ObjectTree
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects
from hypothesis import given, settings
from hypothesis import strategies as st

from common.errors import RefusedError
from common.flower_compat import serverapp
from common.flower_compat.identity import assume_server_identity, empty_run
from common.flower_compat.messages import give_message_id
from common.flower_compat.serverapp import FederationGrid, Pace, install_only
from server.launch import FILES, bundle, bundle_sha256


class Link(FederationGrid):
    """A grid whose objects are in memory."""

    def __init__(self, contents: dict[str, bytes]) -> None:
        super().__init__("127.0.0.1:1", root_certificates=b"", token="token")
        self.set_run(empty_run(1))
        self.contents = contents

    def _fetch(self, message_id: str, tree: ObjectTree) -> dict[str, bytes]:
        return dict(self.contents)


def reply(to: str | None = None) -> tuple[Message, ProtoMessage, dict[str, bytes]]:
    """A reply, what the SuperLink announces of it, and its objects; `to` makes it claim to answer another message."""
    assume_server_identity(1)
    instruction = Message(RecordDict(), 7, "train")
    give_message_id(instruction)
    message = Message(RecordDict({"model": ArrayRecord({"w": Array(np.arange(3.0, dtype=np.float32))})}), reply_to=instruction)
    announced = message_to_proto(message)
    if to is not None:
        message.metadata.__dict__["_reply_to_message_id"] = to
    contents = {name: part.deflate() for name, part in get_all_nested_objects(message).items()}
    announced.metadata.message_id = message.object_id
    return message, announced, contents


def test_a_reply_is_read() -> None:
    _, announced, contents = reply()
    found = Link(contents)._inflated(announced, ObjectTree())
    assert found.has_content()
    assert found.metadata.reply_to_message_id == announced.metadata.reply_to_message_id
    assert found.metadata.message_id == announced.metadata.message_id


def test_a_reply_that_claims_to_answer_a_message_of_another_site_is_dropped() -> None:
    _, announced, contents = reply(to="the message of another site")
    found = Link(contents)._inflated(announced, ObjectTree())
    assert found.has_error()
    assert found.metadata.reply_to_message_id == announced.metadata.reply_to_message_id != "the message of another site"


@pytest.mark.parametrize("damage", ["missing part", "no message", "garbage", "wrong type"])
def test_an_unreadable_reply_is_an_error_of_its_site_not_of_the_run(damage: str) -> None:
    _, announced, contents = reply()
    message_id = announced.metadata.message_id
    if damage == "missing part":
        contents = {message_id: contents[message_id]}
    elif damage == "no message":
        contents = {}
    elif damage == "garbage":
        contents[message_id] = b"Message  9\0garbage"
    else:
        contents[message_id] = next(content for name, content in contents.items() if content.startswith(b"ArrayChunk"))
    found = Link(contents)._inflated(announced, ObjectTree())
    assert found.has_error()
    assert found.error.code == ErrorCode.MESSAGE_UNAVAILABLE


@cache
def the_reply() -> tuple[ProtoMessage, dict[str, bytes]]:
    return reply()[1:]


@given(st.data())
@settings(max_examples=150, deadline=None)
def test_no_damage_to_a_reply_ends_the_run(data: st.DataObject) -> None:
    announced, contents = the_reply()
    name = data.draw(st.sampled_from(sorted(contents)))
    content = bytearray(contents[name])
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    contents = dict(contents)
    contents[name] = bytes(content[: data.draw(st.integers(0, len(content)))]) if data.draw(st.booleans()) else bytes(content)
    found = Link(contents)._inflated(announced, ObjectTree())
    assert found.metadata.reply_to_message_id == announced.metadata.reply_to_message_id


def test_only_the_bundle_without_code_is_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from common.flower_compat.control import build_bundle

    monkeypatch.setenv("FLWR_HOME", str(tmp_path))
    foreign = build_bundle({**FILES, "server/app.py": b"print('hello')"})
    with pytest.raises(RefusedError, match="FOREIGN_BUNDLE"):
        install_only(bundle_sha256(), foreign)
    assert list(tmp_path.iterdir()) == []
    folder = install_only(hashlib.sha256(bundle()).hexdigest(), bundle())
    assert sorted(path.name for path in folder.iterdir()) == ["LICENSE", "pyproject.toml"]


def test_the_token_file_goes_before_anything_else_happens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    token_file, seen = tmp_path / "token", []
    token_file.write_text("secret token")
    (tmp_path / "ca.crt").write_bytes(b"authority")
    monkeypatch.setattr(serverapp, "run", lambda *given: seen.append((given, token_file.exists())))
    options = {"address": "127.0.0.1:1", "root-certificates": tmp_path / "ca.crt", "token-file": token_file}
    arguments = [part for name, value in options.items() for part in (f"--{name}", str(value))]
    serverapp.main([*arguments, "--bundle-sha256", "00", "--objects", str(tmp_path), "--app", "server.app"])
    assert seen == [(("127.0.0.1:1", b"authority", "secret token", "00", tmp_path), False)]


def test_the_pause_grows_with_the_waiting_and_starts_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    now, slept = [100.0], []
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    monkeypatch.setattr(time, "sleep", slept.append)
    pace = Pace()
    for waited in (0.0, 1.0, 10.0, 1000.0):
        now[0] = 100.0 + waited
        pace.after(False)
    pace.after(True)
    pace.after(False)
    assert slept == pytest.approx([0.03, 0.05, 0.23, 0.5, 0.03])


def test_an_answer_that_took_long_was_a_pause_too(monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []
    monkeypatch.setattr(time, "monotonic", lambda: 100.0)
    monkeypatch.setattr(time, "sleep", slept.append)
    pace = Pace()
    for asked in (100.0, 99.98, 99.0):
        pace.after(False, asked)
    assert slept == pytest.approx([0.03, 0.01, 0.0])


def test_what_is_taken_from_flower_is_still_there() -> None:
    runner = importlib.import_module("flwr.superlink.runtime.run_serverapp")
    source = inspect.getsource(runner.run_serverapp)
    assert "install_from_fab(fab.content, skip_prompt=True)" in source
    assert "grid = HttpGrid(" in source
    assert runner.HttpGrid is not None
    parameters = inspect.signature(runner.run_serverapp).parameters
    assert {"runtime_api_address", "log_queue", "token", "insecure", "certificates", "runtime_dependency_install"} <= set(parameters)
