# SPDX-License-Identifier: Apache-2.0
"""The page about monitoring and the alert rules against the figures that there are; and the search for patients, which has to find some."""

import re
import shutil
import sqlite3
import subprocess
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

import client.metrics
import server.metrics
from common.metrics_page import PART_FAILED, Metric
from simulations.loopback import Hospital, Loopback
from tests.support.leaks import leaks

PROJECT = Path(__file__).resolve().parents[2]
ALERTS = PROJECT / "deploy" / "alerts.yml"
PAGE = PROJECT / "docs" / "monitoring.md"
SIDES = {"The coordinator": (*server.metrics.METRICS, PART_FAILED), "A hospital": (*client.metrics.METRICS, PART_FAILED)}
METRICS = {metric.name: metric for metrics in SIDES.values() for metric in metrics}
SELECTOR = re.compile(r"(wardround_[a-z_]+)(?:\{([^}]*)\})?")
GROUPING = re.compile(r"\b(?:by|on) \(([^)]*)\)")


def rules() -> list[dict[str, Any]]:
    return [rule for group in yaml.safe_load(ALERTS.read_text(encoding="utf-8"))["groups"] for rule in group["rules"]]


def labels_of(rule: dict[str, Any]) -> set[str]:
    """Labels that a result of the rule may have."""
    named = {name for name, _ in SELECTOR.findall(rule["expr"])}
    grouped = [{one.strip() for one in labels.split(",")} for labels in re.findall(r"\bby \(([^)]*)\)", rule["expr"])]
    return grouped[0] if grouped else set.union(*(set(METRICS[name].labels) for name in named))


# ---- the page


@pytest.mark.parametrize("side", SIDES)
def test_the_page_has_one_row_for_each_figure_and_says_for_whom(side: str) -> None:
    def row(metric: Metric) -> str:
        labels = ", ".join(f"`{label}`" for label in metric.labels)
        return f"| `{metric.name}` | {metric.kind} | {labels} | {metric.text} | {metric.reader} |"

    section = PAGE.read_text(encoding="utf-8").split(f"### {side}\n")[1].split("\n#")[0]
    assert [line for line in section.splitlines() if line.startswith("| `")] == [row(metric) for metric in SIDES[side]]


# ---- alerts


def test_there_are_rules_for_what_matters_most() -> None:
    named = {name for rule in rules() for name, _ in SELECTOR.findall(rule["expr"])}
    assert named >= {
        "wardround_server_certificate_days_left",
        "wardround_server_site_suspended",
        "wardround_server_run_seconds_since_event",
        "wardround_site_epsilon_spent",
        "wardround_site_ledger_behind",
        "wardround_site_seconds_since_contact",
        "wardround_metrics_part_failed",
    }


@pytest.mark.parametrize("rule", rules(), ids=lambda rule: str(rule["alert"]))
def test_a_rule_uses_figures_and_labels_that_exist(rule: dict[str, Any]) -> None:
    found = SELECTOR.findall(rule["expr"])
    assert found
    for name, selected in found:
        assert name in METRICS
        assert set(re.findall(r"([a-z_]+)\s*=~?", selected)) <= set(METRICS[name].labels)
        is_counted = re.search(rf"(increase|rate)\({name}", rule["expr"]) is not None
        assert is_counted is (METRICS[name].kind == "counter"), f"{name} is a {METRICS[name].kind}"
    for grouping in GROUPING.findall(rule["expr"]):
        assert {one.strip() for one in grouping.split(",")} - {""} <= set.union(*(set(METRICS[name].labels) for name, _ in found))
    texts = " ".join(rule["annotations"].values())
    assert set(re.findall(r"\$labels\.([a-z_]+)", texts)) <= labels_of(rule)
    assert rule["labels"]["severity"] in ("warning", "critical") and set(rule["annotations"]) == {"summary", "description"}


