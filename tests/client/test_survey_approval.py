# SPDX-License-Identifier: Apache-2.0
"""A survey at a hospital: what IT is shown, what is promised, what policy refuses, what is recovered."""

from pathlib import Path

import numpy as np
import pytest

from client.egress import release
from client.egress_audit import audit
from client.egress_rules import Incoming
from client.recovering import departures, planned
from client.site import Site, open_ledger
from client.study_words import in_words
from client.surveying import SurveyBench
from common.errors import InputError, RefusedError
from common.federation import StartRecord
from common.privacy.charge_book import Line
from common.privacy.charges import State
from common.protocol import Instruction, Surveyed, weights_sha256
from common.riders import with_head
from common.signed import Signed
from common.study import Study
from common.survey_plan import survey_plan, survey_study
from tests.client.offered import NOW, Hospital, hospital_study

NO_WEIGHTS = weights_sha256({})


@pytest.fixture
def hospital(tmp_path: Path) -> Hospital:
    return Hospital.make(tmp_path / "home", survey_epsilon=0.5)


def surveyed(**survey: object) -> Study:
    return survey_study(hospital_study(survey={"epsilon": 0.5, **survey}))


def offer(hospital: Hospital, study: Study) -> Signed:
    return hospital.offer(study, initial_weights_sha256=NO_WEIGHTS)


def run_it(hospital: Hospital, study: Study, signed: Signed) -> None:
    """As the daemon does: permit, work, door, sent."""
    permit = hospital.permit(study, signed)
    run_id = StartRecord.model_validate_json(signed.record).run_id
    instruction = Instruction(run_id, study.canonical_json, 0, False, True, {})
    bench, site = SurveyBench(study), Site.open(permit.folder)
    reply = with_head(bench.survey(site, instruction).to_records(), bench.ledger_head(site))
    left = release(hospital.home, Incoming.of(instruction, study), reply, now=NOW)
    assert left["wardround"]["kind"] == "surveyed"
    book = open_ledger(permit.folder)
    for charge in book.charges():
        book.sent(charge.key)


def test_the_survey_is_promised_on_both_lines_and_shown_in_plain_words(hospital: Hospital) -> None:
    from client.approving import propose

    study = surveyed()
    offer(hospital, study)
    words = in_words(propose(hospital.home, study.id, None, 1, NOW))
    plan = survey_plan(study)
    assert plan is not None
    for expected in (
        "Survey for study small",
        "Nothing is trained",
        "how many patients there are",
        "patients by label: normal, opacity",
        "patients by number of images, in 5 bins",
        "grey values of the images, in 16 bins, averaged for each patient",
        f"about ±{plan.standard_error:.1f} patients",
        "ε = 0.500 for every patient",
        "limits.survey_epsilon 0.5",
    ):
        assert expected in words, words
    record = hospital.approve(study)
    assert (record.epsilon_total, record.initial_weights_sha256) == (pytest.approx(0.5, rel=1e-3), NO_WEIGHTS)
    fold = open_ledger(hospital.home.folder).fold()
    assert [fold.earmarks.standing(study.id, line) is not None for line in Line] == [True, True]


def test_a_survey_that_was_approved_is_no_approval_of_the_study_nor_the_reverse(hospital: Hospital) -> None:
    study = hospital_study(survey={"epsilon": 0.5})
    survey, start = survey_study(study), hospital.offer(study)
    signed = offer(hospital, survey)
    hospital.approve(survey)
    with pytest.raises(RefusedError, match="is not approved"):
        hospital.permit(study, start)
    assert hospital.permit(survey, signed).study == survey


def test_the_whole_way_out_leaves_one_line_and_the_record_fits(hospital: Hospital) -> None:
    study = surveyed()
    signed = offer(hospital, study)
    hospital.approve(study)
    run_it(hospital, study, signed)
    found = audit(hospital.home)
    assert found.problems == []
    (line,) = found.lines
    assert (line.kind, line.round, line.epsilon) == ("surveyed", 0, pytest.approx(0.5, rel=1e-3))
    assert {field.name for field in line.fields if field.name.startswith("tables/")} == {
        "tables/patients",
        "tables/images",
        "tables/classes",
        "tables/intensity",
    }
    assert [charge.state for charge in open_ledger(hospital.home.folder).charges()] == [State.SENT, State.SENT]
    assert [one.slot[3] for one in departures(hospital.home, {})] == [Line.TRAINING, Line.HELD_OUT]
    mechanism = planned(hospital.home, study.id, Line.HELD_OUT)
    assert mechanism is not None and mechanism[0] == open_ledger(hospital.home.folder).charges()[0].event_json


@pytest.mark.parametrize(("limit", "reason"), [(0.4, "limits.survey_epsilon is 0.4"), (0.0, "this site answers no survey")])
def test_policy_refuses_a_survey_that_is_too_dear(hospital: Hospital, limit: float, reason: str) -> None:
    hospital.change("limits", survey_epsilon=limit)
    offer(hospital, surveyed())
    with pytest.raises(RefusedError, match=reason):
        hospital.approve(surveyed())


def test_surveys_together_stay_within_their_budget_already_when_they_are_promised(hospital: Hospital) -> None:
    first, second = surveyed(epsilon=0.3), surveyed(epsilon=0.25)
    for study in (first, second):
        offer(hospital, study)
    hospital.approve(first)
    with pytest.raises(RefusedError, match=r"limits\.survey_epsilon"):
        hospital.approve(second)
    hospital.change("limits", survey_epsilon=0.55)
    hospital.approve(second)


def test_policy_that_is_lowered_later_counts_from_the_next_message(hospital: Hospital) -> None:
    study = surveyed()
    signed = offer(hospital, study)
    hospital.approve(study)
    hospital.change("limits", survey_epsilon=0.2)
    with pytest.raises(RefusedError, match="POLICY_REFUSED"):
        hospital.permit(study, signed)


def test_a_column_that_the_cohort_lacks_is_named_before_anything_is_promised(hospital: Hospital) -> None:
    study = surveyed(subgroups={"sex": ["f", "m"]})
    offer(hospital, study)
    with pytest.raises(InputError, match="column sex, which this cohort does not have"):
        hospital.approve(study)
    assert not hospital.home.ledger.exists() or not open_ledger(hospital.home.folder).fold().accounts.names


def test_a_small_cohort_answers_like_any_other(hospital: Hospital) -> None:
    """The study's minimum is held against the noisy count by the coordinator, not against the true one here."""
    study = survey_study(hospital_study(survey={"epsilon": 0.5}, **{"data.min_patients": 45}))
    path = hospital.home.folder / "chest.npz"
    few = {name: values[:12] for name, values in np.load(path).items()}
    np.savez(path, **few)
    signed = offer(hospital, study)
    hospital.approve(study)
    permit = hospital.permit(study, signed)
    run_id = StartRecord.model_validate_json(signed.record).run_id
    reply = SurveyBench(study).survey(Site.open(permit.folder), Instruction(run_id, study.canonical_json, 0, False, True, {}))
    assert isinstance(reply, Surveyed)
