# SPDX-License-Identifier: Apache-2.0
"""The calls of a site to its coordinator, over TLS, outbound only. Each is one request and one JSON answer of bounded size.

    POST /v1/wardround/enrol      EnrolRequest                      -> EnrolAnswer       (the only call without the site's certificate)
    POST /v1/wardround/renew      {"certificate_request": PEM}      -> EnrolAnswer
    GET  /v1/wardround/studies                                      -> {"studies": [{"study": text, "start": Signed}, …]}
    POST /v1/wardround/approvals  Signed[ApprovalRecord]            -> {…}
    GET  /v1/wardround/receipts?after=N                             -> {"receipts": [{…}, …], "ledger": receipt or null}
    GET  /v1/wardround/time                                         -> {"time": seconds since the epoch}

Only the authority of the invitation is trusted, never the system's. Proxies are taken from the environment (`HTTPS_PROXY`, `NO_PROXY`).
"""

from __future__ import annotations

import json
import ssl
from contextlib import suppress
from functools import cached_property
from types import TracebackType
from typing import Any, Final, Self

import httpx
from pydantic import ValidationError

from client.connection_errors import refused, unreachable
from client.own_certificate import FETCH_AGAIN
from client.site_config import SiteConfig
from client.site_home import SiteHome
from common.enrolment import EnrolAnswer, EnrolRequest
from common.errors import CoordinatorRefused, InputError, ProtocolError, StorageError
from common.signed import Signed

PREFIX: Final = "/v1/wardround"
MAX_ANSWER_BYTES: Final = 16 * 1024 * 1024
MOST_RECEIPTS: Final = 10**17
LATEST_TIME: Final = 1e11
TIMEOUT: Final = httpx.Timeout(30.0, connect=10.0)


