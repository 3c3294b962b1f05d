# SPDX-License-Identifier: Apache-2.0
"""The private evaluation at a site, through the real app, ledger and generator."""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from flwr.app import Context, Message, RecordDict
from safetensors.numpy import load

from client import measuring
from client.app import create_app
from client.charging import ChargedRelease
from client.measuring import count_patients
from client.scores import HeldOutPatients, SiteScores, by_patient
from client.site import Site, evaluation_path, open_ledger
from common.data.cohort import Split
from common.evaluation_plan import evaluation_plan
from common.flower_compat.identity import assume_server_identity
from common.privacy.accountant import epsilon_pld, event_from_json
from common.privacy.charge_book import Charge, Line
from common.privacy.charges import State
from common.privacy.generator import SystemGenerator
from common.protocol import Evaluated, Instruction, Refusal, RefusalCode, Reply, Update, read_reply, shapes_of
from common.study import Study
from tests.support.studies import PRIVATE, small

MakeSite = Callable[..., Path]
Instruct = Callable[..., Instruction]


def measured(**private: object) -> Study:
    return small(PRIVATE, **{"evaluation.private": private})


@pytest.fixture
def study() -> Study:
    return measured()


class Hospital:
    """One app serving one folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._app = create_app(lambda context: self.folder)

    def answer(self, instruction: Instruction) -> RecordDict:
        assume_server_identity(1)
        message = Message(instruction.to_records(), 1000, "train" if instruction.train else "evaluate")
        return self._app(message, Context(1, 1000, {}, RecordDict(), {})).content

    def ask(self, instruction: Instruction) -> Reply:
        plan = evaluation_plan(Study.from_canonical_json(instruction.study))
        shape = plan.shape if plan and not instruction.train and instruction.round in plan.rounds else None
        content = self.answer(instruction)
        shapes = shapes_of(instruction.model)
        return read_reply(content, run_id=instruction.run_id, round_number=instruction.round, shapes=shapes, counts_shape=shape)

    def counts(self, instruction: Instruction) -> np.ndarray:
        reply = self.ask(instruction)
        assert isinstance(reply, Evaluated), reply
        assert reply.counts is not None
        return reply.counts

    def charges(self, line: Line) -> list[Charge]:
        return [charge for charge in open_ledger(self.folder).charges() if charge.key.line is line]


@pytest.fixture
def final(instruct: Instruct) -> Callable[..., Instruction]:
    """The message without training at the end of three rounds."""

    def make(study: Study, **options: object) -> Instruction:
        return instruct(study, **{"round_number": 3, "train": False, "evaluate": True, **options})

    return make


def test_one_histogram_leaves_and_the_held_out_patients_pay_for_it(make_site: MakeSite, final: Instruct, study: Study) -> None:
    hospital = Hospital(make_site(study))
    counts = hospital.counts(final(study))
    assert counts.dtype == np.int64
    assert counts.shape == (1, 2, 16)
    (charge,) = hospital.charges(Line.HELD_OUT)
    assert (charge.state, charge.key.round, charge.steps) == (State.RELEASING, 3, 1)
    assert epsilon_pld([event_from_json(charge.event_json)], 1e-9) == pytest.approx(1.0, rel=1e-3)
    assert hospital.charges(Line.TRAINING) == []


def test_noise_is_on_every_count_and_is_new_each_time(make_site: MakeSite, final: Instruct) -> None:
    """At a small ε all counts move and about half of the empty ones are negative: nothing was cut or left as it was."""
    study = measured(epsilon=0.01)
    folders = [make_site(study, name) for name in ("north", "south")]
    first, second = (Hospital(folder).counts(final(study)) for folder in folders)
    exact = exact_counts(folders[0], first.shape)
    assert exact.sum() == Site.open(folders[0]).cohort.patient_count(Split.TEST)
    for counts in (first, second):
        assert (counts == exact).sum() <= 3, "P(0) is 1 in 200 for each of 32 counts"
        assert 3 <= (counts < 0).sum() <= 29
    assert (first == second).sum() <= 3


def exact_counts(folder: Path, shape: tuple[int, ...]) -> np.ndarray:
    """All held-out patients of an untrained model say .5 exactly; they lie in one bin for each label."""
    scores = SiteScores.read(evaluation_path(folder, 3))
    edges = np.linspace(-1, 1, shape[2] - 1)[None]
    return count_patients(by_patient(scores, 1), edges)


def test_nothing_in_a_reply_tells_a_noisy_histogram_from_an_exact_one(make_site: MakeSite, final: Instruct, study: Study) -> None:
    """No flag, size, total or patient count stands beside the counts; two sites of different size differ in the counts alone."""
    instruction = final(study)
    large, small_site = (Hospital(make_site(study, name, patients=size)).answer(instruction) for name, size in (("a", 80), ("b", 40)))
    for records in (large, small_site):
        assert set(records) == {"wardround", "metrics", "counts"}
        assert dict(records.metric_records["metrics"]) == {"num-examples": 1}
        assert set(records.config_records["wardround"]) - {"ledger_head"} == {"protocol", "kind", "run_id", "round", "site"}
        assert list(records.array_records["counts"]) == ["counts"]
    assert len(large.array_records["counts"]["counts"].data) == len(small_site.array_records["counts"]["counts"].data)


@pytest.mark.parametrize("keep", ["nobody", "one class"])
def test_a_held_out_set_without_patients_or_of_one_class_answers_like_any_other(
    keep: str, make_site: MakeSite, final: Instruct, study: Study
) -> None:
    folder = make_site(study)
    cohort = Site.open(folder).cohort
    drop = (cohort.split == Split.TEST) & ((cohort.dataset.labels[cohort.rows] == 1) | (keep == "nobody"))
    for name in ("rows", "split"):
        np.save(folder / f"{name}.npy", np.load(folder / f"{name}.npy")[~drop])
    counts = Hospital(folder).counts(final(study))
    assert counts.shape == (1, 2, 16)
    assert np.abs(counts[0, 1]).max() < 60


def test_asked_again_the_stored_bytes_are_sent_under_one_charge(make_site: MakeSite, final: Instruct, study: Study) -> None:
    hospital = Hospital(make_site(study))
    first = hospital.counts(final(study))
    assert np.array_equal(first, hospital.counts(final(study)))
    assert np.array_equal(first, Hospital(hospital.folder).counts(final(study)))
    assert len(hospital.charges(Line.HELD_OUT)) == 1


class Killed(BaseException):
    """The process ends here."""


@pytest.fixture
def kill_at_close(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[bool], None]]:
    close = ChargedRelease.close

    def arm(after: bool) -> None:
        def killed(release: ChargedRelease, reply: bytes) -> None:
            if after:
                close(release, reply)
            raise Killed

        monkeypatch.setattr(ChargedRelease, "close", killed)

    yield arm


@pytest.mark.parametrize("after", [False, True])
def test_killed_before_or_after_releasing(
    after: bool, make_site: MakeSite, final: Instruct, study: Study, kill_at_close: Callable[[bool], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before: nothing has left, so it is counted anew under the same charge. After: the bytes in the outbox are what is sent."""
    hospital = Hospital(make_site(study))
    kill_at_close(after)
    with pytest.raises(Killed):
        hospital.ask(final(study))
    monkeypatch.undo()
    stored = [load(path.read_bytes()[32:])["counts"] for path in (hospital.folder / "outbox").glob("*.reply")]
    assert len(stored) == (1 if after else 0)
    counts = Hospital(hospital.folder).counts(final(study))
    assert not after or np.array_equal(counts, stored[0])
    (charge,) = hospital.charges(Line.HELD_OUT)
    assert charge.state is State.RELEASING


