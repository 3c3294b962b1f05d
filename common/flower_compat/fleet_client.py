# SPDX-License-Identifier: Apache-2.0
"""How calls to Flower's Fleet API go out, and what becomes of those that fail.

Unreachable     no answer, or one that is not Flower's: try again
StillOnline     the link believes that this node is online already: try again, for about a minute
NotWelcome      401 or 403: certificate, revocation or clock. Trying again helps only after somebody did something
RunOver         this run takes no part in it any more (ended, or not ours): the message is dropped
"""

from __future__ import annotations

import ssl
from collections.abc import Sequence
from typing import Final

import httpx
from flwr.supercore.error import ApiErrorCode, FlowerError
from flwr.supercore.interceptors.http.utils import add_headers
from flwr.supercore.protobuf.client import ProtobufCall, ProtobufClientInterceptor, ProtobufRequestContext
from flwr.supercore.runtime_version_compatibility import RuntimeVersionMetadata
from flwr.supernode.fleet_http_client import FleetHttpClient

from common.errors import FederationError, WardroundError

PASSING: Final = frozenset({httpx.codes.REQUEST_TIMEOUT, httpx.codes.TOO_EARLY, httpx.codes.TOO_MANY_REQUESTS})


class Unreachable(FederationError):
    """The coordinator did not answer, or not as Flower's link does; `__cause__` is what httpx raised."""


class NotWelcome(WardroundError):
    """The coordinator does not accept this site: 401 or 403."""


class StillOnline(Unreachable):
    """The node was online a moment ago and its link does not know that it went; after a minute without heartbeat it may come back."""


class RunOver(WardroundError):
    """The run has ended, or is none that this site takes part in."""


class FleetClient(FleetHttpClient):
    """Flower's client, which goes nowhere else when it is told to: a redirect is an error."""

    def __init__(self, url: str, interceptors: Sequence[ProtobufClientInterceptor], tls: ssl.SSLContext) -> None:
        super().__init__(url, interceptors=interceptors, verify=tls)
        self._client.follow_redirects = False


class VersionHeaders:
    """Flower's version in each request; its own interceptor would end the process when the two ends differ."""

    def __init__(self) -> None:
        self._headers = dict(RuntimeVersionMetadata.from_local_component("SuperNode").as_metadata())

    def intercept(self, context: ProtobufRequestContext, call_next: ProtobufCall) -> httpx.Response:
        """Add the headers."""
        add_headers(context.request, self._headers)
        return call_next(context)


def refusal(url: str, response: httpx.Response, about_run: bool) -> WardroundError:
    """The error for an answer that is no success; `about_run`: the call was about one run."""
    status, said = response.status_code, FlowerError.from_json(response.text)
    code = None if said is None else said.code
    if code == ApiErrorCode.FLEET_NODE_ACTIVATION_FAILED:
        return StillOnline(f"{url}: this node is still online there, or is not registered yet; it is tried again")
    if code == ApiErrorCode.RUNTIME_VERSION_INCOMPATIBLE:
        return NotWelcome(f"{url}: runs another version of Flower; both ends must have the same")
    if status == httpx.codes.UNAUTHORIZED or (status == httpx.codes.FORBIDDEN and not about_run):
        return NotWelcome(f"{url}: this site is not accepted ({status}): revoked, expired, or the clock is off")
    if about_run and response.is_client_error and status not in PASSING:
        return RunOver(f"{url}: the run has ended, or this site takes no part in it ({status})")
    return Unreachable(f"{url}: answered {status}")
