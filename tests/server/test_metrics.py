# SPDX-License-Identifier: Apache-2.0
"""The coordinator's page from a real folder: authority, enrolled sites, run stores, events, access log."""

import json
import time
from contextlib import closing
from pathlib import Path

import pytest

from common.crypto.site_keys import SiteKeys
from common.events import EventLog
from common.metrics_page import Sample
from server.gateway.access_log import AccessLog
from server.gateway.denied import Code
from server.home import ServerHome, ServerSettings
from server.metrics import METRICS, ServerMetrics
from server.run_registry import RunRegistry
from server.runs import ReplyDetail, RunStore
from server.state import State
from server.supervisor import UP_FILE, held
from tests.server.coordinator import DAY, NOW, URL, founded, joined, registry
from tests.support.studies import small

STUDY = small(**{"federation.rounds": 7, "federation.round_timeout_seconds": 60.0})
RUN = "ab12cd34" + "0" * 24
Values = dict[tuple[str, ...], float]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> ServerHome:
    folder = tmp_path_factory.mktemp("metrics")
    home = founded(folder / "coordinator")
    for name in ("north", "south"):
        joined(home, name, SiteKeys.ensure(folder / name))
    return home


@pytest.fixture
def home(folder: ServerHome) -> ServerHome:
    return folder


def values(samples: list[Sample]) -> Values:
    return {(sample.metric.name.removeprefix("wardround_server_"), *sample.labels): sample.value for sample in samples}


def read(home: ServerHome, part: str, now: float = NOW) -> Values:
    return values(list(getattr(ServerMetrics(home, lambda: now), part)()))


def started(home: ServerHome, run_id: str, name: str = "small") -> None:
    """A run of a study, as the offer and the first Flower run leave it."""
    study = STUDY.with_changes({"name": name})
    row = (run_id, study.id, study.canonical_json, "{}", json.dumps(["north", "south"]), NOW)
    with State(home.state).writing() as database:
        database.execute("INSERT INTO offer (run_id, study_id, study, start, sites, created) VALUES (?, ?, ?, ?, ?, ?)", row)
    RunRegistry(State(home.state)).record(int(run_id[:8], 16), run_id, study.id, NOW)
    home.run(run_id).mkdir(parents=True)


def detail(site: str, outcome: str, down: int, up: int) -> ReplyDetail:
    return ReplyDetail("train", site, outcome, 1.0, "", down, up)


def test_before_anything_ran(home: ServerHome) -> None:
    up = read(home, "up")
    assert up[("ready",)] == 0 and up[("disk_free_bytes",)] > 0 and not [key for key in up if key[0] == "child_up"]


def test_the_processes_of_up(home: ServerHome) -> None:
    children = {
        "superlink": {"pid": 5, "restarts": 0, "since": 1.0},
        "gateway": {"pid": None, "restarts": 3, "since": None},
    }
    facts = {"pid": 1, "state": "starting", "started": 1.0, "url": URL, "children": children}
    with held(home):
        (home.folder / UP_FILE).write_text(json.dumps(facts))
        found = read(home, "up")
        (home.folder / UP_FILE).write_text(json.dumps({**facts, "state": "ready"}))
        assert read(home, "up")[("ready",)] == 1
    assert found[("ready",)] == 0
    assert (found[("child_up", "superlink")], found[("child_up", "gateway")]) == (1, 0)
    assert (found[("child_restarts_total", "superlink")], found[("child_restarts_total", "gateway")]) == (0, 3)


def test_certificates(home: ServerHome) -> None:
    found = read(home, "certificates", NOW + 65 * DAY)
    assert found[("certificate_days_left", "server", "")] == pytest.approx(300)
    assert found[("certificate_days_left", "authority", "")] == pytest.approx(3585)
    assert found[("certificate_days_left", "site", "north")] == pytest.approx(300) == found[("certificate_days_left", "site", "south")]


def test_a_revoked_site_s_certificate_counts_no_more(tmp_path: Path) -> None:
    home = founded(tmp_path / "coordinator")
    joined(home, "north", SiteKeys.ensure(tmp_path / "north"))
    with State(home.state).writing() as database:
        database.execute("INSERT INTO site_certificate VALUES ('earlier', 'north', ?, 1)", (NOW + 800 * DAY,))
    assert read(home, "certificates")[("certificate_days_left", "site", "north")] == pytest.approx(365)
    registry(home).revoke("north", NOW)
    assert ("certificate_days_left", "site", "north") not in read(home, "certificates")
    assert {key: value for key, value in read(home, "sites").items() if value} == {("sites", "revoked"): 1}


def test_no_site_is_online_before_there_is_a_superlink(home: ServerHome) -> None:
    assert read(home, "sites") == {
        ("sites", "requested"): 0,
        ("sites", "approved"): 2,
        ("sites", "revoked"): 0,
        ("site_online", "north"): 0,
        ("site_online", "south"): 0,
    }


