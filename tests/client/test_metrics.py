# SPDX-License-Identifier: Apache-2.0
"""The site's page from a real folder, and what must never be on it."""

import json
import math
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client import CollectorRegistry, generate_latest

from client import metrics_budget
from client.commands.ledger import show
from client.daemon_log import DaemonLog
from client.egress import Incoming, open_chain, release
from client.egress_chain import EgressLine
from client.journal import RoundEntry, append_entry
from client.ledger.book import Ledger
from client.metrics import METRICS, SiteMetrics
from client.metrics_budget import AccountFigures, Budget, BudgetFigures
from client.site import open_ledger
from client.site_config import SiteConfig
from client.site_home import SiteHome
from client.status import Stage, StatusBoard
from common.errors import InputError
from common.metrics_page import Sample
from common.privacy.accountant import epsilon_pld, event_to_json, gaussian, unprotected
from common.privacy.charge_book import ChargeKey, Line
from common.protocol import Refusal, RefusalCode
from tests.client.egress_site import make_home
from tests.client.enrolled import NOW, certified, new_authority, prepared

Values = dict[tuple[str, ...], float]
DELTA, CAP = 1e-5, 3.0
PATIENTS = {Line.TRAINING: ["secret-patient-1", "secret-patient-2"], Line.HELD_OUT: ["secret-patient-3"]}
RUN = "ab12cd34" + "0" * 24


@pytest.fixture
def home(tmp_path: Path) -> SiteHome:
    return make_home(tmp_path / "north")


def values(samples: Any) -> Values:
    found: list[Sample] = list(samples)
    return {(sample.metric.name.removeprefix("wardround_site_"), *sample.labels): sample.value for sample in found}


def charged(book: Ledger, rounds: int, event: str = "", line: Line = Line.TRAINING) -> str:
    account = book.register(PATIENTS, DELTA)
    done = len(book.charges())
    for number in range(done, done + rounds):
        book.reserve(ChargeKey(account, "study", "run", number, "0" * 64, line), event or event_to_json(gaussian(5.0)), 1)
    return account


def test_what_the_daemon_does(home: SiteHome) -> None:
    now = [1000.0]
    board = StatusBoard(home, "1", lambda: now[0])
    metrics = SiteMetrics(home, lambda: board.heard_at, lambda: now[0])
    now[0] = 1007.0
    found = values(metrics.daemon())
    assert found[("stage", "starting")] == 1 and sum(found["stage", stage.name.lower()] for stage in Stage) == 1
    assert (found[("seconds_since_contact",)], found[("paused",)]) == (7.0, 0)
    board.heard()
    board.take(b"header")
    board.about("a" * 64, RUN, 4)
    home.paused.touch()
    found = values(metrics.daemon())
    assert (found[("stage", "working")], found[("round", RUN[:8])], found[("seconds_since_contact",)], found[("paused",)]) == (1, 4, 0.0, 1)
    board.finish(answered=True)
    assert not [key for key in values(metrics.daemon()) if key[0] == "round"]


def test_seconds_by_phase_since_the_start(home: SiteHome) -> None:
    entry = RoundEntry(run_id=RUN, round=1, steps=2, loss=0.731, non_finite=0, epsilon=None, seconds=9.0, device="cpu")
    append_entry(home.journal, entry)
    metrics = SiteMetrics(home, lambda: 0.0)
    assert set(values(metrics.phases()).values()) == {0.0}
    append_entry(home.journal, entry.model_copy(update={"seconds": 4.5}))
    log = DaemonLog(home.logs)
    log.write("message answered", {"answer_seconds": 6.0, "release_seconds": 0.5, "send_seconds": 1.25})
    log.write("online", {"node": 3})
    log.close()
    expected = {"train": 4.5, "answer": 6.0, "release": 0.5, "send": 1.25}
    assert values(metrics.phases()) == {("phase_seconds_total", phase): seconds for phase, seconds in expected.items()}


def test_what_left_by_kind_and_code(home: SiteHome) -> None:
    metrics = SiteMetrics(home, lambda: 0.0)
    assert values(metrics.egress()) == {}
    for code in (RefusalCode.PAUSED, RefusalCode.PAUSED, RefusalCode.LEDGER_BEHIND):
        release(home, Incoming.unread(), Refusal(code, "").to_records())
    sizes = [line.size_bytes for line in open_chain(home).lines()]
    open_chain(home).append(lambda end: EgressLine(number=end.number + 1, time=1.0, kind="note", note="x", previous=end.hash))
    found = values(metrics.egress())
    assert found == {
        ("egress_messages_total", "refusal"): 3,
        ("egress_bytes_total", "refusal"): sum(sizes),
        ("refusals_total", "PAUSED"): 2,
        ("refusals_total", "LEDGER_BEHIND"): 1,
    }
    assert values(metrics.egress()) == found


