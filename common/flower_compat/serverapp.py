# SPDX-License-Identifier: Apache-2.0
r"""One ServerApp of a real run: Flower's own runner, with a grid of ours and no code from anywhere else.

    python -m common.flower_compat.serverapp --address HOST:PORT --root-certificates CA --token-file F --bundle-sha256 H \
        --objects DIR --app MODULE

The token comes in a file that is removed as soon as it is read, which is when everything is loaded: from then on this process speaks for
itself, and the SuperLink hears its heartbeats. The bundle of the run has to be the one with the digest H, which holds no
code, and MODULE, imported before anything of the bundle is unpacked, is the installed one. The grid hands out one reply at a time, so that
memory does not grow with the number of sites, and believes what the SuperLink says about a reply before what the reply says of itself.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib
import logging
import mmap
import os
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from queue import Queue
from typing import TextIO, cast

os.environ.setdefault("FLWR_PRIVATE_MAX_CONCURRENT_OBJ_PUSHES", "8")
os.environ.setdefault("FLWR_PRIVATE_MAX_CONCURRENT_OBJ_PULLS", "8")

from flwr.app import Error, Message, Metadata
from flwr.app.message import make_message, remove_content_from_message
from flwr.cli.install import install_from_fab
from flwr.common.constant import ErrorCode
from flwr.common.serde import message_to_proto
from flwr.proto.message_pb2 import ConfirmMessageReceivedRequest, ObjectTree
from flwr.proto.message_pb2 import Message as ProtoMessage
from flwr.proto.node_pb2 import NodeInfo
from flwr.proto.runtime_pb2 import PullAppMessagesRequest, PushAppMessagesRequest
from flwr.supercore.constant import SYSTEM_MESSAGE_TYPE
from flwr.supercore.inflatable.inflatable_object import (
    InflatableObject,
    UnexpectedObjectContentError,
    get_all_nested_objects,
    get_object_tree,
    is_valid_sha256_hash,
    iterate_object_tree,
)
from flwr.supercore.inflatable.inflatable_protobuf_utils import make_pull_object_fn_protobuf, make_push_object_fn_protobuf
from flwr.supercore.inflatable.inflatable_utils import ObjectPullError, pull_objects, push_objects
from flwr.supercore.logger import LOGGER_NAME, mirror_output_to_queue
from flwr.superlink.grid import HttpGrid
from google.protobuf.message import DecodeError

from common.errors import ProtocolError, RefusedError
from common.flower_compat.large_objects import IN_A_FILE, LARGE_BYTES, write_own_object
from common.flower_compat.packing import packed, unpacked
from common.flower_compat.pieces import inflated
from common.flower_compat.superlink import direct
from common.json_log import RUN_LOG, JsonStream, json_handler
from common.memory import keep_what_is_loaded

RUNNER = "flwr.superlink.runtime.run_serverapp"
OBJECT_BACKOFF_SECONDS = 0.02
OBJECT_BACKOFF_CAP_SECONDS = 0.5
REPLY_SECONDS = 900.0
"""How long the parts of one reply may take to arrive once the reply is announced."""
FIRST_PAUSE_SECONDS = 0.03
LONGEST_PAUSE_SECONDS = 0.5
PAUSE_SHARE = 0.02
"""An answer costs the SuperLink some 10 ms of processor time, and the sites wait for the same processor."""
UNREADABLE = (
    *(ObjectPullError, UnexpectedObjectContentError, DecodeError, ProtocolError),
    *(ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RecursionError, MemoryError, AssertionError),
)


class Pace:
    """How long to pause between two questions: longer, the longer has been waited; never more than a small share of that time."""

    def __init__(self) -> None:
        self._since = time.monotonic()

    def after(self, found: bool, asked: float | None = None) -> None:
        """Call it after each answer; pauses when there was nothing. What the answer took since `asked` (monotonic) was a pause too."""
        now = time.monotonic()
        if found:
            self._since = now
        else:
            pause_seconds = min(LONGEST_PAUSE_SECONDS, FIRST_PAUSE_SECONDS + PAUSE_SHARE * (now - self._since))
            time.sleep(max(0.0, pause_seconds - (0.0 if asked is None else now - asked)))


class FederationGrid(HttpGrid):
    """Flower's grid over HTTP: straight to the SuperLink, one inflated reply at a time, a bad reply no error of the run.

    Large objects are read from `objects`, the SuperLink's folder of them, when it is given.
    """

    def __init__(
        self,
        runtime_api_address: str,
        insecure: bool = False,
        root_certificates: bytes | None = None,
        *,
        token: str,
        objects: Path | None = None,
    ) -> None:
        super().__init__(runtime_api_address, insecure, root_certificates, token=token)
        self._objects = objects
        self._replies_pace, self._nodes_pace = Pace(), Pace()

    def _connect(self) -> None:
        super()._connect()
        if self._client is not None and self._cert is not None:
            direct(self._client, self._cert)

    def get_nodes(self) -> Iterable[NodeInfo]:
        """The nodes that are online."""
        nodes = list(super().get_nodes())
        self._nodes_pace.after(bool(nodes))
        return nodes

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Send messages, their tensors packed for the way; returns their ids."""
        self._replies_pace.after(True)
        waiting = list(messages)
        for message, content in zip(waiting, packed(message.content for message in waiting), strict=True):
            message.content = content
        return super().push_messages(waiting)

    def _try_push_messages(self, run_id: int, messages: Iterable[Message]) -> list[str]:
        """As Flower's own, but large objects go into their files: what lies there when it is announced is not asked for."""
        objects: dict[str, InflatableObject] = {}
        for message in messages:
            objects.update(get_all_nested_objects(message))
        for identifier, one in objects.items():
            self._in_a_file(identifier, one.deflate())
        request = PushAppMessagesRequest(
            messages_list=[message_to_proto(remove_content_from_message(message)) for message in messages],
            message_object_trees=[get_object_tree(message) for message in messages],
        )
        answer = self._runtime_client.PushMessages(request)
        push = make_push_object_fn_protobuf(self._runtime_client.PushObject, self.node, run_id, answer.session_id)
        push_objects(
            objects,
            lambda identifier, content: push(identifier, self._in_a_file(identifier, content)),
            object_ids_to_push=set(answer.objects_to_push),
        )
        return list(answer.message_ids)

    def _in_a_file(self, object_id: str, content: bytes) -> bytes:
        """What the SuperLink gets for an object: the object, or what says that it is in its file."""
        if self._objects is None or len(content) < LARGE_BYTES:
            return content
        write_own_object(self._objects, object_id, content)
        return IN_A_FILE

    def pull_messages(self, message_ids: Iterable[str]) -> Iterator[Message]:
        """The replies that are there, each read only when it is asked for."""
        asked = time.monotonic()
        answer = self._runtime_client.PullMessages(PullAppMessagesRequest(message_ids=message_ids))
        self._replies_pace.after(bool(answer.messages_list), asked)
        for announced, tree in zip(answer.messages_list, answer.message_object_trees, strict=True):
            yield self._inflated(announced, tree)

    def _inflated(self, announced: ProtoMessage, tree: ObjectTree) -> Message:
        try:
            contents = self._fetch(announced.metadata.message_id, tree)
            message = inflated(announced.metadata.message_id, contents)
            if not isinstance(message, Message) or not _fits(message.metadata, announced):
                raise ValueError("the reply says something else about itself than the SuperLink")
            if message.has_content():
                message.content = unpacked(message.content)
        except UNREADABLE as error:
            return self._unreadable(announced, error)
        message.metadata.__dict__["_message_id"] = announced.metadata.message_id
        return message

    def _fetch(self, message_id: str, tree: ObjectTree) -> dict[str, bytes | memoryview]:
        """All objects of a reply, which the SuperLink then forgets."""
        run_id = self.run.run_id
        ask = make_pull_object_fn_protobuf(self._runtime_client.PullObject, self.node, run_id)
        contents: dict[str, bytes | memoryview] = {}

        def take(identifier: str) -> bytes:
            contents[identifier] = self._from_file(identifier) or ask(identifier)
            return b""

        pull_objects(
            [part.object_id for part in iterate_object_tree(tree)],
            take,
            max_time=REPLY_SECONDS,
            max_tries_per_object=None,
            initial_backoff=OBJECT_BACKOFF_SECONDS,
            backoff_cap=OBJECT_BACKOFF_CAP_SECONDS,
        )
        self._runtime_client.ConfirmMessageReceived(
            ConfirmMessageReceivedRequest(node=self.node, run_id=run_id, message_object_id=message_id)
        )
        return contents

    def _from_file(self, object_id: str) -> memoryview | None:
        """A large object, as it lies in its file, when it is there already. Raises ObjectPullError for what cannot be the name of one."""
        if self._objects is None:
            return None
        if not is_valid_sha256_hash(object_id):
            raise ObjectPullError(object_id[:64], "not a SHA-256 digest")
        try:
            with (self._objects / object_id).open("rb") as file:
                return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
        except FileNotFoundError:
            return None

    def _unreadable(self, announced: ProtoMessage, error: BaseException) -> Message:
        """An error reply in place of one that cannot be read."""
        server = self.node.node_id
        metadata = Metadata(
            run_id=self.run.run_id,
            message_id="",
            src_node_id=server,
            dst_node_id=server,
            reply_to_message_id=announced.metadata.reply_to_message_id,
            group_id="",
            created_at=time.time(),
            ttl=0,
            message_type=SYSTEM_MESSAGE_TYPE,
        )
        return make_message(metadata=metadata, error=Error(ErrorCode.MESSAGE_UNAVAILABLE, f"{type(error).__name__}: {error}"[:300]))


