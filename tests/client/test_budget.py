# SPDX-License-Identifier: Apache-2.0
"""Who may still spend: the account's δ, the site's cap, the two lines, and what one unprotected release does for good."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

import client.charging as charging
from client.charging import check_budget
from client.ledger.book import Ledger
from client.ledger.receipts import ReceiptFile
from client.ledger.rows import EarmarkEntry
from client.site import Site, open_ledger
from common.crypto.secrets import Secret
from common.errors import RefusedError, StorageError
from common.privacy import calibration
from common.privacy.accountant import UNPROTECTED_JSON, epsilon_pld, event_to_json, poisson_gaussian
from common.privacy.calibration import plan_privacy
from common.privacy.charges import ChargeKey, Line
from common.study import PatientPrivacy, Study
from tests.support.studies import PRIVATE, small

History = Callable[..., tuple[Ledger, str]]
ONE_RUN = poisson_gaussian(0.15, 2.321, 100)  # ε = 3 at δ = 1e-5


@pytest.fixture
def private() -> Study:
    return small(PRIVATE)


@pytest.fixture
def open_site(make_site: Callable[..., Path], private: Study) -> Callable[..., Site]:
    def make(**settings: object) -> Site:
        folder = make_site(private)
        path = folder / "site.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **settings}))
        return Site.open(folder)

    return make


def key(account: str, run: str = "run", number: int = 1, line: Line = Line.TRAINING) -> ChargeKey:
    return ChargeKey(account, "study", run, number, "0" * 64, line)


@pytest.fixture
def history() -> Callable[..., tuple[Ledger, str]]:
    """A ledger in which so many more earlier runs are charged."""
    count = iter(range(1000))

    def make(site: Site, runs: int, event: str | None = None, line: Line = Line.TRAINING) -> tuple[Ledger, str]:
        book = open_ledger(site.folder)
        account = book.register(site.patient_ids(), site.settings.delta)
        for _ in range(runs):
            book.reserve(key(account, f"earlier {next(count)}", line=line), event or event_to_json(ONE_RUN), 100)
        return book, account

    return make


def ask(site: Site, book: Ledger, account: str, delta: float = 1e-5, line: Line = Line.TRAINING) -> None:
    check_budget(site, book, key(account, line=line), [ONE_RUN], epsilon=3.01, delta=delta)


def test_without_a_cap_the_studys_epsilon_is_the_cap(open_site: Callable[..., Site], history: History) -> None:
    site = open_site()
    ask(site, *history(site, 0))
    with pytest.raises(RefusedError, match="BUDGET_EXHAUSTED: earlier runs and this one together would spend ε=4"):
        ask(site, *history(site, 1))


def test_the_sites_cap_is_exact_to_the_accountant(open_site: Callable[..., Site], history: History) -> None:
    both = epsilon_pld([ONE_RUN, ONE_RUN], 1e-5 * 0.98)  # two runs, each with its share for the sampler
    site = open_site(epsilon_cap=both * 1.0001)
    book, account = history(site, 1)
    ask(site, book, account)
    with pytest.raises(RefusedError, match="BUDGET_EXHAUSTED"):
        ask(open_site(epsilon_cap=both * 0.9999), book, account)


def test_a_cap_below_the_study_refuses_the_first_run(open_site: Callable[..., Site], history: History) -> None:
    site = open_site(epsilon_cap=2.9)
    with pytest.raises(RefusedError, match="BUDGET_EXHAUSTED"):
        ask(site, *history(site, 0))


def test_the_held_out_line_pays_for_itself(open_site: Callable[..., Site], history: History) -> None:
    site = open_site()
    book, account = history(site, 1)
    ask(site, book, account, line=Line.HELD_OUT)
    with pytest.raises(RefusedError, match="BUDGET_EXHAUSTED"):
        ask(site, book, account)


def promise(book: Ledger, account: str, study: str, count: int = 1, runs: int = 1, line: Line = Line.TRAINING) -> None:
    book.earmark([EarmarkEntry(account, line, study, event_to_json(ONE_RUN), count, min(runs, count))])


def test_what_another_study_was_promised_counts_as_spent(open_site: Callable[..., Site], history: History) -> None:
    site = open_site()
    book, account = history(site, 0)
    promise(book, account, "other")
    with pytest.raises(RefusedError, match="BUDGET_EXHAUSTED: earlier runs and this one together would spend ε=4"):
        ask(site, book, account)
    ask(site, book, account, line=Line.HELD_OUT)
    promise(book, account, "other", 0)
    ask(site, book, account)


def test_what_the_study_itself_was_promised_is_not_counted_twice(open_site: Callable[..., Site], history: History) -> None:
    site = open_site()
    book, account = history(site, 0)
    promise(book, account, "study", 5)
    ask(site, book, account)


def test_a_promise_counts_exactly_with_its_runs_share_of_delta(open_site: Callable[..., Site], history: History) -> None:
    both = epsilon_pld([ONE_RUN] * 3, 1e-5 * 0.97)  # this run, and two that another study was promised, each with a share of δ
    site = open_site(epsilon_cap=both * 1.0001)
    book, account = history(site, 0)
    promise(book, account, "other", 2, 2)
    ask(site, book, account)
    with pytest.raises(RefusedError, match="BUDGET_EXHAUSTED"):
        ask(open_site(epsilon_cap=both * 0.9999), book, account)


def test_a_used_promise_is_not_counted_beside_its_charges(open_site: Callable[..., Site], history: History) -> None:
    both = epsilon_pld([ONE_RUN, ONE_RUN], 1e-5 * 0.98)
    site = open_site(epsilon_cap=both * 1.0001)
    book, account = history(site, 0)
    promise(book, account, "other")
    book.reserve(ChargeKey(account, "other", "its run", 1, "0" * 64), event_to_json(ONE_RUN), 100)
    ask(site, book, account)


def test_delta_is_the_accounts(open_site: Callable[..., Site], history: History) -> None:
    site = open_site(delta=1e-6)
    book, account = history(site, 0)
    ask(site, book, account, delta=1e-6)
    with pytest.raises(RefusedError, match=r"STUDY_NOT_APPROVED.*1e-05 is above 1e-06"):
        ask(site, book, account)


def test_after_an_unprotected_release_private_studies_need_a_reason_in_words(open_site: Callable[..., Site], history: History) -> None:
    site = open_site()
    book, account = history(site, 1, UNPROTECTED_JSON)
    with pytest.raises(RefusedError, match="not protected any more"):
        ask(site, book, account)
    ask(site, book, account, line=Line.HELD_OUT)
    with pytest.raises(RefusedError, match="not protected any more"):
        ask(open_site(train_after_unprotected="  "), book, account)
    ask(open_site(train_after_unprotected="public data set, agreed with the data protection officer"), book, account)


def test_the_reason_does_not_lift_the_budget(open_site: Callable[..., Site], history: History) -> None:
    site = open_site(train_after_unprotected="agreed")
    history(site, 1, UNPROTECTED_JSON)
    book, account = history(site, 1)
    with pytest.raises(RefusedError, match="would spend"):
        ask(site, book, account)


def test_a_hundred_equal_sites_plan_and_check_once(private: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Work is counted, not timed: calibrations by PLD for a hundred plans, and compositions for a hundred equal histories."""
    counted = {"calibration": 0, "check": 0}
    monkeypatch.setattr(calibration, "epsilon_pld", counting(counted, "calibration"))
    monkeypatch.setattr(charging, "epsilon_pld", counting(counted, "check"))
    calibration._calibrate.cache_clear()
    charging.composed_epsilon.cache_clear()
    assert isinstance(private.privacy, PatientPrivacy)
    for _ in range(100):
        plan_privacy(private.privacy, private.training.sampling_rate, private.total_steps, 5000)
    earlier = event_to_json(ONE_RUN)
    for _ in range(100):
        charging.composed_epsilon((earlier, earlier), 1e-5, 3.0)
    assert 1 <= counted["calibration"] <= calibration.MOST_EVALUATIONS + 1
    assert counted["check"] == 1


