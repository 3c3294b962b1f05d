# SPDX-License-Identifier: Apache-2.0
"""Runs the gateway: TLS 1.3 with an optional client certificate of our authority, uvicorn, logs in the coordinator's folder.

The certificate is optional in the handshake because enrolment comes without one. A certificate of another authority, or one that has
expired, ends the handshake.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
from typing import Any, Final

import uvicorn

from common.errors import InputError, StorageError
from common.json_log import JsonLines
from server.certificate_watch import CertificateWatch
from server.gateway.access_log import MAX_FILE_BYTES, OLD_FILES, AccessLog
from server.gateway.addressed import Addressed
from server.gateway.app import Gateway
from server.gateway.checks import Books
from server.gateway.connection import CertificateProtocol
from server.gateway.doorman import Doorman
from server.gateway.fleet import FleetCalls
from server.gateway.fresh import Fresh
from server.gateway.limits import Limits
from server.gateway.objects import LargeObjects
from server.gateway.own_calls import OwnCalls
from server.gateway.redelivery import Redelivery
from server.gateway.superlink import SuperLink
from server.home import ServerHome
from server.sites import SiteRegistry
from server.state import State

MAX_CONNECTIONS: Final = 1000
MAX_HEAD_BYTES: Final = 16 << 10
KEEP_ALIVE_SECONDS: Final = 75
STOP_SECONDS: Final = 5
RENEW_SECONDS: Final = 5


def run_gateway(home: ServerHome, limits: Limits | None = None) -> None:
    """Serve until SIGTERM or SIGINT. Raises InputError when the address cannot be used, StorageError for keys or database."""
    settings = home.settings
    with _listening(settings.listen_host, settings.listen_port) as listener:
        home.logs.mkdir(mode=0o700, exist_ok=True)
        context = tls_context(home)
        config = uvicorn.Config(
            _no_app,
            http=CertificateProtocol,
            ws="none",
            lifespan="off",
            interface="asgi3",
            proxy_headers=False,
            server_header=False,
            access_log=False,
            log_config=_log_config(home),
            limit_concurrency=MAX_CONNECTIONS,
            h11_max_incomplete_event_size=MAX_HEAD_BYTES,
            timeout_keep_alive=KEEP_ALIVE_SECONDS,
            timeout_graceful_shutdown=STOP_SECONDS,
            ssl_context_factory=lambda _config, _default: context,
        )
        with asyncio.Runner(loop_factory=config.get_loop_factory()) as runner:
            runner.run(_serve(home, limits or Limits(), config, listener, context))


async def _serve(home: ServerHome, limits: Limits, config: uvicorn.Config, listener: socket.socket, context: ssl.SSLContext) -> None:
    state, log, fresh, superlink = State(home.state), AccessLog(home.logs), Fresh(home.state), SuperLink(home)
    try:
        books = Books(state, fresh, Addressed(state), limits)
        doorman = Doorman(SiteRegistry(state), fresh, limits)
        redelivery = Redelivery(home.superlink_database, books.addressed)
        fleet = FleetCalls(superlink, books, LargeObjects(home.superlink_database), redelivery)
        config.app = Gateway(doorman, fleet, OwnCalls(home, limits), superlink, log)
        renewing = asyncio.create_task(_renew(home, context))
        await uvicorn.Server(config).serve(sockets=[listener])
        renewing.cancel()
    finally:
        superlink.close()
        fresh.close()
        log.close()


async def _renew(home: ServerHome, context: ssl.SSLContext) -> None:
    """Show a renewed certificate to every connection that begins from then on."""
    watch, log, said = CertificateWatch(home), logging.getLogger("uvicorn.error"), ""
    while True:
        await asyncio.sleep(RENEW_SECONDS)
        if watch.has_new():
            context.load_cert_chain(home.certificate, home.certificate_key)
            log.info("the server's new certificate is in use")
        elif watch.problem != said and watch.problem:
            log.error("%s", watch.problem)
        said = watch.problem


def tls_context(home: ServerHome) -> ssl.SSLContext:
    """TLS 1.3, a certificate of our authority if the other end has one, no resumption: each connection shows its certificate anew.

    Raises StorageError when certificate or key cannot be read.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.sslobject_class = _Handshake
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.num_tickets = 0
    context.verify_mode = ssl.CERT_OPTIONAL
    context.set_alpn_protocols(["http/1.1"])
    try:
        context.load_cert_chain(home.certificate, home.certificate_key)
        context.load_verify_locations(home.ca_certificate)
    except OSError as error:
        raise StorageError(f"{home.folder}: server.crt, server.key or ca.crt cannot be read ({error}); restore them") from error
    return context


class _Handshake(ssl.SSLObject):
    """A handshake that says in our log why a certificate was refused; the other end gets an alert."""

    def do_handshake(self) -> None:
        """One step."""
        try:
            super().do_handshake()
        except ssl.SSLCertVerificationError as error:
            logging.getLogger("uvicorn.error").warning("TLS: a client certificate was refused: %s", error.verify_message)
            raise


def _listening(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=512, reuse_port=False)
    except OSError as error:
        raise InputError(f"cannot listen on {host}:{port} ({error.strerror or error}); is it in use? see server.json") from error


async def _no_app(scope: object, receive: object, send: object) -> None:
    """Stands in the configuration until the application is made, inside the event loop."""


def _log_config(home: ServerHome) -> dict[str, Any]:
    """uvicorn's own messages (faults, malformed HTTP) into logs/gateway.log."""
    handler = {
        "class": "logging.handlers.RotatingFileHandler",
        "filename": str(home.logs / "gateway.log"),
        "maxBytes": MAX_FILE_BYTES,
        "backupCount": OLD_FILES,
        "formatter": "json",
    }
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {"json": {"()": JsonLines}},
        "handlers": {"file": handler},
        "loggers": {"uvicorn": {"handlers": ["file"], "level": "INFO", "propagate": False}},
    }
