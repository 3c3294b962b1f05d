# SPDX-License-Identifier: Apache-2.0
"""A built cohort in use: approved, trained on, and one person with its patients in any other file of the hospital."""

from pathlib import Path

import numpy as np
import pytest

from client.approving import approve, propose
from client.cohorts.layout import CohortFile, sealed
from client.offers import read_offer
from client.site import open_ledger, patients_on_lines
from client.site_config import SiteConfig
from client.study_folder import prepare, refresh
from common.crypto.secrets import Secret
from common.data.cohort import Cohort, Split
from common.errors import DataError
from common.federation import StartRecord
from common.models.registry import initial_state
from common.privacy.charge_book import Line
from common.protocol import Instruction, Update, read_reply, shapes_of
from common.study import Study
from tests.client.cohorts.built import hospital_with_cohort
from tests.client.ledger.support import open_book
from tests.client.offered import NOW, PATIENTS, Hospital, hospital_study, images


@pytest.fixture(scope="module")
def hospital(tmp_path_factory: pytest.TempPathFactory) -> Hospital:
    return hospital_with_cohort(tmp_path_factory.mktemp("hospital") / "home")


def approved(hospital: Hospital, study: Study, cohort: str) -> str:
    """Offer and approve; the id of the run, which may train."""
    signed = hospital.offer(study)
    approve(hospital.home, propose(hospital.home, study.id, cohort, 1, NOW), "IT", NOW)
    run = StartRecord.model_validate_json(signed.record).run_id
    refresh(hospital.home, SiteConfig.read(hospital.home.config), study.id, (run,))
    return run


def prepared(hospital: Hospital, study: Study, cohort: str) -> Cohort:
    """What an approval would train on."""
    hospital.offer(study)
    return prepare(hospital.home, SiteConfig.read(hospital.home.config), read_offer(hospital.home, study.id), cohort).cohort


def of_patients(cohort: Cohort) -> dict[str, int]:
    """The split of each patient, by pseudonym."""
    return {cohort.dataset.patient_ids[number]: int(split) for number, split in zip(cohort.dataset.patients, cohort.split, strict=True)}


def sorted_images(cohort: Cohort) -> list[tuple[bytes, int]]:
    return sorted((image.tobytes(), int(label)) for image, label in zip(cohort.dataset.images, cohort.dataset.labels, strict=True))


def test_a_raw_file_and_a_cohort_of_it_are_the_same_people_and_images(hospital: Hospital, tmp_path: Path) -> None:
    raw = prepared(hospital, hospital_study(name="raw"), "chest")
    built = prepared(hospital, hospital_study(name="built", **{"data.source": "cohort"}), "built")
    assert of_patients(raw) == of_patients(built) and len(of_patients(raw)) == PATIENTS
    assert {Split.TRAIN, Split.TEST} == set(of_patients(raw).values())
    assert sorted_images(raw) == sorted_images(built)
    book = open_book(tmp_path, Secret.read(hospital.home.key))
    with_ids = book.register({Line.TRAINING: sorted(set(images()["patient_id"].tolist()))}, 1e-5)
    assert {book.register(patients_on_lines(one, joint=False), 1e-5) for one in (raw, built)} == {with_ids}, "one account"


def test_a_round_is_trained_and_charged(hospital: Hospital) -> None:
    from client.app import Settings
    from client.workbench import Workbench

    study = hospital_study(name="trained", **{"data.source": "cohort", "federation.rounds": 1})
    run, weights = approved(hospital, study, "built"), initial_state(study)
    instruction = Instruction(run, study.canonical_json, 1, True, False, weights)
    answer = Workbench(Settings(device="cpu", threads=1)).answer(hospital.home.study(study.id), instruction.to_records())
    reply = read_reply(answer, run_id=run, round_number=1, shapes=shapes_of(weights))
    assert isinstance(reply, Update) and any(np.abs(value).max() > 0 for value in reply.delta.values())
    charged = [charge for charge in open_ledger(hospital.home.folder).charges() if charge.key.study_id == study.id]
    assert [charge.key.line for charge in charged] == [Line.TRAINING]


def test_a_cohort_of_another_site_or_an_edited_one_is_refused(hospital: Hospital) -> None:
    study = hospital_study(name="sealed", **{"data.source": "cohort"})
    path = hospital.home.folder / "built" / "cohort.json"
    kept, cohort = path.read_text(), CohortFile.read(path.parent)
    try:
        for changed, text in (
            (sealed(cohort, Secret(b"x" * 32)), "key of another site"),
            (cohort.model_copy(update={"refused": 5}), "was changed"),
        ):
            path.write_text(changed.model_dump_json())
            with pytest.raises(DataError, match=text):
                prepared(hospital, study, "built")
    finally:
        path.write_text(kept)