def counting(counted: dict[str, int], name: str) -> Callable[..., float]:
    def count(*arguments: object) -> float:
        counted[name] += 1
        return epsilon_pld(*arguments)

    return count


def test_rdp_may_allow_and_never_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    earlier = (event_to_json(ONE_RUN),)
    charging.composed_epsilon.cache_clear()
    monkeypatch.setattr(charging, "epsilon_pld", lambda *_: pytest.fail("RDP is below the cap already"))
    assert charging.composed_epsilon(earlier, 1e-5, 4.0) <= 4.0
    monkeypatch.undo()
    charging.composed_epsilon.cache_clear()
    monkeypatch.setattr(charging, "epsilon_rdp", lambda *_: 3.3)
    assert charging.composed_epsilon(earlier, 1e-5, 3.01) <= 3.01, "PLD decides"


def test_a_ledger_of_another_key_does_not_open(open_site: Callable[..., Site], tmp_path: Path) -> None:
    site = open_site()
    book = open_ledger(site.folder)
    book.register(site.patient_ids(), 1e-5)
    other = Ledger(site.folder / "ledger.sqlite", Secret(b"x" * 32), ReceiptFile(tmp_path / "r", Secret(b"x" * 32), []))
    with pytest.raises(StorageError, match="this site's key"):
        other.charges()
