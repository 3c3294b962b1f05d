# SPDX-License-Identifier: Apache-2.0
"""`/metrics` for Prometheus: figures that are computed when somebody asks, from files that exist; nothing is counted on the side.

A page is a list of `Metric`s, each with the people it is for, and of parts, each a function that reads something and yields samples. A
part that fails (a file that is damaged, a database that is busy) leaves its own figures out and is named in
`wardround_metrics_part_failed`; the others stand. It is served by a thread over plain HTTP without a password, so the address is on
loopback unless somebody chooses otherwise. That nobody can listen there is said in the log, and tried again; nothing else waits for it.
"""

from __future__ import annotations

import socket
import sqlite3
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from socketserver import TCPServer, ThreadingMixIn
from typing import TYPE_CHECKING, Any, Final, NamedTuple
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from typing_extensions import override

from common.errors import WardroundError
from common.listen import Listen

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment
    from prometheus_client.metrics_core import Metric as Family

PATH: Final = "/metrics"
FRESH_SECONDS: Final = 1.0
"""Whoever asks more often gets the same answer again."""
AGAIN_SECONDS: Final = 30.0
POLL_SECONDS: Final = 0.5
REQUEST_SECONDS: Final = 10.0
MOST_REQUESTS: Final = 8
PART_ERRORS: Final = (WardroundError, OSError, sqlite3.Error, ValueError, KeyError, TypeError)
"""What reading files that change meanwhile may raise."""


class Kind(StrEnum):
    """A figure that goes up and down, or one that only grows."""

    GAUGE = "gauge"
    COUNTER = "counter"


class Sample(NamedTuple):
    """One value of one metric."""

    metric: Metric
    labels: tuple[str, ...]
    value: float


@dataclass(frozen=True)
class Metric:
    """One figure. `name` with its unit, `_total` at the end of a counter's; `reader` is who it is for."""

    name: str
    kind: Kind
    text: str
    reader: str
    labels: tuple[str, ...] = ()

    def at(self, value: float, *labels: str) -> Sample:
        """Its value under these labels."""
        return Sample(self, labels, value)


def gauge(name: str, text: str, reader: str, labels: tuple[str, ...] = ()) -> Metric:
    """A figure that goes up and down."""
    return Metric(name, Kind.GAUGE, text, reader, labels)


def counter(name: str, text: str, reader: str, labels: tuple[str, ...] = ()) -> Metric:
    """A figure that only grows."""
    return Metric(name, Kind.COUNTER, text, reader, labels)


EVERYBODY: Final = "hospital IT, coordinator"
PART_FAILED: Final = gauge(
    "wardround_metrics_part_failed", "1 while a part of this page cannot be read and is left out", EVERYBODY, ("part",)
)
BUILD: Final = gauge("wardround_build_info", "Always 1; the version that runs", EVERYBODY, ("side", "version"))
Part = Callable[[], Iterable[Sample]]
Say = Callable[[str], None]


class Page:
    """What is on the page. `metrics` are all that the parts may yield, `parts` are read in their order."""

    def __init__(self, metrics: Sequence[Metric], parts: Mapping[str, Part], clock: Callable[[], float] = time.monotonic) -> None:
        self._metrics = (*metrics, PART_FAILED)
        self._parts, self._clock = parts, clock
        self._lock = threading.Lock()
        self._families: list[Family] = []
        self._read_at = float("-inf")

    def collect(self) -> Iterator[Family]:
        """Prometheus' families of samples; read anew unless that was a moment ago."""
        with self._lock:
            if self._clock() - self._read_at >= FRESH_SECONDS:
                self._families = list(self._families_of(self._samples()))
                self._read_at = self._clock()
            return iter(self._families)

    def _samples(self) -> Iterator[Sample]:
        for name, part in self._parts.items():
            try:
                yield from list(part())
            except PART_ERRORS:
                yield PART_FAILED.at(1, name)
            else:
                yield PART_FAILED.at(0, name)

    def _families_of(self, samples: Iterable[Sample]) -> Iterator[Family]:
        from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily

        families = {
            metric.name: (CounterMetricFamily if metric.kind is Kind.COUNTER else GaugeMetricFamily)(
                metric.name, f"{metric.text}. For: {metric.reader}.", labels=metric.labels
            )
            for metric in self._metrics
        }
        for sample in samples:
            families[sample.metric.name].add_metric(sample.labels, sample.value)
        yield from (family for family in families.values() if family.samples)


class MetricsServer:
    """Serves a page in a thread of its own, until `stop`. `say` gets a line for the log when something is to be said."""

    def __init__(self, page: Page, listen: Listen, say: Say) -> None:
        self._page, self._listen, self._say = page, listen, say
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="metrics", daemon=True)

    def start(self) -> None:
        """Begin to listen; that it cannot is said and tried again later."""
        self._thread.start()

    def stop(self) -> None:
        """Listen no more."""
        self._stopping.set()
        self._thread.join(REQUEST_SECONDS)

    def _run(self) -> None:
        problem = ""
        while not self._stopping.is_set():
            try:
                server = self._bound()
            except OSError as error:
                if str(error) != problem:
                    problem = str(error)
                    self._say(f"metrics: cannot listen on {self._listen} ({error.strerror or error}); everything else goes on, tried again")
                self._stopping.wait(AGAIN_SECONDS)
                continue
            self._serve(server)
            return

    def _bound(self) -> WSGIServer:
        return make_server(self._listen.host, self._listen.port, _app(self._page), _server_class(self._listen), _Handler)

    def _serve(self, server: WSGIServer) -> None:
        open_to = "" if self._listen.is_loopback else "; whoever reaches this address can read them, there is no password"
        self._say(f"metrics: http://{self._listen}{PATH}{open_to}")
        server.timeout = POLL_SECONDS
        with server:
            while not self._stopping.is_set():
                server.handle_request()


class _Server(ThreadingMixIn, WSGIServer):
    """A thread for each request, a few at a time; who asks beside those is turned away."""

    daemon_threads = True

    def __init__(self, *arguments: Any) -> None:
        self._places = threading.BoundedSemaphore(MOST_REQUESTS)
        super().__init__(*arguments)

    @override
    def server_bind(self) -> None:
        """Without the look-up of this machine's name that the base class makes, which may take long."""
        TCPServer.server_bind(self)
        self.server_name, self.server_port = "localhost", int(self.server_address[1])
        self.setup_environ()

    @override
    def process_request(self, request: Any, client_address: Any) -> None:
        if self._places.acquire(blocking=False):
            super().process_request(request, client_address)
        else:
            self.shutdown_request(request)

    @override
    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._places.release()


class _Handler(WSGIRequestHandler):
    """Quiet, and no longer patient than a scrape takes."""

    timeout = REQUEST_SECONDS

    @override
    def log_message(self, format: str, *args: Any) -> None:
        """Scrapes are not worth a line."""


def _server_class(listen: Listen) -> type[_Server]:
    class Server(_Server):
        address_family = socket.AF_INET6 if ":" in listen.host else socket.AF_INET

    return Server


def _app(page: Page) -> WSGIApplication:
    """The page, `/metrics` alone, with what Prometheus' own library says about this process."""
    from prometheus_client import CollectorRegistry, ProcessCollector, make_wsgi_app

    registry = CollectorRegistry()
    registry.register(page)
    ProcessCollector(registry=registry)
    metrics = make_wsgi_app(registry)

    def app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        if environ.get("PATH_INFO") == PATH:
            return list(metrics(environ, start_response))
        start_response("404 Not Found", [("Content-Type", "text/plain; charset=utf-8")])
        return [b"there is only /metrics here\n"]

    return app