def tls_context(home: SiteHome, with_certificate: bool = True) -> ssl.SSLContext:
    """TLS 1.3 that trusts the coordinator's authority alone and shows the site's certificate, once it is there.

    What is in the files now is what is used: after a renewal, ask again. Raises InputError, StorageError naming the file.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    try:
        context.load_verify_locations(cadata=home.ca_certificate.read_text(encoding="ascii"))
    except (OSError, ValueError, ssl.SSLError) as error:
        raise InputError(
            f"{home.ca_certificate}: cannot be used as the coordinator's authority ({error}); run `wardround-client init` with the "
            "invitation again"
        ) from error
    if with_certificate and home.certificate.exists():
        _load_own(context, home)
    return context


def _load_own(context: ssl.SSLContext, home: SiteHome) -> None:
    try:
        context.load_cert_chain(home.certificate, home.tls_key)
    except (OSError, ssl.SSLError) as error:
        raise StorageError(
            f"{home.certificate}: does not go with {home.tls_key.name} or cannot be read ({error}); restore both from the backup, or "
            f"{FETCH_AGAIN}"
        ) from error


class Coordinator:
    """The coordinator that `site.yaml` names. Every method raises CoordinatorUnreachable, CoordinatorRefused or ProtocolError.

    The site's certificate is read at the first call that needs it; after a renewal make a new object.
    """

    def __init__(self, home: SiteHome, url: str | None = None) -> None:
        self._home = home
        self.url = SiteConfig.read(home.config).coordinator if url is None else url

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections. A closed coordinator may be used again."""
        for name in ("_anonymous", "_known"):
            client = self.__dict__.pop(name, None)
            if client is not None:
                client.close()

    def reach(self) -> None:
        """Whether TLS works as far as an answer of HTTP; what the answer says does not matter. Raises CoordinatorUnreachable."""
        with suppress(CoordinatorRefused, ProtocolError):
            self._call(self._anonymous, "GET", "time")

    def enrol(self, request: EnrolRequest) -> EnrolAnswer:
        """Ask to be enrolled, or how it stands: the same request again is answered again."""
        return self._enrol_answer(self._call(self._anonymous, "POST", "enrol", request.model_dump(mode="json")))

    def renew(self, csr_pem: str) -> EnrolAnswer:
        """Ask for a new certificate, or how it stands."""
        return self._enrol_answer(self._call(self._known, "POST", "renew", {"certificate_request": csr_pem}))

    def studies(self) -> list[dict[str, Any]]:
        """What is offered to this site: `study` (canonical JSON) and `start` (a Signed[StartRecord] as JSON), unchecked."""
        return self._list(self._call(self._known, "GET", "studies"), "studies")

    def approve(self, record: Signed) -> None:
        """Hand in a signed ApprovalRecord (an approval or a rejection)."""
        self._call(self._known, "POST", "approvals", json.loads(record.to_json()))

    def receipts(self, after: int) -> list[dict[str, Any]]:
        """Receipts for egress lines, numbered above `after`, unchecked."""
        return self.all_receipts(after)[0]

    def ledger_receipt(self) -> str | None:
        """The receipt for the newest head of this site's ledger that the coordinator has, unchecked; None if it never had one."""
        answer = self._call(self._known, "GET", f"receipts?after={MOST_RECEIPTS}")
        found = answer.get("ledger", 0)
        if found is not None and not isinstance(found, str):
            raise ProtocolError(f"{self.url}: the answer to receipts has no receipt for the ledger; upgrade the coordinator")
        return found

    def all_receipts(self, after: int) -> tuple[list[dict[str, Any]], str | None]:
        """What `receipts` and `ledger_receipt` bring, by one call; no receipt for the ledger from a coordinator that has none to give."""
        answer = self._call(self._known, "GET", f"receipts?after={int(after)}")
        found = answer.get("ledger")
        return self._list(answer, "receipts"), found if isinstance(found, str) else None

    def time(self) -> float:
        """The coordinator's clock, seconds since the epoch."""
        value = self._call(self._known, "GET", "time").get("time")
        if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value < LATEST_TIME:
            raise ProtocolError(f"{self.url}: the answer to time has no time; the two ends may differ in version")
        return float(value)

    @cached_property
    def _anonymous(self) -> httpx.Client:
        return self._client(with_certificate=False)

    @cached_property
    def _known(self) -> httpx.Client:
        return self._client(with_certificate=True)

    def _client(self, with_certificate: bool) -> httpx.Client:
        return httpx.Client(verify=tls_context(self._home, with_certificate), timeout=TIMEOUT, follow_redirects=False)

    def _call(self, client: httpx.Client, method: str, call: str, content: dict[str, Any] | None = None) -> dict[str, Any]:
        try:
            with client.stream(method, f"{self.url}{PREFIX}/{call}", json=content) as response:
                body = _bounded(response)
        except httpx.HTTPError as error:
            raise unreachable(self._home, self.url, error) from error
        if not response.is_success:
            raise refused(self.url, response.status_code, body)
        return self._object(body, call)

    def _object(self, body: bytes, call: str) -> dict[str, Any]:
        try:
            answer = json.loads(body)
        except (ValueError, RecursionError) as error:
            raise ProtocolError(f"{self.url}: the answer to {call} is no JSON; is this a Wardround coordinator?") from error
        if not isinstance(answer, dict):
            raise ProtocolError(f"{self.url}: the answer to {call} is no object; the two ends may differ in version")
        return answer

    def _list(self, answer: dict[str, Any], name: str) -> list[dict[str, Any]]:
        found = answer.get(name)
        if not isinstance(found, list) or not all(isinstance(one, dict) for one in found):
            raise ProtocolError(f"{self.url}: the answer has no list {name}; the two ends may differ in version")
        return found

    def _enrol_answer(self, answer: dict[str, Any]) -> EnrolAnswer:
        try:
            return EnrolAnswer.model_validate(answer)
        except ValidationError as error:
            raise ProtocolError(f"{self.url}: the answer to the enrolment cannot be read; the two ends may differ in version") from error


def _bounded(response: httpx.Response) -> bytes:
    """The body. Raises ProtocolError when it is larger than an answer can be."""
    parts: list[bytes] = []
    size_bytes = 0
    for part in response.iter_bytes():
        size_bytes += len(part)
        if size_bytes > MAX_ANSWER_BYTES:
            raise ProtocolError(f"{response.url.host}: an answer of more than {MAX_ANSWER_BYTES:,} bytes; it was not read")
        parts.append(part)
    return b"".join(parts)
