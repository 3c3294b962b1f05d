# SPDX-License-Identifier: Apache-2.0
"""Flower's layers on the SuperLink, asked for their own paths only: who may call what is as it was."""

import asyncio
from collections.abc import Callable
from typing import Any, ClassVar

import httpx
import pytest
from flwr.superlink import main
from starlette.middleware.base import BaseHTTPMiddleware, RequestResponseEndpoint
from starlette.requests import Request
from starlette.responses import Response

from common.flower_compat import superlink_layers
from common.flower_compat.fleet_records import MEDIA_TYPE
from common.flower_compat.superlink_layers import CONTROL_LAYERS, ERROR_LAYER, FLEET_LAYERS, TRACING_LAYER, spare_layers
from tests.common.flower_compat.loopback_link import LoopbackLink

PROTOBUF = {"content-type": MEDIA_TYPE, "accept": MEDIA_TYPE}
FLEET_CALLS = ("pull-messages", "push-messages", "pull-object", "push-object", "get-run", "send-node-heartbeat", "confirm-message-received")
RUNTIME_CALLS = ("pull-messages", "push-messages", "pull-object", "push-object", "get-nodes", "acquire-task", "push-logs")


Layer = Callable[[Any], Any]


class Watched(BaseHTTPMiddleware):
    """In the place of a layer of Flower's: remembers what it was asked, and lets it through."""

    asked: ClassVar[list[str]] = []

    async def dispatch(self, request: Request, call_next: RequestResponseEndpoint) -> Response:
        self.asked.append(request.url.path)
        return await call_next(request)


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of Flower's layers; whatever a test changes there is put back."""
    found = [*CONTROL_LAYERS, *FLEET_LAYERS, TRACING_LAYER, ERROR_LAYER]
    for name in found:
        monkeypatch.setattr(main, name, getattr(main, name))
    return found


@pytest.fixture
def layers(names: list[str]) -> dict[str, Layer]:
    """How each is spared, with one that is watched in its place."""
    for name in names:
        setattr(main, name, Watched)
    spare_layers()
    return {name: getattr(main, name) for name in names}


def entered(layer: Layer, path: str) -> tuple[bool, int]:
    """Whether a layer looks at a request for `path`, and the status that goes out."""
    sent: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    async def receive() -> Any:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Any) -> None:
        sent.append(message)

    Watched.asked.clear()
    scope = {"type": "http", "path": path, "headers": [], "method": "POST", "query_string": b"", "scheme": "https", "server": ("x", 1)}
    asyncio.run(layer(app)(scope, receive, send))
    return Watched.asked == [path], sent[0]["status"]


@pytest.mark.parametrize(
    "path", ["/v1/fleet/pull-object", "/v1/runtime/push-object", "/v1/control/list-runs", "/", "/health", "/v1/fleetx"]
)
def test_a_layer_is_asked_unless_it_would_do_nothing(layers: dict[str, Layer], path: str) -> None:
    ours = path.startswith(("/v1/fleet/", "/v1/runtime/"))
    for name, layer in layers.items():
        is_left = ours if name in CONTROL_LAYERS else path.startswith("/v1/runtime/") if name in FLEET_LAYERS else name == TRACING_LAYER
        assert entered(layer, path) == (not is_left, 204), name


def test_tracing_is_asked_when_it_is_on(layers: dict[str, Layer], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(superlink_layers.TRACING_SWITCH, "1")
    assert entered(layers[TRACING_LAYER], "/v1/fleet/pull-object") == (True, 204)


def test_every_layer_of_flower_is_known(names: list[str]) -> None:
    """A layer that Flower adds is not overlooked; one that it drops ends the start of the SuperLink."""
    found = [layer.cls for layer in main._get_middleware()]
    assert set(found) == {getattr(main, name) for name in names} | {main.ProtobufTranslationMiddleware} and len(found) == 9


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
