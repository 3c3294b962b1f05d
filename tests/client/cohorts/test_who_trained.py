# SPDX-License-Identifier: Apache-2.0
"""Which models used a patient: a hospital that approved a study and answered rounds, with its real ledger and log of what left."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from flwr.app import Context, Message, RecordDict

from client.app import create_app
from client.cohorts.exclusions import exclude, include
from client.cohorts.who_trained import RunUse, ranges, who_trained
from client.egress import Incoming, release
from client.pseudonyms import Pseudonyms
from client.site import Site, open_ledger
from client.site_home import SiteHome
from common.crypto.secrets import Secret
from common.data.cohort import Split
from common.federation import StartRecord
from common.flower_compat.identity import assume_server_identity
from common.models.registry import initial_state
from common.privacy.charge_book import ChargeKey
from common.protocol import Instruction
from common.signed import Signed
from common.study import Study
from tests.client.ledger.support import EVENT
from tests.client.offered import MEASURED, NOW, PATIENTS, PRIVATE, Hospital, hospital_study


class Runs:
    """A hospital that answers messages at times of the test's choice."""

    excluded = ""

    def __init__(self, folder: Path, study: Study) -> None:
        self.hospital, self.study = Hospital.make(folder, epsilon_per_account=100.0), study
        self.home = self.hospital.home
        self.approved(study)
        self.cohort = Site.open(self.home.study(study.id)).cohort
        self.names = Pseudonyms(Secret.read(self.home.key))

    def approved(self, study: Study) -> Signed:
        self.signed = self.hospital.offer(study)
        self.hospital.approve(study, runs=2)
        return self.signed

    def begin(self, at: float) -> None:
        self.hospital.permit(self.study, self.signed, NOW + at)
        self.app = create_app(lambda context: self.home.study(self.study.id))

    def answer(self, round_number: int, at: float, train: bool = True) -> None:
        """One message, whose reply leaves so many seconds after NOW."""
        run_id = StartRecord.model_validate_json(self.signed.record).run_id
        asked = Instruction(run_id, self.study.canonical_json, round_number, train, not train, initial_state(self.study))
        assume_server_identity(1)
        message = Message(asked.to_records(), 1000, "train" if train else "evaluate")
        reply = self.app(message, Context(1, 1000, {}, RecordDict(), {})).content
        release(self.home, Incoming.of(asked, self.study), reply, now=NOW + at)

    def patient(self, split: Split) -> str:
        """The hospital's own id of a patient."""
        number = int(self.cohort.dataset.patients[self.cohort.rows_in(split)][0])
        name = self.cohort.dataset.patient_ids[number]
        raw = [one for one in (str(number) for number in range(PATIENTS)) if self.names.of(one) == name]
        return raw[0] if raw else name

    def uses(self, patient: str) -> list[tuple[str, tuple[int, ...], float | None, float | None]]:
        return [(one.use, one.rounds, _after(one.first), _after(one.last)) for one in who_trained(self.home, patient).uses]


def _after(time: float | None) -> float | None:
    return None if time is None else time - NOW


@pytest.fixture(scope="module")
def answered(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runs]:
    """Three rounds and the measurement of the final model. One training patient was excluded from before round 2 until after round 2."""
    runs = Runs(tmp_path_factory.mktemp("site") / "north", hospital_study(PRIVATE, **{"evaluation.private": MEASURED}))
    runs.begin(0)
    runs.answer(1, at=10)
    runs.excluded = runs.names.of(runs.patient(Split.TRAIN))
    exclude(runs.home.folder, [runs.excluded], "IT", NOW + 9)
    runs.answer(2, at=20)
    include(runs.home.folder, [runs.excluded], "IT", NOW + 25)
    runs.answer(3, at=30)
    runs.answer(3, at=40, train=False)
    yield runs


def other_training_patient(runs: Runs) -> str:
    names = {runs.cohort.dataset.patient_ids[n] for n in runs.cohort.dataset.patients[runs.cohort.rows_in(Split.TRAIN)]}
    return sorted(runs.names.of(one) for one in names if runs.names.of(one) != runs.excluded)[0]


def test_a_training_patient_trained_in_every_round_that_left(answered: Runs) -> None:
    answer = who_trained(answered.home, other_training_patient(answered))
    (use,) = answer.uses
    assert isinstance(use, RunUse)
    assert (use.study, use.study_id, use.use, use.rounds) == ("small", answered.study.id, "trained", (1, 2, 3))
    assert (use.first, use.last) == (NOW + 10, NOW + 30)
    assert (answer.in_cohorts, answer.unknown, answer.excluded_since) == (1, (), None)


def test_a_held_out_patient_measured_the_final_model(answered: Runs) -> None:
    assert answered.uses(answered.patient(Split.TEST)) == [("measured", (3,), 40, 40)]


def test_an_excluded_patient_took_no_part_while_excluded(answered: Runs) -> None:
    """Excluded before round 1 left (so round 1 may have had them) until round 3 was being worked on."""
    assert answered.uses(answered.excluded) == [("trained", (1, 3), 10, 30), ("excluded", (2,), 20, 20)]


def test_an_id_and_its_pseudonym_are_one_patient(answered: Runs) -> None:
    raw = answered.patient(Split.TRAIN)
    assert who_trained(answered.home, raw).uses == who_trained(answered.home, answered.names.of(raw)).uses != ()


def test_a_patient_whom_nobody_knows(answered: Runs) -> None:
    answer = who_trained(answered.home, "somebody else")
    assert (answer.uses, answer.in_cohorts, answer.unknown) == ((), 0, ())


def test_a_study_whose_images_are_gone_is_said(answered: Runs, tmp_path: Path) -> None:
    shutil.copytree(answered.home.folder, tmp_path / "copy")
    shutil.rmtree(tmp_path / "copy" / "cache")
    answer = who_trained(SiteHome(tmp_path / "copy"), other_training_patient(answered))
    assert answer.uses == ()
    (unknown,) = answer.unknown
    assert unknown.startswith("small: ")


def test_what_never_left_is_not_listed(tmp_path: Path) -> None:
    runs = Runs(tmp_path / "north", hospital_study())
    runs.begin(0)
    book, site = open_ledger(runs.home.folder), Site.open(runs.home.study(runs.study.id))
    account = book.register(site.patient_ids(), site.settings.delta)
    book.reserve(ChargeKey(account, runs.study.id, "ab" * 16, 1, "0" * 64), EVENT, 2)
    answer = who_trained(runs.home, runs.patient(Split.TRAIN))
    assert (answer.uses, answer.in_cohorts) == ((), 1)


def test_rounds_are_put_together() -> None:
    assert ranges([3, 1, 2, 7, 9, 8, 12]) == "1–3, 7–9, 12"
    assert ranges([]) == ""