@pytest.mark.slow
def test_epsilon_is_the_exact_one_of_both_lines(home: SiteHome) -> None:
    book = open_ledger(home.folder)
    account = charged(book, 3)
    metrics = SiteMetrics(home, lambda: 0.0)
    before = time.monotonic()
    assert values(metrics.ledger()) == {("ledger_rows",): 4}
    assert time.monotonic() - before < 1.0, "a scrape never waits"
    metrics.budget.wait(200)
    spent = epsilon_pld([gaussian(5.0)] * 3, DELTA)
    assert values(metrics.ledger()) == {
        ("ledger_rows",): 4,
        ("epsilon_row",): 4,
        ("ledger_behind",): 0,
        ("epsilon_spent", account[:8], "training"): pytest.approx(spent),
        ("epsilon_left", account[:8], "training"): pytest.approx(CAP - spent),
        ("epsilon_cap", account[:8], "training"): CAP,
        ("epsilon_spent", account[:8], "held-out"): 0.0,
        ("epsilon_left", account[:8], "held-out"): CAP,
        ("epsilon_cap", account[:8], "held-out"): CAP,
    }


def shown(home: SiteHome) -> dict[str, Any]:
    """What `wardround-client ledger show --json` prints, computed here."""
    return json.loads(json.dumps(show(home.folder)))


def test_the_figures_are_those_of_ledger_show_without_the_patients(home: SiteHome) -> None:
    account = charged(open_ledger(home.folder), 3)
    spent = epsilon_pld([gaussian(5.0)] * 3, DELTA)
    found = BudgetFigures.of(shown(home))
    assert (found.row, found.behind) == (4, False)
    assert found.accounts == (
        AccountFigures(account[:8], "training", pytest.approx(spent), CAP, pytest.approx(CAP - spent)),
        AccountFigures(account[:8], "held-out", 0.0, CAP, CAP),
    )


def test_what_left_without_protection_is_infinite_and_leaves_nothing(home: SiteHome) -> None:
    charged(open_ledger(home.folder), 1, event_to_json(unprotected()))
    training = BudgetFigures.of(shown(home)).accounts[0]
    assert (training.epsilon, training.left) == (math.inf, 0.0)


@dataclass
class Counted:
    """A budget whose command prints a file and notes each call."""

    folder: Path
    now: list[float] = field(default_factory=lambda: [0.0])

    def __post_init__(self) -> None:
        script = f"echo x >> {self.folder / 'calls'}; cat {self.folder / 'answer'}"
        self.budget = Budget(self.folder, lambda: self.now[0], ("/bin/sh", "-c", script))

    def answer(self, row: int) -> None:
        (self.folder / "answer").write_text(json.dumps({"rows": row, "behind": False, "accounts": []}))

    def want(self, row: int) -> int | None:
        """The row of the figures after whatever `want` began has ended."""
        self.budget.want(row)
        self.budget.wait(60)
        return None if self.budget.figures is None else self.budget.figures.row

    @property
    def calls(self) -> int:
        path = self.folder / "calls"
        return len(path.read_text().splitlines()) if path.exists() else 0


def test_it_is_computed_when_the_ledger_has_gone_on_and_at_most_once_in_a_while(tmp_path: Path) -> None:
    counted = Counted(tmp_path)
    counted.answer(2)
    assert (counted.want(2), counted.calls) == (2, 1)
    counted.now[0] = 10 * metrics_budget.PAUSE_SECONDS
    assert (counted.want(2), counted.calls) == (2, 1), "nothing new, so nothing is computed"
    counted.answer(3)
    assert (counted.want(3), counted.calls) == (3, 2)
    counted.now[0] += metrics_budget.PAUSE_SECONDS - 1
    counted.answer(4)
    assert (counted.want(4), counted.calls) == (3, 2), "too soon"
    counted.now[0] += 2
    assert (counted.want(4), counted.calls) == (4, 3)


@pytest.mark.parametrize("answer", ["", "no json", "[]", '{"rows": 1}'])
def test_when_there_is_no_answer_the_last_figures_stay(tmp_path: Path, answer: str) -> None:
    counted = Counted(tmp_path)
    counted.answer(2)
    assert counted.want(2) == 2
    counted.now[0] = 10 * metrics_budget.PAUSE_SECONDS
    (tmp_path / "answer").write_text(answer)
    assert (counted.want(9), counted.calls) == (2, 2)


