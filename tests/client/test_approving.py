# SPDX-License-Identifier: Apache-2.0
"""What an approval does: the whole plan promised at once, the study's folder, the signed record; and what it refuses."""

import json
from pathlib import Path

import numpy as np
import pytest

import client.approving
from client.approvals import Approvals
from client.approving import approve, propose, reject
from client.pseudonyms import Pseudonyms
from client.site import Site, open_ledger
from client.study_words import in_words
from common.crypto.secrets import Secret
from common.data.cohort import Split
from common.data.splits import split_of_patient
from common.errors import InputError, RefusedError, StorageError
from common.federation import ApprovalRecord
from common.privacy.accountant import UNPROTECTED_JSON, epsilon_pld, event_from_json
from common.privacy.charges import ChargeKey, Line
from common.study import Study
from tests.client.offered import MEASURED, NOW, PATIENTS, Hospital, hospital_study, images


@pytest.fixture
def hospital(tmp_path: Path) -> Hospital:
    return Hospital.make(tmp_path / "home")


def measured(**changes: object) -> Study:
    return hospital_study(**{"evaluation.private": MEASURED, "privacy.epsilon": 3.0, **changes})


def promised(hospital: Hospital) -> dict[tuple[str, Line], tuple[int, int]]:
    fold = open_ledger(hospital.home.folder).fold()
    return {
        (one.earmark.study_id, line): (one.count, one.new_runs)
        for account in fold.accounts.names
        for line in Line
        for one in fold.promises(account, line)
    }


def test_the_whole_plan_is_promised_signed_and_made_ready(hospital: Hospital) -> None:
    study = measured()
    signed = hospital.offer(study)
    record = hospital.approve(study, runs=2)
    assert promised(hospital) == {(study.id, Line.TRAINING): (2 * 3, 2), (study.id, Line.HELD_OUT): (2, 2)}
    assert record == Approvals(hospital.home).current(study.id)
    start = json.loads(signed.record)
    assert (record.site, record.study_id, record.decision, record.cohort, record.runs) == ("north", study.id, "approved", "chest", 2)
    assert (record.initial_weights_sha256, record.approved_by, record.created) == (start["initial_weights_sha256"], "IT", NOW)
    assert json.loads(hospital.home.approvals.read_text())["record"] == record.canonical_json
    site = Site.open(hospital.home.study(study.id))
    assert site.home == hospital.home.folder.resolve() and site.settings.study_id == study.id
    assert (site.settings.delta, site.settings.epsilon_cap, site.settings.run_ids) == (1e-5, 8.0, ())
    earmark = open_ledger(hospital.home.folder).fold().earmarks.standing(study.id, Line.TRAINING)
    assert earmark is not None
    assert record.epsilon_total == pytest.approx(epsilon_pld([event_from_json(earmark.event_json)] * 6, 1e-5))
    assert 3.0 < record.epsilon_total < 6.0, "two runs of at most 3"


def test_patients_are_split_by_the_sites_own_key(hospital: Hospital) -> None:
    study = hospital_study()
    hospital.offer(study)
    hospital.approve(study)
    cohort = Site.open(hospital.home.study(study.id)).cohort
    assert len(cohort.dataset.patient_ids) == PATIENTS
    secret = Secret.read(hospital.home.key)
    key, names = secret.derive("patient split"), Pseudonyms(secret)
    for patient, split in zip(np.array(cohort.dataset.patient_ids)[cohort.dataset.patients], cohort.split, strict=True):
        assert split == split_of_patient(key, names.of(str(patient)), 0.2, 0.0)
    assert {Split.TRAIN, Split.TEST} == set(cohort.split.tolist())


