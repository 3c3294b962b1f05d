# SPDX-License-Identifier: Apache-2.0
"""When a round is charged: before the first gradient, in full, one process at a time, and with all that went before."""

import fcntl
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from client.ledger.book import Ledger
from client.private_trainer import PrivateTrainer
from client.site import Site
from client.workbench import StudyBench
from common.errors import RefusedError
from common.models.registry import initial_state
from common.privacy.accountant import epsilon_pld, epsilon_rdp, event_from_json, poisson_gaussian
from common.privacy.calibration import plan_privacy
from common.privacy.charge_book import Charge, Line
from common.privacy.charges import State
from common.protocol import Instruction, Update
from common.study import PatientPrivacy, Study
from tests.support.studies import PRIVATE, small

Make, Instruct = Callable[..., Path], Callable[..., Instruction]


class Bench:
    """One study at one site, and its charges."""

    def __init__(self, study: Study, folder: Path) -> None:
        self._bench, self._site = StudyBench(study, torch.device("cpu")), Site.open(folder)
        self.study = study

    def train(self, instruction: Instruction) -> Update:
        return self._bench.train(self._site, instruction)

    def charges(self) -> list[Charge]:
        """Charges to the patients who train."""
        return [charge for charge in self._bench._book(self._site).charges() if charge.key.line is Line.TRAINING]


@pytest.fixture
def bench(make_site: Make) -> Bench:
    study = small(PRIVATE)
    return Bench(study, make_site(study))


def test_the_charge_stands_before_the_first_gradient(bench: Bench, instruct: Instruct, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def no_memory(*_: object) -> None:
        seen.extend(bench.charges())
        raise MemoryError

    monkeypatch.setattr(PrivateTrainer, "take_step", no_memory)
    with pytest.raises(MemoryError):
        bench.train(instruct(bench.study))
    (charge,) = seen
    assert (charge.state, charge.steps) == (State.RESERVED, bench.study.training.local_steps)
    assert [(left.key, left.state) for left in bench.charges()] == [(charge.key, State.RESERVED)], "a round that failed stays charged"


def test_a_round_is_charged_with_all_its_steps_and_what_is_accounted(bench: Bench, instruct: Instruct) -> None:
    bench.train(instruct(bench.study))
    (charge,) = bench.charges()
    event = event_from_json(charge.event_json)
    assert event.count == charge.steps == bench.study.training.local_steps
    assert event.event.sampling_probability == bench.study.training.sampling_rate
    privacy = bench.study.privacy
    assert isinstance(privacy, PatientPrivacy)
    size = sum(value.size for value in initial_state(bench.study).values())
    plan = plan_privacy(privacy, bench.study.training.sampling_rate, bench.study.total_steps, size)  # of the study, not of a round
    assert event.event.event.noise_multiplier == plan.accounted_noise_multiplier < plan.noise_multiplier


def test_nothing_leaves_before_its_charge_says_so(bench: Bench, instruct: Instruct) -> None:
    bench.train(instruct(bench.study))
    (charge,) = bench.charges()
    assert charge.state in (State.RELEASING, State.SENT) and charge.reply_sha256 is not None


def is_locked(path: Path) -> bool:
    """Whether somebody holds the lock file, seen as another process sees it."""
    with path.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def test_two_processes_never_train_one_round_at_once(bench: Bench, instruct: Instruct, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the reservation to the last step the site's lock is held, so another process waits and then finds the round released."""
    lock, held = bench._site.folder / "round.lock", []

    def watch(owner: type, name: str) -> None:
        method = getattr(owner, name)
        monkeypatch.setattr(owner, name, lambda *given: held.append((name, is_locked(lock))) or method(*given))

    for owner, name in ((Ledger, "reserve"), (PrivateTrainer, "take_step"), (Ledger, "releasing")):
        watch(owner, name)
    bench.train(instruct(bench.study))
    assert {name for name, _ in held} == {"reserve", "take_step", "releasing"}
    assert all(locked for _, locked in held)
    assert not is_locked(lock)


def test_one_round_of_another_run_already_counts(bench: Bench, instruct: Instruct) -> None:
    """Composition is over the whole plan, not over the rounds so far: one earlier round and a plan that fills ε are too much."""
    bench.train(instruct(bench.study, 1, run_id="run-1"))
    with pytest.raises(RefusedError, match="BUDGET_EXHAUSTED"):
        bench.train(instruct(bench.study, 1, run_id="run-2"))
    assert len(bench.charges()) == 1


def with_settings(folder: Path, **settings: object) -> Path:
    facts = json.loads((folder / "site.json").read_text(encoding="utf-8"))
    (folder / "site.json").write_text(json.dumps({**facts, **settings}), encoding="utf-8")
    return folder


@pytest.mark.parametrize(("share", "allowed"), [(0.5, True), (-0.2, False)], ids=["below the Rényi bound", "below what PLD says"])
def test_pld_decides_and_renyi_never_refuses(share: float, allowed: bool, make_site: Make, instruct: Instruct) -> None:
    """A cap between the two bounds of what both runs cost together is kept; only below the tighter one there is a refusal."""
    study, folder = small(PRIVATE), make_site(small(PRIVATE))
    first = Bench(study, folder)
    first.train(instruct(study, 1, run_id="run-1"))
    plan = first._bench._plan
    assert plan is not None
    whole = [poisson_gaussian(plan.sampling_rate, plan.accounted_noise_multiplier, plan.steps + study.training.local_steps)]
    tight, loose = epsilon_pld(whole, 0.98 * plan.delta), epsilon_rdp(whole, 0.98 * plan.delta)
    assert loose > 1.03 * tight, "the two bounds are too close to tell which one decides"
    second = Bench(study, with_settings(folder, epsilon_cap=tight + share * (loose - tight)))
    if allowed:
        assert isinstance(second.train(instruct(study, 1, run_id="run-2")), Update)
    else:
        with pytest.raises(RefusedError, match="BUDGET_EXHAUSTED"):
            second.train(instruct(study, 1, run_id="run-2"))


def test_a_study_with_a_larger_delta_than_the_account_is_refused(make_site: Make, instruct: Instruct) -> None:
    study = small(PRIVATE)
    bench = Bench(study, with_settings(make_site(study), delta=1e-6))
    with pytest.raises(RefusedError, match="STUDY_NOT_APPROVED"):
        bench.train(instruct(study))
    assert bench.charges() == []