def test_a_command_that_takes_too_long_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics_budget, "TIMEOUT_SECONDS", 0.2)
    budget = Budget(tmp_path, command=("/bin/sleep", "60"))
    before = time.monotonic()
    budget.want(1)
    budget.wait(60)
    assert time.monotonic() - before < 30 and budget.figures is None


def test_the_command_ends_with_the_daemon(tmp_path: Path) -> None:
    budget = Budget(tmp_path, command=("/bin/sleep", "60"))
    budget.want(1)
    deadline = time.monotonic() + 20
    while budget._process is None:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process = budget._process
    budget.stop()
    budget.wait(60)
    assert process.returncode is not None


def test_before_there_is_a_ledger(home: SiteHome) -> None:
    assert values(SiteMetrics(home, lambda: 0.0).ledger()) == {("ledger_rows",): 0}


def test_days_left_of_the_certificates(tmp_path: Path) -> None:
    authority = new_authority()
    home = prepared(tmp_path, authority, "https://localhost:1")
    metrics = SiteMetrics(home, lambda: 0.0, lambda: NOW)
    assert ("certificate_days_left", "own") not in values(metrics.certificates())
    certified(home, authority, days=90)
    found = values(metrics.certificates())
    assert found[("certificate_days_left", "own")] == pytest.approx(90, abs=0.01)
    assert found[("certificate_days_left", "authority")] == pytest.approx(3650, abs=0.01)


def test_disk_and_cards(home: SiteHome, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tool = tmp_path / "nvidia-smi"
    tool.write_text('#!/bin/sh\necho "1, 10, 20"\n')
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    found = values(SiteMetrics(home, lambda: 0.0).machine())
    assert found[("disk_free_bytes",)] > 0
    assert (found[("gpu_memory_used_bytes", "1")], found[("gpu_memory_total_bytes", "1")]) == (10 << 20, 20 << 20)


def test_nothing_about_patients_is_on_the_page(home: SiteHome) -> None:
    """Neither ids nor pseudonyms, nor how many there are, nor a loss, nor a path; the account by eight random letters."""
    book = open_ledger(home.folder)
    account = charged(book, 1)
    append_entry(home.journal, RoundEntry(run_id=RUN, round=1, steps=2, loss=0.731, non_finite=0, epsilon=8.25, seconds=9.0, device="cpu"))
    metrics = SiteMetrics(home, lambda: 0.0)
    metrics.budget.figures = BudgetFigures.of(shown(home))
    registry = CollectorRegistry()
    registry.register(metrics.page())
    text = generate_latest(registry).decode()
    assert f'account="{account[:8]}"' in text
    pseudonyms = [each.hex() for line in book.fold().accounts._owners for each in [line]]
    for secret in ("secret-patient", str(home.folder), "0.731", "8.25", account[:9], *pseudonyms):
        assert secret not in text
    assert "patients" not in {metric.name for metric in METRICS} and not [metric for metric in METRICS if "patient" in metric.name]


def test_every_metric_is_named_well() -> None:
    names = [metric.name for metric in METRICS]
    assert len(set(names)) == len(names)
    for metric in METRICS:
        assert metric.name.startswith("wardround_") and metric.reader
        assert metric.name.endswith("_total") is (metric.kind == "counter")


@pytest.mark.parametrize("text", ["off", "127.0.0.1:9465", "'[::1]:1'"])
def test_where_it_is_served_is_a_line_of_site_yaml(home: SiteHome, text: str) -> None:
    plain = home.config.read_text().replace("metrics: 127.0.0.1:9465", f"metrics: {text}")
    assert SiteConfig.parse(plain, "site.yaml").metrics == yaml.safe_load(f"[{text!r}]")[0].strip("'")


def test_what_is_no_address_is_refused_with_its_line(home: SiteHome) -> None:
    plain = home.config.read_text().replace("metrics: 127.0.0.1:9465", "metrics: 9465")
    with pytest.raises(InputError, match=r"site.yaml:\d+: metrics: "):
        SiteConfig.parse(plain, "site.yaml")


def test_the_daemon_s_log_names_its_site(tmp_path: Path) -> None:
    log = DaemonLog(tmp_path, site="north")
    log.write("online", {"node": 3})
    log.close()
    assert json.loads((tmp_path / "daemon.log").read_text())["site"] == "north"