def _fits(own: Metadata, announced: ProtoMessage) -> bool:
    """Whether a reply names the message that it answers, its sender and its run as the SuperLink does."""
    known = announced.metadata
    return (own.reply_to_message_id, own.src_node_id, own.run_id) == (known.reply_to_message_id, known.src_node_id, known.run_id)


def install_only(sha256: str, content: bytes, skip_prompt: bool = True) -> Path:
    """Unpack the one bundle that holds no code. Raises RefusedError for any other."""
    if hashlib.sha256(content).hexdigest() != sha256:
        raise RefusedError("FOREIGN_BUNDLE", "this run brings a bundle that is not Wardround's; nothing of it was unpacked")
    return Path(install_from_fab(content, skip_prompt=skip_prompt))


def run(address: str, root_certificates: bytes, token: str, bundle_sha256: str, objects: Path) -> None:
    """Run the ServerApp of the task that `token` stands for; ends the process."""
    runner = importlib.import_module(RUNNER)
    vars(runner)["HttpGrid"] = partial(FederationGrid, objects=objects)
    vars(runner)["install_from_fab"] = partial(install_only, bundle_sha256)
    log_queue: Queue[str | None] = Queue()
    mirror_output_to_queue(log_queue)
    runner.run_serverapp(address, log_queue, token, insecure=False, certificates=root_certificates, runtime_dependency_install=False)