def test_a_second_model_for_the_same_round_is_refused(make_site: MakeSite, final: Instruct, study: Study) -> None:
    hospital = Hospital(make_site(study))
    hospital.counts(final(study))
    assert hospital.ask(final(study, shift=0.5)) == Refusal(RefusalCode.ROUND_CONFLICT, "")
    assert len(hospital.charges(Line.HELD_OUT)) == 1


def test_a_histogram_that_was_released_and_is_lost_is_never_counted_again(make_site: MakeSite, final: Instruct, study: Study) -> None:
    hospital = Hospital(make_site(study))
    hospital.counts(final(study))
    for path in (hospital.folder / "outbox").glob("*.reply"):
        path.unlink()
    assert hospital.ask(final(study)) == Refusal(RefusalCode.ROUND_LOST, "")


def test_the_first_training_reserves_the_evaluation_and_pays_once(make_site: MakeSite, instruct: Instruct, final: Instruct) -> None:
    study = measured()
    hospital = Hospital(make_site(study))
    assert isinstance(hospital.ask(instruct(study, 1)), Update)
    (charge,) = hospital.charges(Line.HELD_OUT)
    assert (charge.state, charge.key.round) == (State.RESERVED, 3)
    assert isinstance(hospital.ask(instruct(study, 2)), Update)
    hospital.counts(final(study))
    (charge,) = hospital.charges(Line.HELD_OUT)
    assert charge.state is State.RELEASING


def test_a_study_whose_evaluation_cannot_be_paid_is_refused_before_it_trains(
    make_site: MakeSite, instruct: Instruct, final: Instruct, study: Study
) -> None:
    hospital = Hospital(make_site(study))
    hospital.counts(final(study, run_id="run-0"))
    assert hospital.ask(instruct(study, 1)) == Refusal(RefusalCode.BUDGET_EXHAUSTED, "")
    assert hospital.charges(Line.TRAINING) == [], "nothing was trained, so nothing is charged"
    assert hospital.ask(final(study)) == Refusal(RefusalCode.BUDGET_EXHAUSTED, "")
    assert len(hospital.charges(Line.HELD_OUT)) == 1
    without = study.with_changes({"evaluation.private": None})
    assert isinstance(hospital.ask(instruct(without, 1)), Update), "the two lines do not pay for each other"


def test_another_run_cannot_spend_what_is_reserved(make_site: MakeSite, instruct: Instruct, final: Instruct, study: Study) -> None:
    hospital = Hospital(make_site(study))
    hospital.ask(instruct(study, 1))
    other = study.with_changes({"seed": 1})
    assert hospital.ask(final(other, run_id="run-2")) == Refusal(RefusalCode.BUDGET_EXHAUSTED, "")
    assert isinstance(hospital.ask(instruct(study, 2)), Update)
    hospital.counts(final(study))


