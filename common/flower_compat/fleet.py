# SPDX-License-Identifier: Apache-2.0
"""A site's connection to Flower's Fleet API: be online, take a message, answer it. No delivered code is ever asked for.

Built on Flower's own `FleetHttpClient`, heartbeat sender and object helpers; only its retry is left out, because that ends the process
on a 401. Here a call either works or raises one of three errors, and the caller decides when to try again:

    Unreachable     no answer, or one that is not Flower's: try again
    NotWelcome      401 or 403: certificate, revocation or clock. Trying again helps only after somebody did something
    RunOver         this run takes no part in it any more (ended, or not ours): the message is dropped

One thread uses a connection; the heartbeat has a thread of its own.
"""

from __future__ import annotations

import ssl
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Final, TypeVar

import httpx
from cryptography.hazmat.primitives.asymmetric import ec
from flwr.app import Message
from flwr.app.message import remove_content_from_message
from flwr.common.constant import HEARTBEAT_DEFAULT_INTERVAL
from flwr.common.serde import message_to_proto, user_config_from_proto
from flwr.proto.fleet_pb2 import ActivateNodeRequest, DeactivateNodeRequest, PullMessagesRequest, PushMessagesRequest
from flwr.proto.heartbeat_pb2 import SendNodeHeartbeatRequest
from flwr.proto.message_pb2 import ConfirmMessageReceivedRequest, PullObjectRequest, PushObjectRequest
from flwr.proto.node_pb2 import Node
from flwr.proto.run_pb2 import GetRunRequest
from flwr.supercore.constant import TaskType
from flwr.supercore.heartbeat import HeartbeatSender
from flwr.supercore.inflatable.inflatable_utils import (
    ObjectPullError,
    ObjectPushError,
    ObjectUnavailableError,
    pull_objects,
    push_objects,
)
from flwr.supercore.primitives.asymmetric import public_key_to_bytes
from flwr.supernode.node_auth_http_interceptor import NodeAuthHttpInterceptor

from common.errors import ProtocolError, WardroundError
from common.flower_compat.fleet_client import FleetClient, NotWelcome, RunOver, StillOnline, Unreachable, VersionHeaders, refusal
from common.flower_compat.fleet_messages import ArrivalGuard, Interrupted, Outgoing, Pulled, answer_to, object_ids, records_of

__all__ = [
    "FleetConnection",
    "Interrupted",
    "NotWelcome",
    "Outgoing",
    "Pulled",
    "RunFacts",
    "RunOver",
    "StillOnline",
    "Unreachable",
    "answer_to",
]

OBJECT_BACKOFF_SECONDS: Final = 0.02
OBJECT_BACKOFF_CAP_SECONDS: Final = 2.0
OBJECT_WAIT_SECONDS: Final = 600.0
CONCURRENT_OBJECTS: Final = 8
CONCURRENT_PUSHES: Final = 2
"""As many large bodies as the gateway reads from one site at a time: nothing waits there with a clock running."""
LINK_NODE_ID: Final = 1
MAX_HEADER_BYTES: Final = 1 << 16

Answer = TypeVar("Answer")
Question = TypeVar("Question")


@dataclass(frozen=True)
class RunFacts:
    """What get-run says: the configuration that the run was started with, and whether it is a ServerApp's (not an agent's)."""

    config: dict[str, str | int | float | bool]
    is_server_app: bool


