# SPDX-License-Identifier: Apache-2.0
"""How calls to Flower's Fleet API go out, and what becomes of those that fail.

Unreachable     no answer, or one that is not Flower's: try again
StillOnline     the link believes that this node is online already: try again, for about a minute
NotWelcome      401 or 403: certificate, revocation or clock. Trying again helps only after somebody did something
RunOver         this run takes no part in it any more (ended, or not ours): the message is dropped
"""

from __future__ import annotations

import ssl
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Final

import httpx
from flwr.proto.message_pb2 import PullObjectRequest, PullObjectResponse, PushObjectRequest, PushObjectResponse
from flwr.supercore.error import ApiErrorCode, FlowerError
from flwr.supercore.interceptors.http.utils import add_headers
from flwr.supercore.protobuf.client import ProtobufCall, ProtobufClientInterceptor, ProtobufRequestContext
from flwr.supercore.runtime_version_compatibility import RuntimeVersionMetadata
from flwr.supernode.fleet_http_client import FleetHttpClient

from common.errors import FederationError, ProtocolError, WardroundError
from common.flower_compat.fleet_records import CONTENT, FLEET, MEDIA_TYPE
from common.flower_compat.shallow import field_head, without_field

CHUNK_BYTES: Final = 1 << 18
MOST_ANSWER_BYTES: Final = 1 << 25
"""An object and what stands around it: pieces have 16 MiB."""
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

    def push_object(self, request: PushObjectRequest, content: bytes) -> bool:
        """`PushObject` for a request without its content, which is not copied on the way; whether it was taken.

        Raises what Flower's own calls raise.
        """
        head = request.SerializeToString(deterministic=True) + field_head(PushObjectRequest, CONTENT, len(content))
        with self._answer("PushObject", "push-object", request, _Parts((head, content))) as answer:
            return bool(PushObjectResponse.FromString(answer.read()).stored)

    def pull_object(self, request: PullObjectRequest) -> tuple[PullObjectResponse, memoryview]:
        """`PullObject`: the answer without the content, and the content where it lies in the answer. Raises as above."""
        with self._answer("PullObject", "pull-object", request, _Parts((request.SerializeToString(deterministic=True),))) as answer:
            body = _whole(answer)
        try:
            rest, content = without_field(body, PullObjectResponse, CONTENT)
        except ProtocolError as error:
            raise ValueError(str(error)) from error
        return PullObjectResponse.FromString(rest), content

    @contextmanager
    def _answer(self, method: str, name: str, request: PushObjectRequest | PullObjectRequest, body: _Parts) -> Iterator[httpx.Response]:
        """The answer to a call, its body still to be read."""
        headers = {"content-type": MEDIA_TYPE, "accept": MEDIA_TYPE, "accept-encoding": "identity", "content-length": str(body.size_bytes)}
        asked = self._client.build_request("POST", f"{self._base_url}{FLEET}{name}", content=body, headers=headers)
        response = self._send(ProtobufRequestContext(f"/flwr.proto.Fleet/{method}", request, asked), stream=True)
        asked.extensions["timeout"]["read"] = self._client.timeout.read  # a stream of Flower's may be silent for ever
        try:
            response.raise_for_status()
            yield response
        finally:
            response.close()
            response.stream = httpx.ByteStream(b"")  # httpx ties the two into a cycle, and both bodies would stay until the collector runs


def _whole(response: httpx.Response) -> memoryview:
    """The body, each part put in its place as it comes: httpx would keep all of them, and then join them.

    Raises ValueError when it is longer than an answer may be, or does not say how long it is.
    """
    size = response.headers.get("content-length", "")
    if not (size.isascii() and size.isdigit() and len(size) < 12 and int(size) <= MOST_ANSWER_BYTES):
        raise ValueError(f"an answer of {size[:20] or 'unknown'} bytes; at most {MOST_ANSWER_BYTES} are read")
    body, place = memoryview(bytearray(int(size))), 0
    for part in response.iter_raw():
        body[place : place + len(part)] = part
        place += len(part)
    return body


class _Parts:
    """The bytes of a body, chunk by chunk, as often as they are asked for."""

    def __init__(self, parts: Sequence[bytes]) -> None:
        self._parts = parts
        self.size_bytes = sum(len(part) for part in parts)

    def __iter__(self) -> Iterator[bytes]:
        for part in self._parts:
            for start in range(0, len(part), CHUNK_BYTES):
                yield part[start : start + CHUNK_BYTES]


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
    if status == httpx.codes.TOO_EARLY:
        return Unreachable(f"{url}: this site's node is still being registered there; it is tried again")
    if code == ApiErrorCode.RUNTIME_VERSION_INCOMPATIBLE:
        return NotWelcome(f"{url}: runs another version of Flower; both ends must have the same")
    if status == httpx.codes.UNAUTHORIZED or (status == httpx.codes.FORBIDDEN and not about_run):
        return NotWelcome(f"{url}: this site is not accepted ({status}): revoked, expired, or the clock is off")
    if about_run and response.is_client_error and status not in PASSING:
        return RunOver(f"{url}: the run has ended, or this site takes no part in it ({status})")
    return Unreachable(f"{url}: answered {status}")