def test_names_of_rules_are_unique() -> None:
    names = [rule["alert"] for rule in rules()]
    assert len(set(names)) == len(names)


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed")
def test_prometheus_own_tool_takes_the_rules() -> None:
    done = subprocess.run(["promtool", "check", "rules", str(ALERTS)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


# ---- the search for patients


@pytest.fixture
def left_behind(tmp_path: Path) -> tuple[Loopback, Hospital]:
    """What a federation leaves, as far as the search looks at it, with nothing of a patient in it."""
    federation = Loopback(tmp_path, ports=(1, 2))
    hospital = federation.hospital("alpha", 50)
    hospital.data.parent.mkdir()
    ids = np.array([f"patient-{number:04d}" for number in range(30)])
    np.savez(hospital.data, images=np.random.default_rng(1).integers(0, 255, (30, 16, 16), np.uint8), labels=np.zeros(30), patient_id=ids)
    for folder in (hospital.home / "logs", hospital.home / "cache" / "datasets" / "x", federation.coordinator):
        folder.mkdir(parents=True)
    (hospital.home / "site.yaml").write_text(f"data: {hospital.data}\n")
    (hospital.home / "logs" / "daemon.log").write_text('{"event": "started", "patient": "count"}\n')
    (hospital.home / "cache" / "datasets" / "x" / "patient_ids.json").write_text('["patient-0003"]')
    (federation.coordinator / "state.sqlite").write_bytes(b"")
    return federation, hospital


def test_nothing_is_found_where_nothing_is(left_behind: tuple[Loopback, Hospital]) -> None:
    federation, hospital = left_behind
    assert leaks(federation, [hospital]) == []


@pytest.mark.parametrize(
    "place", ["hospitals/alpha/logs/daemon.log", "hospitals/alpha/site.log", "coordinator/x.out.log", "output/start.log"]
)
def test_an_id_or_a_path_in_a_log_is_found(left_behind: tuple[Loopback, Hospital], place: str) -> None:
    federation, hospital = left_behind
    path = federation.folder / place
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"bad value for patient-0029 in {hospital.data}")
    assert leaks(federation, [hospital]) == [f"{place}: holds a patient id of alpha", f"{place}: holds where its data lies of alpha"]


def test_an_id_in_a_database_is_found(left_behind: tuple[Loopback, Hospital]) -> None:
    federation, hospital = left_behind
    with closing(sqlite3.connect(hospital.home / "ledger.sqlite")) as database:
        database.execute("CREATE TABLE rows (content TEXT)")
        database.execute("INSERT INTO rows VALUES (?)", ("of patient-0000",))
        database.commit()
    assert leaks(federation, [hospital]) == ["hospitals/alpha/ledger.sqlite: holds a patient id of alpha"]


@pytest.mark.parametrize("kind", [np.uint8, np.float32])
def test_pixels_in_any_file_are_found(left_behind: tuple[Loopback, Hospital], kind: type[np.generic]) -> None:
    federation, hospital = left_behind
    with np.load(hospital.data) as stored:
        image = stored["images"][2]
    np.save(federation.coordinator / "dump.npy", image if kind is np.uint8 else image.astype(np.float32) / np.float32(255))
    assert leaks(federation, [hospital]) == ["coordinator/dump.npy: holds pixels of alpha"]


def test_a_copy_of_the_policy_elsewhere_is_found(left_behind: tuple[Loopback, Hospital]) -> None:
    federation, hospital = left_behind
    shutil.copy(hospital.home / "site.yaml", federation.coordinator / "site.yaml")
    assert leaks(federation, [hospital]) == ["coordinator/site.yaml: holds where its data lies of alpha"]


def test_a_search_that_looks_at_nothing_fails(tmp_path: Path, left_behind: tuple[Loopback, Hospital]) -> None:
    federation, hospital = left_behind
    shutil.rmtree(federation.coordinator)
    with pytest.raises(AssertionError):
        leaks(federation, [hospital])
