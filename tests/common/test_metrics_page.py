# SPDX-License-Identifier: Apache-2.0
"""The page for Prometheus: what is on it, a part that fails, a port that is taken, clients that ask too much."""

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from http.client import HTTPConnection

import pytest
from prometheus_client.parser import text_string_to_metric_families

from common import metrics_page
from common.errors import StorageError
from common.listen import Listen
from common.metrics_page import MOST_REQUESTS, MetricsServer, Page, Sample, counter, gauge

SIZE = gauge("test_size_bytes", "How large", "IT", ("of",))
SEEN = counter("test_seen_total", "How often", "coordinator")


@dataclass
class Source:
    """Two parts, one of which can fail."""

    reads: int = 0
    fails: bool = False
    seen: list[float] = field(default_factory=lambda: [3.0])

    def sizes(self) -> Iterator[Sample]:
        self.reads += 1
        yield SIZE.at(1.5, "a")
        if self.fails:
            raise StorageError("gone")
        yield SIZE.at(float("inf"), 'b"\n')

    def counts(self) -> Iterator[Sample]:
        yield SEEN.at(self.seen[0])

    def page(self, now: list[float]) -> Page:
        return Page((SIZE, SEEN), {"sizes": self.sizes, "counts": self.counts}, lambda: now[0])


def samples(text: str) -> dict[str, float]:
    """`name{labels}` to value."""
    return {
        sample.name + (str(sorted(sample.labels.values())) if sample.labels else ""): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def free_port() -> int:
    with closing(socket.socket()) as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


@contextmanager
def served(page: Page, port: int) -> Iterator[list[str]]:
    said: list[str] = []
    server = MetricsServer(page, Listen("127.0.0.1", port), said.append)
    server.start()
    try:
        wait_until(lambda: bool(said))
        yield said
    finally:
        server.stop()


@dataclass(frozen=True)
class Answer:
    status: int
    kind: str
    text: str


def get(port: int, path: str = "/metrics", method: str = "GET") -> Answer:
    with closing(HTTPConnection("127.0.0.1", port, timeout=10)) as connection:
        connection.request(method, path)
        answer = connection.getresponse()
        return Answer(answer.status, str(answer.headers["content-type"]), answer.read().decode())


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_the_page_has_every_sample_and_says_for_whom_it_is() -> None:
    port = free_port()
    with served(Source().page([0.0]), port) as said:
        answer = get(port)
        assert said == [f"metrics: http://127.0.0.1:{port}/metrics"]
    assert answer.status == 200 and answer.kind.startswith("text/plain")
    found = samples(answer.text)
    assert (found["test_size_bytes['a']"], found["test_size_bytes['b\"\\n']"], found["test_seen_total"]) == (1.5, float("inf"), 3.0)
    assert "# HELP test_size_bytes How large. For: IT." in answer.text and "# TYPE test_seen_total counter" in answer.text
    assert found["process_open_fds"] > 0


def test_a_part_that_fails_is_named_and_the_others_stand() -> None:
    port, now, source = free_port(), [0.0], Source(fails=True)
    with served(source.page(now), port):
        found = samples(get(port).text)
        assert found["wardround_metrics_part_failed['sizes']"] == 1 and found["wardround_metrics_part_failed['counts']"] == 0
        assert found["test_seen_total"] == 3.0 and "test_size_bytes['a']" not in found
        source.fails, now[0] = False, 10.0
        found = samples(get(port).text)
    assert found["wardround_metrics_part_failed['sizes']"] == 0 and found["test_size_bytes['a']"] == 1.5


def test_whoever_asks_often_gets_the_same_answer() -> None:
    port, now, source = free_port(), [0.0], Source()
    with served(source.page(now), port):
        before = source.reads
        for _ in range(20):
            get(port)
        assert source.reads - before <= 1
        now[0] += 1.0
        get(port)
        assert source.reads - before <= 2


def test_there_is_nothing_else_and_nothing_can_be_written() -> None:
    port = free_port()
    with served(Source().page([0.0]), port):
        assert get(port, "/").status == 404 and get(port, "/metrics/..").status == 404
        assert get(port, method="POST").status == 405


def test_a_port_that_is_taken_is_said_once_and_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics_page, "AGAIN_SECONDS", 0.05)
    with closing(socket.socket()) as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = int(other.getsockname()[1])
        said: list[str] = []
        server = MetricsServer(Source().page([0.0]), Listen("127.0.0.1", port), said.append)
        server.start()
        wait_until(lambda: bool(said))
        time.sleep(0.3)
        assert len(said) == 1 and f"cannot listen on 127.0.0.1:{port}" in said[0] and "everything else goes on" in said[0]
    wait_until(lambda: len(said) == 2)
    assert samples(get(port).text)["test_seen_total"] == 3.0
    server.stop()
    with pytest.raises(ConnectionRefusedError):
        get(port)


def test_a_server_that_never_got_its_port_stops_at_once() -> None:
    with closing(socket.socket()) as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        server = MetricsServer(Source().page([0.0]), Listen("127.0.0.1", int(other.getsockname()[1])), lambda text: None)
        server.start()
        before = time.monotonic()
        server.stop()
        assert time.monotonic() - before < 5


def test_an_address_that_others_reach_is_said() -> None:
    port, said = free_port(), list[str]()
    server = MetricsServer(Source().page([0.0]), Listen("0.0.0.0", port), said.append)
    server.start()
    wait_until(lambda: bool(said))
    assert samples(get(port).text)["test_seen_total"] == 3.0
    server.stop()
    assert "there is no password" in said[0]


def test_clients_that_hold_their_connections_take_a_few_threads_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics_page._Handler, "timeout", 60.0)
    port = free_port()
    with served(Source().page([0.0]), port), ExitStack() as holding:
        before = threading.active_count()
        for _ in range(MOST_REQUESTS):
            holding.enter_context(socket.create_connection(("127.0.0.1", port)))
        wait_until(lambda: threading.active_count() - before == MOST_REQUESTS)
        with pytest.raises(OSError):
            get(port)
        assert threading.active_count() - before == MOST_REQUESTS
        holding.close()
        wait_until(lambda: threading.active_count() == before)
        assert get(port).status == 200


def test_a_client_that_says_nothing_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics_page._Handler, "timeout", 0.2)
    port = free_port()
    with served(Source().page([0.0]), port), socket.create_connection(("127.0.0.1", port), timeout=20) as quiet:
        assert quiet.recv(1) == b""
