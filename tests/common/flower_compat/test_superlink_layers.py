# SPDX-License-Identifier: Apache-2.0
"""Flower's layers on the SuperLink, asked for their own paths only: who may call what is as it was."""

import asyncio
from typing import Any

import httpx
import pytest
from flwr.superlink import main
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware

from common.flower_compat import superlink_layers
from common.flower_compat.fleet_records import MEDIA_TYPE
from common.flower_compat.superlink_layers import CONTROL_LAYERS, ERROR_LAYER, FLEET_LAYERS, TRACING_LAYER, spare_layers
from tests.common.flower_compat.loopback_link import LoopbackLink

PROTOBUF = {"content-type": MEDIA_TYPE, "accept": MEDIA_TYPE}
FLEET_CALLS = ("pull-messages", "push-messages", "pull-object", "push-object", "get-run", "send-node-heartbeat", "confirm-message-received")
RUNTIME_CALLS = ("pull-messages", "push-messages", "pull-object", "push-object", "get-nodes", "acquire-task", "push-logs")


@pytest.fixture
def layers(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of Flower's layers, spared for this test only; every name of the module that is changed is put back."""
    names = [*CONTROL_LAYERS, *FLEET_LAYERS, TRACING_LAYER, ERROR_LAYER]
    for name in names:
        monkeypatch.setattr(main, name, getattr(main, name))
    spare_layers()
    return names


def entered(layer: type[BaseHTTPMiddleware], path: str) -> tuple[bool, list[Any]]:
    """Whether a layer looks at a request for `path`, and what goes out."""
    seen, sent = [], []

    class Watched(layer):  # type: ignore[valid-type, misc]  # the layer under test
        async def dispatch(self, request: Any, call_next: Any) -> Any:
            seen.append(request.url.path)
            return await call_next(request)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    async def receive() -> Any:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {"type": "http", "path": path, "headers": [], "method": "POST", "query_string": b"", "scheme": "https", "server": ("x", 1)}
    asyncio.run(Watched(app)(scope, receive, send))
    return bool(seen), sent


@pytest.mark.parametrize(
    "path", ["/v1/fleet/pull-object", "/v1/runtime/push-object", "/v1/control/list-runs", "/", "/health", "/v1/fleetx"]
)
def test_a_layer_is_asked_unless_it_would_do_nothing(layers: list[str], path: str) -> None:
    ours = path.startswith(("/v1/fleet/", "/v1/runtime/"))
    for name in layers:
        is_left = ours if name in CONTROL_LAYERS else path.startswith("/v1/runtime/") if name in FLEET_LAYERS else name == TRACING_LAYER
        was_asked, sent = entered(getattr(main, name), path)
        assert was_asked is not is_left, name
        assert sent[0]["status"] == 204, name


def test_tracing_is_asked_when_it_is_on(layers: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(superlink_layers.TRACING_SWITCH, "1")
    assert entered(getattr(main, TRACING_LAYER), "/v1/fleet/pull-object")[0]


def test_every_layer_of_flower_is_known(layers: list[str]) -> None:
    """A layer that Flower adds is not spared unseen; one that it drops ends the start of the SuperLink."""
    found = [layer.cls for layer in main._get_middleware() if isinstance(layer, Middleware)]
    known = {getattr(main, name) for name in layers} | {main.ProtobufTranslationMiddleware}
    assert set(found) == known and len(found) == 9


def test_who_is_not_a_node_gets_nothing(link: LoopbackLink) -> None:
    with httpx.Client(base_url=link.url, verify=link.tls(), trust_env=False) as anybody:
        answers = [anybody.post(f"/v1/fleet/{name}", headers=PROTOBUF) for name in FLEET_CALLS]
        forged = [anybody.post(f"/v1/fleet/{name}", headers=PROTOBUF | {"flwr-public-key": "AAAA"}) for name in FLEET_CALLS]
    assert {answer.status_code for answer in answers + forged} <= {401, 412}


def test_who_has_no_token_gets_nothing(link: LoopbackLink) -> None:
    with httpx.Client(base_url=link.url, verify=link.tls(), trust_env=False) as anybody:
        answers = [anybody.post(f"/v1/runtime/{name}", headers=PROTOBUF) for name in RUNTIME_CALLS]
        forged = [anybody.post(f"/v1/runtime/{name}", headers=PROTOBUF | {"authorization": "Bearer x"}) for name in RUNTIME_CALLS]
    assert {answer.status_code for answer in answers + forged} <= {401, 403, 412}


def test_an_error_within_is_flowers_answer(link: LoopbackLink) -> None:
    """The layer that translates errors still does, although it does not see answers any more."""
    with httpx.Client(base_url=link.url, verify=link.tls(), trust_env=False) as anybody:
        answer = anybody.post("/v1/fleet/pull-object", headers={"content-type": "text/plain"})
    assert answer.status_code == 415 and answer.headers["content-type"] == "application/json"