class FleetConnection:
    """The connection of one site to `url`, under `node_key`. `tls` decides whom to trust and shows the site's certificate."""

    def __init__(self, url: str, tls: ssl.SSLContext, node_key: ec.EllipticCurvePrivateKey) -> None:
        self._url = url
        self._public_key = public_key_to_bytes(node_key.public_key())
        self._client = FleetClient(url, [VersionHeaders(), NodeAuthHttpInterceptor(node_key, node_key.public_key())], tls)
        self._node: Node | None = None
        self._heartbeat: HeartbeatSender | None = None
        self.last_heartbeat: float | None = None

    @property
    def node_id(self) -> int:
        """Flower's id of this node. Raises NotWelcome before it is active."""
        return int(self._active.node_id)

    def activate(self, known_node_id: int | None = None) -> int:
        """Go online; returns the node id.

        A node that died is still online to its link for up to a minute, and is refused (StillOnline); who knows its id from before
        may pass it and goes on as that node. Raises Unreachable, NotWelcome.
        """
        request = ActivateNodeRequest(public_key=self._public_key, heartbeat_interval=HEARTBEAT_DEFAULT_INTERVAL)
        try:
            self._node = Node(node_id=self._call(self._client.ActivateNode, request).node_id)
        except StillOnline:
            if known_node_id is None:
                raise
            return self.resume(known_node_id)
        self._start_heartbeat()
        return self.node_id

    def resume(self, node_id: int) -> int:
        """Go on as a node that is active, with a new connection. Raises Unreachable, NotWelcome."""
        self._node = Node(node_id=node_id)
        if not self._call(self._client.SendNodeHeartbeat, self._beat_request()).success:
            raise NotWelcome(f"{self._url}: node {node_id} is not known there any more")
        self._start_heartbeat()
        return node_id

    def deactivate(self) -> None:
        """Go offline. Raises Unreachable, NotWelcome."""
        self._stop_heartbeat()
        if self._node is not None:
            node_id = self._node.node_id
            self._node = None
            self._call(self._client.DeactivateNode, DeactivateNodeRequest(node_id=node_id))

    def close(self) -> None:
        """Close the connection; the node stays online until its heartbeats are missed."""
        self._stop_heartbeat()
        self._client.close()

    def keep_heartbeat(self) -> bool:
        """Start the heartbeat again if its thread died; returns whether that was so."""
        if self._heartbeat is None or self._heartbeat.is_running:
            return False
        self._start_heartbeat()
        return True

    def pull(self) -> Pulled | None:
        """The next message for this node, without its content; None if there is none. Raises Unreachable, NotWelcome, ProtocolError.

        The link gives out each message once.
        """
        response = self._call(self._client.PullMessages, PullMessagesRequest(node=self._active))
        if not response.messages_list:
            return None
        if len(response.message_object_trees) != 1 or len(response.messages_list) != 1:
            raise ProtocolError(f"{self._url}: gave out {len(response.messages_list)} messages at once")
        metadata = response.messages_list[0].metadata
        if metadata.dst_node_id != self.node_id or metadata.src_node_id != LINK_NODE_ID:
            raise ProtocolError(f"{self._url}: gave out a message that is not from its ServerApp to this node")
        if metadata.ByteSize() > MAX_HEADER_BYTES:
            raise ProtocolError(f"{self._url}: gave out a message whose header has {metadata.ByteSize():,} bytes")
        return Pulled(metadata.SerializeToString(), object_ids(response.message_object_trees[0], metadata.message_id))

    def run(self, flower_run_id: int) -> RunFacts:
        """What the run was started with. Raises Unreachable, NotWelcome, RunOver."""
        run = self._call(self._client.GetRun, GetRunRequest(node=self._active, run_id=flower_run_id), about_run=True).run
        return RunFacts(user_config_from_proto(run.override_config), run.primary_task_type == TaskType.SERVER_APP)

    def fetch(self, pulled: Pulled, give_up: Callable[[], bool]) -> Message:
        """The message with its content. Raises Unreachable, NotWelcome, RunOver, ProtocolError; Interrupted when `give_up()` is true.

        Nothing is confirmed, so it may be fetched again.
        """
        guard = ArrivalGuard(give_up)
        contents: dict[str, memoryview] = {}

        def take(identifier: str) -> bytes:
            contents[identifier] = guard.counted(self._object(pulled.flower_run_id, guard.passed(identifier)))
            return b""

        try:
            pull_objects(
                list(pulled.object_ids),
                take,
                max_concurrent_pulls=CONCURRENT_OBJECTS,
                max_time=OBJECT_WAIT_SECONDS,
                max_tries_per_object=None,
                initial_backoff=OBJECT_BACKOFF_SECONDS,
                backoff_cap=OBJECT_BACKOFF_CAP_SECONDS,
            )
        except ObjectPullError as error:
            raise RunOver(f"{self._url}: a part of message {pulled.message_id[:12]} is not there ({error})") from error
        return pulled.message(records_of(pulled.message_id, contents))

    def confirm(self, pulled: Pulled) -> None:
        """Say that the message is here; its content is deleted at the link. Raises Unreachable, NotWelcome, RunOver."""
        request = ConfirmMessageReceivedRequest(node=self._active, run_id=pulled.flower_run_id, message_object_id=pulled.message_id)
        self._call(self._client.ConfirmMessageReceived, request, about_run=True)

    def push(self, outgoing: Outgoing) -> None:
        """Send a reply. Raises Unreachable, NotWelcome, RunOver; after any of them it may be pushed again."""
        metadata = outgoing.message.metadata
        request = PushMessagesRequest(
            node=self._active,
            messages_list=[message_to_proto(remove_content_from_message(outgoing.message))],
            message_object_trees=[outgoing.tree],
            clientapp_runtime_list=[outgoing.seconds],
        )
        response = self._call(self._client.PushMessages, request, about_run=True)
        part = PushObjectRequest(node=self._active, run_id=metadata.run_id, session_id=response.session_id)
        wanted = set(response.objects_to_push)
        try:
            push_objects(
                outgoing.objects,
                partial(self._push_object, part),
                object_ids_to_push=wanted,
                keep_objects=True,
                max_concurrent_pushes=CONCURRENT_PUSHES,
            )
        except ObjectPushError as error:
            raise Unreachable(f"{self._url}: did not keep a part of the reply ({error})") from error

    def _object(self, flower_run_id: int, identifier: str) -> memoryview:
        """One object of a message. Raises ObjectPullError, ObjectUnavailableError as Flower's own function does; and as `fetch`."""
        request = PullObjectRequest(node=self._active, run_id=flower_run_id, object_id=identifier)
        answer, content = self._call(self._client.pull_object, request, about_run=True)
        if not answer.object_found:
            raise ObjectPullError(identifier, "the object could not be found.")
        if not answer.object_available:
            raise ObjectUnavailableError(identifier)
        return content

    def _push_object(self, part: PushObjectRequest, identifier: str, content: bytes) -> None:
        """One object of a reply. Raises ObjectPushError when it was not taken; and as `push`."""
        request = PushObjectRequest()
        request.CopyFrom(part)
        request.object_id = identifier
        if not self._call(lambda asked: self._client.push_object(asked, content), request, about_run=True):
            raise ObjectPushError(identifier, part.run_id, part.session_id)

    @property
    def _active(self) -> Node:
        if self._node is None:
            raise NotWelcome(f"{self._url}: this node is not active")
        return self._node

    def _call(self, method: Callable[[Question], Answer], request: Question, about_run: bool = False) -> Answer:
        try:
            return method(request)
        except httpx.HTTPStatusError as error:
            raise refusal(self._url, error.response, about_run) from error
        except httpx.HTTPError as error:
            raise Unreachable(f"{self._url}: {type(error).__name__}: {error}") from error
        except (ValueError, RuntimeError, OSError) as error:  # no protobuf in the answer; or the client was closed
            raise Unreachable(f"{self._url}: the answer is not Flower's ({type(error).__name__})") from error

    def _beat_request(self) -> SendNodeHeartbeatRequest:
        return SendNodeHeartbeatRequest(node=self._active, heartbeat_interval=HEARTBEAT_DEFAULT_INTERVAL)

    def _beat(self) -> bool:
        """One heartbeat. Whatever happens becomes "no" and is tried again: this thread must neither die nor end the process."""
        try:
            alive = bool(self._call(self._client.SendNodeHeartbeat, self._beat_request()).success)
        except WardroundError:
            return False
        if alive:
            self.last_heartbeat = time.time()
        return alive

    def _start_heartbeat(self) -> None:
        self._heartbeat = HeartbeatSender(self._beat)
        self._heartbeat.start()

    def _stop_heartbeat(self) -> None:
        if self._heartbeat is not None and self._heartbeat.is_running:
            self._heartbeat.stop()
        self._heartbeat = None
