# SPDX-License-Identifier: Apache-2.0
"""Why a call to the coordinator failed, in words that say what to do: network, proxy, TLS, certificate, or the coordinator's "no"."""

from __future__ import annotations

import json
import re
import socket
import ssl
import time
from collections.abc import Iterator
from typing import Final

import httpx

from client.own_certificate import EXPIRED, FETCH_AGAIN, certificate_problem, read_own
from client.site_home import SiteHome
from common.errors import CoordinatorRefused, CoordinatorUnreachable

CHECK: Final = "`wardround-client check` tests each step"
_NOT_YET, _EXPIRED, _WRONG_HOST = 9, 10, (62, 64)  # X509_V_ERR_… of OpenSSL; a host is a name or an address
_LONGEST_TEXT: Final = 500


def unreachable(home: SiteHome, url: str, error: httpx.HTTPError) -> CoordinatorUnreachable:
    """The error to raise for what httpx raised."""
    return CoordinatorUnreachable(f"{url}: {_why(home, error)}")


def _why(home: SiteHome, error: httpx.HTTPError) -> str:
    for cause in _causes(error):
        if isinstance(cause, ssl.SSLCertVerificationError):
            return _bad_server(home, cause)
        if isinstance(cause, ssl.SSLError):
            return _tls_alert(home, cause)
        if isinstance(cause, socket.gaierror):
            return f"its name cannot be resolved ({cause.strerror or cause}); check the spelling of the host, DNS, or set HTTPS_PROXY"
    return _cut_off(home, error) or _network(error)


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _bad_server(home: SiteHome, error: ssl.SSLCertVerificationError) -> str:
    """The other end showed a certificate that is not accepted."""
    if error.verify_code in _WRONG_HOST:
        return (
            f"the server's certificate is for another host ({error.verify_message}); do not go on. Check the line "
            f"coordinator in {home.config.name}; or the coordinator adds the name with `wardround-server init … --name HOST`"
        )
    if error.verify_code == _EXPIRED:
        return "the server's certificate has expired; tell the coordinator, and check this machine's clock"
    if error.verify_code == _NOT_YET:
        return "the server's certificate is not valid yet; check this machine's clock (date, NTP)"
    return (
        f"the server's certificate was not issued by the authority of the invitation ({error.verify_message}); do not go on. Either "
        f"something between here and there breaks TLS open (exempt this host from the proxy's inspection), or {home.ca_certificate.name} "
        "is of another coordinator: ask for a new invitation"
    )


def _tls_alert(home: SiteHome, error: ssl.SSLError) -> str:
    """The other end did not accept this site's certificate, or TLS itself failed."""
    reason = (error.reason or str(error)).upper()
    if "CERTIFICATE_EXPIRED" in reason:
        return f"this site's certificate ({home.certificate.name}) has expired; {EXPIRED}"
    if "UNKNOWN_CA" in reason or "BAD_CERTIFICATE" in reason:
        return (
            f"the coordinator does not accept this site's certificate ({home.certificate.name}): another authority issued it; {FETCH_AGAIN}"
        )
    return f"TLS failed ({error.reason or error}); is the port right, and does nothing between here and there break TLS open?"


def _cut_off(home: SiteHome, error: httpx.HTTPError) -> str | None:
    """The other end hung up in the middle: it does so after its "no" to a certificate, and that word may be lost on the way."""
    if not isinstance(error, httpx.ReadError | httpx.WriteError | httpx.RemoteProtocolError):
        return None
    own = read_own(home)
    problem = None if own is None else certificate_problem(home, own, time.time())
    return (
        None if problem is None else f"the connection was cut, and this site's certificate ({home.certificate.name}) is not good: {problem}"
    )


def _network(error: BaseException) -> str:
    if isinstance(error, httpx.ProxyError):
        return f"the proxy refused ({error}); check HTTPS_PROXY and NO_PROXY, and allow CONNECT to this host and port"
    if isinstance(error, httpx.TimeoutException):
        return f"no answer in time ({type(error).__name__}); check the firewall (outbound) and HTTPS_PROXY; {CHECK}"
    text = re.sub(r"^\[Errno -?\d+\] ", "", str(error)) or type(error).__name__
    return f"cannot be reached ({text}); check the address, the firewall (outbound), and HTTPS_PROXY; {CHECK}"


def refused(url: str, status: int, body: bytes) -> CoordinatorRefused:
    """The error to raise for an answer that is no success. What the coordinator writes is shown as plain text, cut short."""
    code, text = _said(body)
    return CoordinatorRefused(status, code, f"{url}: {_meaning(status, text)}")


def _said(body: bytes) -> tuple[str, str]:
    try:
        answer = json.loads(body)
        code, text = str(answer["code"]), str(answer["message"])
    except (ValueError, KeyError, TypeError, RecursionError):
        return "", ""
    return _plain(code)[:64], _plain(text)[:_LONGEST_TEXT]


def _plain(text: str) -> str:
    """Printable characters only: what comes from outside must not steer a terminal."""
    return "".join(letter if letter.isprintable() else " " for letter in text)


def _meaning(status: int, text: str) -> str:
    said = f" ({text})" if text else ""
    match status:
        case 401 if text:
            return f"this site is not let in: {text}; {CHECK}"
        case 401:
            return f"this site is not let in: its certificate is missing, revoked or expired, or the clock is off; {CHECK}"
        case 413:
            return f"the request was too large{said}; the two ends may differ in version"
        case 429:
            return f"too many requests{said}; wait a minute and try again"
        case 403 | 404 if not text:
            return f"answered {status} without a word of ours; is this the coordinator's gateway, or a proxy's page?"
        case _ if status >= 500:
            return f"the coordinator has a fault of its own (HTTP {status}){said}; try again later, or tell the coordinator"
    return text or f"answered HTTP {status} without a word of ours; is this the coordinator's gateway, or a proxy's page?"