def test_a_data_set_with_its_own_split_pays_on_one_joint_line(tmp_path: Path) -> None:
    hospital, study = Hospital.make(tmp_path / "home"), measured(**{"data.source": "medmnist"})
    split = np.arange(len(images()["labels"])) % 4 == 0
    parts = {"train": ~split, "test": split, "val": np.zeros_like(split)}
    arrays = {f"{name}_images": images()["images"][rows] for name, rows in parts.items() if rows.any()}
    arrays |= {f"{name}_labels": images()["labels"][rows][:, None] for name, rows in parts.items() if rows.any()}
    np.savez(hospital.home.folder / "chest.npz", **arrays)
    study = study.with_changes({"data.one_image_one_patient": True})
    hospital.offer(study)
    proposal = propose(hospital.home, study.id, None, 1, NOW)
    assert proposal.prepared.settings.joint and "pays for training and measurement together" in in_words(proposal)
    book = open_ledger(hospital.home.folder)
    assert book.fold().accounts.is_joint(proposal.account)
    alone = {plan.line: epsilon_pld([event_from_json(plan.event_json)] * plan.rounds, 1e-5) for plan in proposal.plans}
    assert proposal.epsilon_total is not None and proposal.epsilon_total > max(alone.values())
    hospital.change("limits", epsilon_per_account=3.1)
    with pytest.raises(RefusedError, match="BUDGET_EXHAUSTED"):
        hospital.approve(study)


def test_two_studies_are_never_promised_the_same_budget(hospital: Hospital) -> None:
    first, second = measured(), measured(seed=1)
    hospital.change("limits", epsilon_per_account=4.0)
    for study in (first, second):
        hospital.offer(study)
    hospital.approve(first)
    lines = hospital.home.approvals.read_bytes()
    with pytest.raises(RefusedError, match=r"BUDGET_EXHAUSTED: .* would spend ε=4\.[0-9]+, with what other studies were promised"):
        hospital.approve(second)
    assert hospital.home.approvals.read_bytes() == lines
    assert {study for study, _ in promised(hospital)} == {first.id}, "wholly or not at all"
    assert not (hospital.home.study(second.id) / "site.json").exists()
    reject(hospital.home, first.id, "IT", NOW)
    assert promised(hospital) == {}
    hospital.approve(second)
    assert {study for study, _ in promised(hospital)} == {second.id}


def test_the_held_out_line_has_to_have_room_too(hospital: Hospital) -> None:
    big = {"evaluation.private": {"epsilon": 3.0}, "privacy.epsilon": 1.0}
    hospital.change("limits", epsilon_per_account=4.0)
    for seed in (0, 1):
        study = hospital_study(**big, seed=seed)
        hospital.offer(study)
        if seed == 0:
            hospital.approve(study)
    with pytest.raises(RefusedError, match="BUDGET_EXHAUSTED"):
        hospital.approve(study)
    assert len(promised(hospital)) == 2


def test_all_runs_have_to_fit_at_once(hospital: Hospital) -> None:
    study = measured()
    hospital.offer(study)
    hospital.change("limits", epsilon_per_account=3.0)
    assert hospital.approve(study).runs == 1, "one run costs its ε exactly"
    with pytest.raises(RefusedError, match="BUDGET_EXHAUSTED"):
        hospital.approve(study, runs=2)


def test_what_was_spent_counts_and_is_not_counted_twice(hospital: Hospital) -> None:
    study = measured()
    signed = hospital.offer(study)
    hospital.change("limits", epsilon_per_account=3.0)
    hospital.approve(study)
    run_id = hospital.permit(study, signed).record.run_id
    proposal = propose(hospital.home, study.id, None, 0, NOW)
    book = open_ledger(hospital.home.folder)
    for number in (1, 2):
        book.reserve(ChargeKey(proposal.account, study.id, run_id, number, "0" * 64), proposal.plans[0].event_json, 2)
    assert promised(hospital)[study.id, Line.TRAINING] == (1, 0)
    hospital.change("limits", epsilon_per_account=3.05)  # a run that has charged is composed, with its share of δ for the sampler
    approve(hospital.home, propose(hospital.home, study.id, None, 0, NOW), "IT", NOW)
    assert promised(hospital)[study.id, Line.TRAINING] == (1, 0)


def test_after_an_unprotected_release_nothing_private_is_promised_without_a_reason(hospital: Hospital) -> None:
    study = measured()
    hospital.offer(study)
    account = propose(hospital.home, study.id, None, 1, NOW).account
    open_ledger(hospital.home.folder).reserve(ChargeKey(account, "x", "run", 1, "0" * 64), UNPROTECTED_JSON, 1)
    with pytest.raises(RefusedError, match="something left without protection"):
        hospital.approve(study)
    hospital.change("allow", train_after_unprotected="public data, agreed")
    hospital.approve(study)


