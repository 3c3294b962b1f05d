# SPDX-License-Identifier: Apache-2.0
"""Both pages of figures and all logs of a federation in which hospitals have really trained."""

import json
import time
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

import client.metrics
import server.metrics
from common.metrics_page import PART_FAILED
from tests.support.federation import HONEST, Federation

Values = dict[tuple[str, ...], float]
BUDGET_SECONDS = 300.0
PROCESS = "process_"


pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def run_id(federation: Federation) -> str:
    """A run of two rounds at two hospitals."""
    return federation.train(federation.study("watched"))


def scraped(federation: Federation, name: str = "coordinator") -> Values:
    """Name without `wardround_`, then the labels' values in the order of their names."""
    return {
        (sample.name.removeprefix("wardround_"), *(value for _, value in sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(federation.scrape(name))
        for sample in family.samples
    }


def names(values: Values) -> set[str]:
    return {key[0] for key in values if not key[0].startswith(PROCESS)}


def test_the_coordinator_s_figures(federation: Federation, run_id: str) -> None:
    found = scraped(federation)
    assert found["server_ready",] == 1 and {value for key, value in found.items() if key[0] == "metrics_part_failed"} == {0}
    assert {key[1] for key in found if key[0] == "server_child_up"} == {"superlink", "executor", "gateway"}
    assert found["server_runs", "finished"] >= 1
    for name in HONEST:
        assert found["server_site_online", name] == 1
        assert 360 < found["server_certificate_days_left", "site", name] < 366
        sizes = [row for row in federation.store_rows(run_id, "SELECT * FROM details") if row["site"] == name]
        assert found["server_site_bytes_total", "from_site", name] >= sum(row["bytes_up"] for row in sizes) > 0
        assert found["server_site_bytes_total", "to_site", name] >= sum(row["bytes_down"] for row in sizes) > 0
    assert found["server_phase_seconds_total", "training"] > 0 and found["server_phase_seconds_total", "aggregation"] > 0
    assert names(found) <= {metric.name.removeprefix("wardround_") for metric in (*server.metrics.METRICS, PART_FAILED)}


def test_a_hospital_s_figures(federation: Federation, run_id: str) -> None:
    alpha = HONEST[0]
    found = scraped(federation, alpha)
    assert {value for key, value in found.items() if key[0] == "metrics_part_failed"} == {0}
    assert sum(value for key, value in found.items() if key[0] == "site_stage") == 1
    assert found["site_egress_messages_total", "update"] == sum(line["kind"] == "update" for line in federation.exits(alpha)) >= 2
    assert found["site_egress_bytes_total", "update"] == sum(
        line["size_bytes"] for line in federation.exits(alpha) if line["kind"] == "update"
    )
    assert found["site_ledger_rows",] == len(federation.ledger_rows(alpha))
    assert 0 < found["site_phase_seconds_total", "train"] <= found["site_phase_seconds_total", "answer"]
    assert found["site_seconds_since_contact",] < 60 and found["site_disk_free_bytes",] > 0
    assert names(found) <= {metric.name.removeprefix("wardround_") for metric in (*client.metrics.METRICS, PART_FAILED)}


def test_epsilon_is_what_the_budget_command_says(federation: Federation, run_id: str) -> None:
    alpha = HONEST[0]
    deadline = time.monotonic() + BUDGET_SECONDS
    rows = len(federation.ledger_rows(alpha))
    while scraped(federation, alpha).get(("site_epsilon_row",)) != rows:
        assert time.monotonic() < deadline, "the figures of ε did not come"
        time.sleep(1)
    found = scraped(federation, alpha)
    accounts = federation.at(federation.hospitals[alpha], "budget", "--json").json["accounts"]
    assert accounts
    for account in accounts:
        assert found["site_epsilon_spent", account["account"][:8], account["line"]] == pytest.approx(account["epsilon"])
        assert found["site_epsilon_left", account["account"][:8], account["line"]] == pytest.approx(account["left"])


def test_every_line_of_every_log_is_json(federation: Federation, run_id: str) -> None:
    files = [*(federation.coordinator / "logs").iterdir(), *(federation.hospitals[name].home / "logs" / "daemon.log" for name in HONEST)]
    kinds = {file.name.split("-")[0].removesuffix(".log") for file in files}
    assert kinds >= {"up", "superlink.out", "executor.out", "gateway", "access", "run", "daemon"}
    for file in files:
        for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(keepends=True), 1):
            assert not line.endswith("\n") or isinstance(json.loads(line), dict), f"{file}: line {number}"


def test_run_round_and_site_are_in_the_lines_that_know_them(federation: Federation, run_id: str) -> None:
    log = federation.coordinator / "logs" / f"run-{federation.flower_run(run_id)}.log"
    lines = objects(log)
    assert {line["run"] for line in lines if "event" in line} == {run_id}
    replies = {(line["round"], line["site"]) for line in lines if line.get("event") == "site_replied"}
    assert replies == {(number, name) for number in (1, 2) for name in HONEST}
    answered = [
        line for line in objects(federation.hospitals[HONEST[0]].home / "logs" / "daemon.log") if line["event"] == "message answered"
    ]
    mine = [line for line in answered if run_id.startswith(line["run"])]
    assert {line["round"] for line in mine} >= {1, 2} and {line["site"] for line in mine} == {HONEST[0]}
    access = objects(federation.coordinator / "logs" / "access.log")
    assert {line["site"] for line in access if "site" in line} >= set(HONEST)


def objects(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
