# SPDX-License-Identifier: Apache-2.0
"""The SuperLink's ASGI layers, each only where it does something.

Flower sends every request through nine layers. Most of them look at the path and hand the request on as it is, but taking it apart for that
look costs more than the call itself. Here a layer is asked for its own paths alone; for those nothing changes. The paths are those that the
router goes by, so no call can reach a handler round its layer.
"""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable
from functools import partial
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from starlette.middleware.base import BaseHTTPMiddleware, DispatchFunction
    from starlette.responses import Response
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

FLEET: Final = "/v1/fleet/"
RUNTIME: Final = "/v1/runtime/"
CONTROL_LAYERS: Final = (
    "ControlSensitiveResponseMiddleware",
    "ControlAuthenticationMiddleware",
    "ControlLicenseMiddleware",
    "ControlEventLogMiddleware",
)
FLEET_LAYERS: Final = ("NodeAuthMiddleware", "FleetEventLogMiddleware")
TRACING_LAYER: Final = "RuntimeTracingMiddleware"
ERROR_LAYER: Final = "BaseHTTPMiddleware"
"""Flower makes its translation of errors from Starlette's own class."""
TRACING_SWITCH: Final = "FLWR_TRACING_ENABLED"

Leaves = Callable[[str], bool]


class WholeBody:
    """Outermost ASGI layer: the layers within get a request's body in one piece. The gateway has bounded it already."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        first = await receive()
        if first.get("more_body"):
            first = await _whole(first, receive)
        waiting = [first]

        async def next_event() -> Message:
            return waiting.pop() if waiting else await receive()

        await self._app(scope, next_event, send)


async def _whole(first: Message, receive: Receive) -> Message:
    """All pieces of a body as one; a client that has gone is what comes in their place."""
    body = bytearray(first["body"])
    while first.get("more_body"):
        first = await receive()
        if first["type"] != "http.request":
            return first
        body += first.get("body", b"")
    return {"type": "http.request", "body": bytes(body), "more_body": False}


def spare_layers() -> None:
    """Make Flower's next application use each layer for its own paths only. Raises KeyError for a Flower that has other layers."""
    from flwr.superlink import main

    names = vars(main)
    for name in CONTROL_LAYERS:
        names[name] = partial(_spared, names[name], lambda path: path.startswith((FLEET, RUNTIME)))
    for name in FLEET_LAYERS:
        names[name] = partial(_spared, partial(_direct, names[name]), lambda path: path.startswith(RUNTIME))
    names[TRACING_LAYER] = partial(_spared, names[TRACING_LAYER], lambda _: os.environ.get(TRACING_SWITCH) != "1")
    names[ERROR_LAYER] = partial(_direct, names[ERROR_LAYER])


def _spared(layer: Callable[[ASGIApp], ASGIApp], leaves: Leaves, app: ASGIApp) -> ASGIApp:
    """The layer around `app`, with requests for paths that it leaves alone going round it."""
    within = layer(app)

    async def serve(scope: Scope, receive: Receive, send: Send) -> None:
        around = scope["type"] == "http" and leaves(scope["path"])
        await (app if around else within)(scope, receive, send)

    return serve


def _direct(layer: type[BaseHTTPMiddleware], app: ASGIApp, dispatch: DispatchFunction | None = None) -> ASGIApp:
    """A layer that either lets a request through or answers in its place, without a task and a queue for what comes back.

    Only for layers that do not touch an answer from within: it has gone out when they get to see it.
    """
    from starlette.requests import Request

    decide: Callable[..., Awaitable[Response | None]] = (layer(app) if dispatch is None else layer(app, dispatch)).dispatch_func

    async def serve(scope: Scope, receive: Receive, send: Send) -> None:
        async def through(_: Request) -> None:
            await app(scope, receive, send)

        if scope["type"] != "http":
            await app(scope, receive, send)
            return
        instead = await decide(Request(scope, receive), through)
        if instead is not None:
            await instead(scope, receive, send)

    return serve