def test_a_run_that_goes_on(home: ServerHome) -> None:
    started(home, RUN)
    with closing(EventLog(home.run(RUN) / "events.jsonl")) as events:
        events.emit("run_started", resumed_from=0)
        events.emit("round_started", round=1, sites=["north", "south"])
        events.emit("site_refused", round=1, site="south", code="PAUSED", reason="")
        events.emit("round_done", round=1, updates=1, seconds=2.5)
    store = RunStore(home.run(RUN) / "rounds.sqlite")
    answers = [detail("north", "update", 100, 70), detail("south", "PAUSED", 100, 0)]
    store.record_round(RUN, 1, seconds=2.5, update_norm=1.0, outcomes={"north": ("update", 1.0)}, details=answers)
    store.record_round(RUN, 2, seconds=2.5, update_norm=1.0, outcomes={"north": ("update", 1.0)}, details=answers[:1])
    for number in (1, 2, 3):
        store.strike(RUN, number, "south", "NaN")
    now = time.time() + 50
    found = read(home, "runs", now)
    labels = (RUN[:8], "small")
    assert (found[("run_round", *labels)], found[("run_rounds", *labels)], found[("run_last_round_seconds", *labels)]) == (1, 7, 2.5)
    assert found[("run_seconds_since_event", *labels)] == pytest.approx(50, abs=5)
    assert found[("run_round_timeout_seconds", *labels)] == 60 and found[("site_suspended", *labels, "south")] == 1
    assert (found[("runs", "active")], found[("runs", "finished")]) == (1, 0)
    assert found[("refusals_total", "south", "PAUSED")] == 1
    assert (found[("site_bytes_total", "north", "to_site")], found[("site_bytes_total", "north", "from_site")]) == (200, 140)
    assert (found[("site_bytes_total", "south", "to_site")], found[("site_bytes_total", "south", "from_site")]) == (100, 0)
    assert found[("phase_seconds_total", "training")] >= 0


def test_runs_that_are_over_count_in_the_totals_only(tmp_path: Path) -> None:
    home = founded(tmp_path / "coordinator")
    metrics = ServerMetrics(home)
    for number, how in enumerate(("finished", "failed", "stopped", None)):
        run_id = f"{number:08x}" + "f" * 24
        started(home, run_id, f"study-{number}")
        with closing(EventLog(home.run(run_id) / "events.jsonl")) as events:
            events.emit("run_started", resumed_from=0)
            events.emit("site_refused", round=0, site="north", code="NO_REPLY", reason="")
            if how is not None:
                events.emit("run_ended", how=how, reason="")
    found = values(list(metrics.runs()))
    assert [found[("runs", state)] for state in ("active", "finished", "failed", "stopped")] == [1, 1, 1, 1]
    assert [key[1:] for key in found if key[0] == "run_round"] == [("00000003", "study-3")]
    assert found[("refusals_total", "north", "NO_REPLY")] == 4
    with State(home.state).writing() as database:
        database.execute("UPDATE offer SET withdrawn = 1")
    assert values(list(metrics.runs()))[("runs", "stopped")] == 2


def test_bytes_are_summed_anew_only_when_the_store_has_changed(home: ServerHome, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    traffic = RunStore.traffic
    monkeypatch.setattr(RunStore, "traffic", lambda store, run_id: asked.append(run_id) or traffic(store, run_id))
    metrics = ServerMetrics(home)
    before = values(list(metrics.runs()))
    assert values(list(metrics.runs()))[("site_bytes_total", "north", "to_site")] == before[("site_bytes_total", "north", "to_site")]
    assert asked == [RUN]
    RunStore(home.run(RUN) / "rounds.sqlite").record_details(RUN, 3, [detail("north", "update", 1000, 0)])
    assert values(list(metrics.runs()))[("site_bytes_total", "north", "to_site")] == before[("site_bytes_total", "north", "to_site")] + 1000
    assert asked == [RUN, RUN]


def test_what_the_gateway_refused_since_it_began_to_look(home: ServerHome) -> None:
    now = [NOW]
    log = AccessLog(home.logs, lambda: now[0])
    log.write({"code": Code.NO_CERTIFICATE, "address": "1.2.3.4"})
    metrics = ServerMetrics(home)
    assert values(list(metrics.gateway())) == {}
    log.write({"code": Code.NO_CERTIFICATE, "address": "1.2.3.4"})
    log.write({"site": "north", "path": "/v1/fleet/pull-messages", "routine": 1})
    for _ in range(5):
        log.write({"site": "north", "code": Code.TOO_MANY_REQUESTS})
    now[0] += 120
    log.write({"site": "north", "path": "/health", "status": 200})
    log.close()
    assert values(list(metrics.gateway())) == {
        ("gateway_refusals_total", "NO_CERTIFICATE"): 1,
        ("gateway_refusals_total", "TOO_MANY_REQUESTS"): 5,
    }


def test_a_damaged_event_file_costs_its_part_and_nothing_else(tmp_path: Path) -> None:
    home = founded(tmp_path / "coordinator")
    started(home, RUN)
    (home.run(RUN) / "events.jsonl").write_text('{"event": "round_done", "time": 1.0}\n')
    text = {family.name: family for family in ServerMetrics(home).page().collect()}
    failed = {sample.labels["part"]: sample.value for sample in text["wardround_metrics_part_failed"].samples}
    assert failed == {"up": 0, "certificates": 0, "sites": 0, "runs": 1, "gateway": 0}
    assert "wardround_server_runs" not in text and "wardround_server_sites" in text


def test_every_metric_is_named_well() -> None:
    names = [metric.name for metric in METRICS]
    assert len(set(names)) == len(names)
    for metric in METRICS:
        assert metric.name.startswith("wardround_") and metric.reader
        assert metric.name.endswith("_total") is (metric.kind == "counter")


@pytest.mark.parametrize(("text", "is_good"), [("off", True), ("127.0.0.1:1", True), ("9464", False), ("", False)])
def test_where_it_is_served_is_checked_when_the_settings_are_read(home: ServerHome, text: str, is_good: bool) -> None:
    facts = {**home.settings.model_dump(), "metrics_listen": text}
    if is_good:
        assert ServerSettings.model_validate(facts).metrics_listen == text
    else:
        with pytest.raises(ValueError, match="must be HOST:PORT"):
            ServerSettings.model_validate(facts)


def test_settings_of_before_are_served_on_loopback(home: ServerHome) -> None:
    facts = {name: value for name, value in home.settings.model_dump().items() if name != "metrics_listen"}
    assert ServerSettings.model_validate(facts).metrics_listen == "127.0.0.1:9464"
