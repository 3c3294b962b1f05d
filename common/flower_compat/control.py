# SPDX-License-Identifier: Apache-2.0
"""Flower's Control interface, which the SuperLink serves on loopback: start and stop runs, register the sites' nodes.

Every function connects, asks once and closes. `NotRunning` means that there is no SuperLink to ask.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import httpx
from flwr.cli.build import build_fab_from_files
from flwr.common.serde import fab_to_proto, user_config_to_proto
from flwr.proto.control_pb2 import (
    ListNodesRequest,
    ListRunsRequest,
    RegisterNodeRequest,
    StartRunRequest,
    StopRunRequest,
    UnregisterNodeRequest,
)
from flwr.proto.node_pb2 import NodeInfo
from flwr.supercore.control.control_http_client import ControlHttpClient
from flwr.supercore.error import ApiErrorCode, FlowerError
from flwr.supercore.fab import Fab
from flwr.supercore.interceptors import RuntimeVersionHttpInterceptor
from flwr.supercore.primitives.asymmetric import bytes_to_public_key, public_key_to_bytes

from common.errors import FederationError, InputError, ProtocolError
from common.flower_compat.superlink import CoordinatorHome, address, direct

ONLINE = "online"


class NotRunning(FederationError):
    """No SuperLink answers."""


@dataclass(frozen=True)
class FlowerNode:
    """A node as the SuperLink knows it; `public_key` is PEM."""

    node_id: int
    name: str
    public_key: str
    is_online: bool


@dataclass(frozen=True)
class FlowerRun:
    """A run as the SuperLink knows it: `status` is pending, starting, running, or finished:completed, finished:failed, finished:stopped."""

    flower_run_id: int
    status: str
    details: str

    @property
    def is_over(self) -> bool:
        """Whether it will not do anything any more."""
        return self.status.startswith("finished")


def canonical_node_key(public_key_pem: str) -> str:
    """The one PEM text that Flower uses for this key. Raises InputError."""
    try:
        return public_key_to_bytes(bytes_to_public_key(public_key_pem.encode())).decode()
    except (ValueError, AttributeError) as error:
        raise InputError(f"node key: not a public key in PEM ({error})") from error


def register_node(home: CoordinatorHome, public_key_pem: str, name: str) -> int:
    """Let the owner of this key take part as `name`; returns its node id, the same if it was registered before.

    Raises NotRunning, InputError for a key that is no EC key.
    """
    key = canonical_node_key(public_key_pem)
    with _connected(home) as client:
        known = _node_with(client, key)
        if known is not None:
            return known.node_id
        try:
            return int(client.RegisterNode(RegisterNodeRequest(public_key=key.encode(), name=name)).node_id)
        except httpx.HTTPStatusError as error:  # somebody else of ours (the executor keeps the nodes too) was a moment quicker
            known = _node_with(client, key) if _code(error) == ApiErrorCode.PUBLIC_KEY_ALREADY_IN_USE else None
            if known is None:
                raise
            return known.node_id


def unregister_node(home: CoordinatorHome, node_id: int) -> None:
    """Take a node off the SuperLink's list, for good: Flower never takes the same key again. Raises NotRunning."""
    with _connected(home) as client:
        try:
            client.UnregisterNode(UnregisterNodeRequest(node_id=node_id))
        except httpx.HTTPStatusError as error:
            if _code(error) != ApiErrorCode.NODE_NOT_FOUND:
                raise


def nodes(home: CoordinatorHome) -> list[FlowerNode]:
    """All registered nodes. Raises NotRunning."""
    with _connected(home) as client:
        return [_node(info) for info in client.ListNodes(ListNodesRequest()).nodes_info]


def build_bundle(files: Mapping[str, bytes]) -> bytes:
    """A Flower App Bundle of these files, by Flower's own builder; the same files give the same bytes."""
    return build_fab_from_files(dict(files))[0]


def start_run(home: CoordinatorHome, bundle: bytes, config: Mapping[str, str]) -> int:
    """Submit a run and return Flower's id of it. Raises NotRunning, FederationError when the SuperLink does not take it."""
    request = StartRunRequest(
        fab=fab_to_proto(Fab(hashlib.sha256(bundle).hexdigest(), bundle, {})), override_config=user_config_to_proto(dict(config))
    )
    with _connected(home) as client:
        flower_run_id = int(client.StartRun(request).run_id)
    if flower_run_id == 0:
        raise FederationError("the SuperLink did not take the run; its log in the folder logs says why")
    return flower_run_id


def stop_run(home: CoordinatorHome, flower_run_id: int) -> bool:
    """Stop a run; False when it was over already, or is not known. Raises NotRunning."""
    with _connected(home) as client:
        try:
            return bool(client.StopRun(StopRunRequest(run_id=flower_run_id)).success)
        except httpx.HTTPStatusError as error:
            if _code(error) not in (ApiErrorCode.RUN_ALREADY_FINISHED, ApiErrorCode.RUN_ID_NOT_FOUND):
                raise
            return False


def runs(home: CoordinatorHome, flower_run_ids: Sequence[int]) -> dict[int, FlowerRun]:
    """These runs by id; one that the SuperLink does not know is left out. Raises NotRunning."""
    found: dict[int, FlowerRun] = {}
    with _connected(home) as client:
        for flower_run_id in flower_run_ids:
            try:
                answer = client.ListRuns(ListRunsRequest(run_id=flower_run_id))
            except httpx.HTTPStatusError as error:
                if _code(error) == ApiErrorCode.RUN_ID_NOT_FOUND:
                    continue
                raise
            for run in answer.run_dict.values():
                status = ":".join(part for part in (run.status.status, run.status.sub_status) if part)
                found[int(run.run_id)] = FlowerRun(int(run.run_id), status, run.status.details)
    return found


def _node_with(client: ControlHttpClient, key: str) -> FlowerNode | None:
    registered = (_node(info) for info in client.ListNodes(ListNodesRequest()).nodes_info)
    return next((node for node in registered if node.public_key == key), None)


def _node(info: NodeInfo) -> FlowerNode:
    return FlowerNode(int(info.node_id), info.name, info.public_key.decode(), info.status == ONLINE)


@contextmanager
def _connected(home: CoordinatorHome) -> Iterator[ControlHttpClient]:
    where = address(home)
    client = ControlHttpClient(f"https://{where}", interceptors=[RuntimeVersionHttpInterceptor("flwr-cli")])
    direct(client, home.ca_certificate.read_bytes())
    try:
        yield client
    except httpx.TransportError as error:
        raise NotRunning(
            f"the SuperLink on {where} does not answer ({type(error).__name__}); start the coordinator with `wardround-server up`"
        ) from error
    except httpx.HTTPStatusError as error:
        raise ProtocolError(f"the SuperLink on {where} answered {error.response.status_code}: {error.response.text[:300]}") from error
    finally:
        client.close()


def _code(error: httpx.HTTPStatusError) -> int | None:
    answer = FlowerError.from_json(error.response.text)
    return None if answer is None else int(answer.code)