def test_without_privacy_nothing_is_promised_and_it_is_said_in_words(hospital: Hospital) -> None:
    study = hospital_study("none")
    hospital.offer(study)
    with pytest.raises(RefusedError, match="POLICY_REFUSED"):
        propose(hospital.home, study.id, None, 1, NOW)
    hospital.change("allow", unprotected_studies=[study.id])
    proposal = propose(hospital.home, study.id, None, 1, NOW)
    assert "NOT PROTECTED" in in_words(proposal) and "EXACT, WITHOUT NOISE" in in_words(proposal)
    record = approve(hospital.home, proposal, "IT", NOW)
    assert record.epsilon_total is None and promised(hospital) == {}
    assert Site.open(hospital.home.study(study.id)).unprotected_studies == (study.id,)


def test_the_words_say_what_leaves_and_what_it_costs(hospital: Hospital) -> None:
    study = measured()
    hospital.offer(study)
    text = in_words(propose(hospital.home, study.id, None, 1, NOW))
    for said in (
        "23,921 numbers",
        "histogram",
        "16 bins",
        "together with south",
        "ε at most 3 a run",
        "ε at most 1 a run",
        "δ = 1e-05",
        "One run.",
    ):
        assert said in text
    assert "those that the study's seed gives (" in text
    hospital.offer(study, initial_weights_sha256="1" * 64, created=NOW + 1)
    assert "NOT those that the study's seed gives" in in_words(propose(hospital.home, study.id, None, 1, NOW))


def test_looking_at_a_proposal_changes_nothing_of_an_approved_study(hospital: Hospital) -> None:
    study = measured()
    hospital.offer(study)
    hospital.approve(study)
    folder = hospital.home.study(study.id)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    np.savez(hospital.home.folder / "other.npz", **{name: values[:80] for name, values in images().items()})
    hospital.set(cohorts={"other": {"data": "other.npz", "nominal_patients": 40}})
    propose(hospital.home, study.id, "other", 1, NOW)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_what_cannot_be_approved_says_what_to_do(hospital: Hospital) -> None:
    study = measured()
    hospital.offer(study)
    for cohort, runs, now, said in (
        ("gone", 1, NOW, "name one of chest"),
        (None, 0, NOW, "--runs: 0 is not between 1"),
        (None, 1001, NOW, "--runs"),
        (None, 1, NOW + 1e6, "has expired"),
    ):
        with pytest.raises(InputError, match=said):
            propose(hospital.home, study.id, cohort, runs, now)
    hospital.set(name="nord")
    with pytest.raises(InputError, match="was offered to north, south"):
        propose(hospital.home, study.id, None, 1, NOW)


def test_a_crash_after_the_promise_leaves_a_study_that_may_not_run(hospital: Hospital, monkeypatch: pytest.MonkeyPatch) -> None:
    study = measured()
    signed = hospital.offer(study)

    def full_disk(*_: object) -> None:
        raise StorageError("disk full")

    monkeypatch.setattr(client.approving, "write", full_disk)
    with pytest.raises(StorageError):
        hospital.approve(study)
    assert len(promised(hospital)) == 2
    with pytest.raises(RefusedError, match="is not approved"):
        hospital.permit(study, signed)
    monkeypatch.undo()
    rows = len(open_ledger(hospital.home.folder).rows())
    hospital.approve(study)
    assert len(open_ledger(hospital.home.folder).rows()) == rows, "the promise stood already"
    hospital.permit(study, signed)


def test_a_rejection_is_a_signed_record_too(hospital: Hospital) -> None:
    study = measured()
    hospital.offer(study)
    record = reject(hospital.home, study.id, "IT", NOW)
    assert isinstance(record, ApprovalRecord) and (record.decision, record.runs, record.epsilon_total) == ("rejected", 0, None)
    assert not hospital.home.ledger.exists(), "nothing to take back"
