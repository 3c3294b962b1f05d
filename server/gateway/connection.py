# SPDX-License-Identifier: Apache-2.0
"""HTTP/1.1 connections that know whose certificate they came with, and that do not wait for ever.

uvicorn does not show the peer's certificate to the application. This subclass of its protocol puts the certificate's fingerprint into the
state of every request. In TLS 1.3 a connection keeps the certificate of its handshake, so one look is enough; whether that certificate
is still welcome is asked for every request, elsewhere. Three more guards, which uvicorn lacks: time for the head of a request, a bound
on what is read and thrown away after an answer, and a bound on connections without a certificate from one origin.
"""

from __future__ import annotations

import asyncio
import ssl
from typing import Final

import h11
from uvicorn.protocols.http import h11_impl
from uvicorn.protocols.http.h11_impl import H11Protocol

from common.crypto.certificates import fingerprint
from server.gateway.limits import origin

FINGERPRINT: Final = "certificate_fingerprint"
HEAD_SECONDS: Final = 20.0
MAX_STRANGERS: Final = 64
UNREAD_BYTES: Final = 1 << 18
"""So much of a body waits for the application before the other end has to. A large one takes fewer turns than with uvicorn's 64 KB."""

vars(h11_impl)["HIGH_WATER_LIMIT"] = UNREAD_BYTES


class CertificateProtocol(H11Protocol):
    """One connection; `scope["state"][FINGERPRINT]` of its requests is the hexadecimal SHA-256 of the certificate, or None."""

    fingerprint: str | None = None
    _patience: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """A handshake is complete."""
        super().connection_made(transport)
        tls = transport.get_extra_info("ssl_object")
        if tls is None:
            transport.abort()
            return
        self.fingerprint = peer_fingerprint(tls)
        self.app_state = {**self.app_state, FINGERPRINT: self.fingerprint}
        if self.fingerprint is None and self._strangers() > MAX_STRANGERS:
            transport.abort()
            return
        self._be_patient()

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection is closed."""
        self._be_served()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Bytes have come: the head of a request has its time, the rest is the application's."""
        super().data_received(data)
        if self.conn.their_state is h11.IDLE or self.conn.our_state is h11.DONE:
            self._be_patient()
        else:
            self._be_served()

    def _strangers(self) -> int:
        here = origin(self.client[0]) if self.client else ""
        others = (one for one in self.connections if isinstance(one, CertificateProtocol) and one.fingerprint is None)
        return sum(1 for one in others if one.client and origin(one.client[0]) == here)

    def _be_patient(self) -> None:
        if self._patience is None:
            self._patience = self.loop.call_later(HEAD_SECONDS, self.transport.abort)

    def _be_served(self) -> None:
        if self._patience is not None:
            self._patience.cancel()
            self._patience = None


def peer_fingerprint(tls: ssl.SSLObject) -> str | None:
    """Fingerprint of the certificate that the other end showed; None when it showed none."""
    der = tls.getpeercert(binary_form=True)
    return fingerprint(der) if der else None