def test_every_so_many_rounds_the_epsilon_is_divided(make_site: MakeSite, final: Instruct) -> None:
    study = measured(every=1, held_out_patients=2000, epsilon=3.0)
    hospital = Hospital(make_site(study))
    found = [hospital.counts(final(study, round_number=number)) for number in (1, 2, 3)]
    assert not np.array_equal(found[0], found[1])
    charges = hospital.charges(Line.HELD_OUT)
    assert sorted(charge.key.round for charge in charges) == [1, 2, 3]
    assert epsilon_pld([event_from_json(charge.event_json) for charge in charges], 1e-9) == pytest.approx(3.0, rel=1e-3)


def test_a_round_that_is_not_planned_releases_nothing(make_site: MakeSite, final: Instruct, study: Study) -> None:
    hospital = Hospital(make_site(study))
    assert hospital.ask(final(study, round_number=2)) == Evaluated("run-1", 2, "north", None)
    assert hospital.charges(Line.HELD_OUT) == []


@pytest.mark.parametrize("study", [small(), small(PRIVATE)], ids=["without privacy", "private: none"])
def test_a_study_without_private_evaluation_releases_nothing(study: Study, make_site: MakeSite, final: Instruct) -> None:
    hospital = Hospital(make_site(study))
    assert hospital.ask(final(study)) == Evaluated("run-1", 3, "north", None)
    assert hospital.charges(Line.HELD_OUT) == []


def test_a_failure_while_counting_leaves_as_one_code_and_stays_charged(make_site: MakeSite, final: Instruct, study: Study) -> None:
    hospital = Hospital(make_site(study))
    (hospital.folder / "outbox").write_text("a file where the folder should be")
    assert hospital.ask(final(study)) == Refusal(RefusalCode.TRAINING_FAILED, "")
    assert [charge.state for charge in hospital.charges(Line.HELD_OUT)] == [State.RESERVED]


def test_the_noise_comes_from_the_systems_generator(
    make_site: MakeSite, final: Instruct, study: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = []

    class Counted(SystemGenerator):
        def __init__(self) -> None:
            super().__init__()
            made.append(self)

    monkeypatch.setattr(measuring, "SystemGenerator", Counted)
    Hospital(make_site(study)).counts(final(study))
    assert len(made) == 1


def scores_of(patients: list[int], labels: list[int], scores: list[float]) -> SiteScores:
    count = np.arange(len(patients), dtype=np.int64)
    return SiteScores(count, np.array(labels), np.array(patients), np.array(scores, np.float32))


def test_a_patient_is_one_score_and_one_label() -> None:
    """The mean of the images' probabilities; the label that any image has."""
    found = by_patient(scores_of([7, 3, 7, 7], [0, 0, 1, 0], [0.9, 0.5, 0.6, 0.9]), 1)
    assert found.labels.tolist() == [[False], [True]]
    assert found.scores[:, 0] == pytest.approx([0.0, np.log(0.8 / 0.2)], abs=1e-6)


def test_one_patient_moves_one_count_by_one_however_many_images() -> None:
    edges = np.linspace(-2, 2, 15)[None]
    generator = np.random.default_rng(0)
    patients = np.repeat(np.arange(30), generator.integers(1, 7, 30))
    labels, values = generator.integers(0, 2, len(patients)), generator.random(len(patients))
    whole = count_patients(by_patient(scores_of(patients, labels, values), 1), edges)
    assert whole.sum() == 30
    for gone in range(30):
        rest = patients != gone
        less = count_patients(by_patient(scores_of(patients[rest], labels[rest], values[rest]), 1), edges)
        assert np.abs(whole - less).sum() == 1


def test_several_classes_are_one_question_each() -> None:
    scores = SiteScores(np.arange(3), np.array([0, 2, 2]), np.array([4, 4, 5]), np.array([[0.8, 0.1, 0.1], [0.2, 0.1, 0.7], [0, 0, 1]]))
    found = by_patient(scores, 3)
    assert found.labels.tolist() == [[True, False, True], [False, False, True]]
    assert found.scores[0] == pytest.approx(np.log([0.5 / 0.5, 0.1 / 0.9, 0.4 / 0.6]), abs=1e-6)
    counts = count_patients(found, np.tile([-1.0, 0.0, 1.0], (3, 1)))
    assert counts.sum(axis=(1, 2)).tolist() == [2, 2, 2]
    assert by_patient(SiteScores(*(np.zeros(0, np.int64),) * 3, np.zeros((0, 3), np.float32)), 3).scores.shape == (0, 3)


def test_scores_that_are_not_numbers_or_sure_are_counted_too() -> None:
    patients = HeldOutPatients(np.ones((3, 1), bool), np.array([[np.nan], [20.0], [-20.0]]))
    assert count_patients(patients, np.array([[-1.0, 0.0, 1.0]]))[0, 1].tolist() == [1, 0, 0, 2]