def log_as_json() -> None:
    """Everything that this process prints and logs becomes JSON lines; what Flower mirrors to the SuperLink as well."""
    sys.stdout, sys.stderr = (cast(TextIO, JsonStream(stream)) for stream in (sys.stdout, sys.stderr))
    handler = json_handler(sys.stdout)
    for name in (RUN_LOG, LOGGER_NAME):
        log = logging.getLogger(name)
        log.handlers, log.propagate = [handler], False
    logging.getLogger(RUN_LOG).setLevel(logging.INFO)
    handler.setLevel(logging.INFO)


def main(command_line: Sequence[str]) -> None:
    """Read the command line and the token, and run."""
    parser = argparse.ArgumentParser(prog="serverapp")
    for option in ("--address", "--root-certificates", "--token-file", "--bundle-sha256", "--objects", "--app"):
        parser.add_argument(option, required=True)
    options = parser.parse_args(command_line)
    log_as_json()
    for module in (options.app, RUNNER):
        importlib.import_module(module)
    keep_what_is_loaded()
    token_file = Path(options.token_file)
    token = token_file.read_text(encoding="ascii")
    token_file.unlink()
    run(options.address, Path(options.root_certificates).read_bytes(), token, options.bundle_sha256, Path(options.objects))


if __name__ == "__main__":
    main(sys.argv[1:])
