# SPDX-License-Identifier: Apache-2.0
"""What a survey is, what it releases, what it costs: public numbers, held against closed forms."""

import math
from fractions import Fraction

import numpy as np
import pytest
from pydantic import ValidationError

from common.privacy.accountant import discrete_laplace, epsilon_pld, event_to_json, gaussian, poisson_gaussian
from common.privacy.generator import SystemGenerator
from common.study import Study
from common.survey_plan import WEIGHT, SurveyPlan, is_survey_event, survey_plan, survey_study
from tests.support.studies import PRIVATE, small


def plan_of(**survey: object) -> SurveyPlan:
    plan = survey_plan(survey_study(small(PRIVATE, survey=survey)))
    assert plan is not None
    return plan


def test_a_study_without_a_survey_keeps_its_id_and_says_nothing_of_one() -> None:
    plain = small(PRIVATE)
    assert "survey" not in plain.canonical_json and "purpose" not in plain.canonical_json
    assert survey_plan(plain) is None
    assert survey_plan(small(PRIVATE, survey={"epsilon": 1.0})) is None, "a study that is trained is no survey"


def test_the_survey_of_a_study_is_a_study_of_its_own() -> None:
    study = small(PRIVATE, survey={"epsilon": 0.25}, **{"data.min_patients": 30})
    survey = survey_study(study)
    assert survey.id != study.id
    assert Study.from_canonical_json(survey.canonical_json).canonical_json == survey.canonical_json
    assert (survey.purpose, survey.privacy.epsilon, survey.privacy.delta) == ("survey", 0.25, PRIVATE["delta"])
    assert survey.data.model_copy(update={"min_patients": 30}) == study.data
    assert (survey.data.min_patients, survey.survey.min_patients) == (2, 30), "nobody is refused by a true count"
    assert survey_study(survey) == survey


def test_training_settings_do_not_change_what_the_sites_are_asked() -> None:
    one, other = (survey_study(small(PRIVATE, **{"training.learning_rate": rate, "federation.rounds": rate * 10})) for rate in (1, 2))
    assert one.id == other.id


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"purpose": "survey"}, "a survey has tables"),
        ({"survey": {"images_per_patient": [2, 3]}}, "the first bin begins at 1"),
        ({"survey": {"images_per_patient": [1, 1]}}, "ascending"),
        ({"survey": {"subgroups": {"sex": []}}}, "different categories"),
        ({"survey": {"features": {"age": {"low": 1, "high": 1}}}}, "not above low"),
        ({"survey": {"features": {"age": {"low": 0, "high": 1}}, "subgroups": {"age": ["1"]}}}, "stands among subgroups too"),
    ],
)
def test_a_survey_that_does_not_fit_is_refused(changes: dict[str, object], reason: str) -> None:
    with pytest.raises(ValidationError, match=reason):
        small(PRIVATE, **changes)


def test_tables_are_public_and_epsilon_is_split_over_all_of_them() -> None:
    plan = plan_of(epsilon=0.7, subgroups={"sex": ["f", "m"], "scanner": ["a"]}, features={"age": {"low": 0, "high": 100, "bins": 4}})
    assert plan.shapes == {
        "patients": (1,),
        "images": (5,),
        "classes": (2,),
        "intensity": (16,),
        "subgroup/scanner": (2,),
        "subgroup/sex": (3,),
        "feature/age": (5,),
    }
    assert [table.cells for table in plan.tables if table.kind == "feature"] == [
        ("0 to 25", "25 to 50", "50 to 75", "75 to 100", "missing")
    ]
    spent = Fraction(plan.noise) * WEIGHT * 7
    assert Fraction(7, 10) - Fraction(1, 10**8) < spent <= Fraction(0.7), "never above ε, and all but a part in 10^8 is used"
    assert plan.standard_error == pytest.approx(math.sqrt(2) / 0.1, rel=0.01), "of Laplace noise with scale 10 patients"


def test_a_study_of_one_image_a_patient_or_of_tables_has_fewer_tables() -> None:
    study = small(PRIVATE, survey={"intensity_bins": 0}, **{"data.one_image_one_patient": True})
    plan = survey_plan(survey_study(study))
    assert plan is not None and list(plan.shapes) == ["patients", "classes"]
    assert plan.noise == pytest.approx(0.25 / WEIGHT)


def test_the_accountant_is_told_the_whole_release() -> None:
    plan = plan_of(epsilon=0.5)
    assert event_to_json(plan.event()) == (
        f'{{"count":4,"event":{{"noise_parameter":{plan.noise!r},"sensitivity":256,"type":"DiscreteLaplaceDpEvent"}},'
        '"type":"SelfComposedDpEvent"}'
    )
    assert epsilon_pld([plan.event()], 1e-9) == pytest.approx(0.5, rel=1e-3)
    assert epsilon_pld([plan.event()], 1e-9) <= 0.5


def test_weight_spread_over_cells_costs_no_more_than_weight_in_one() -> None:
    """The event stands for a patient in one cell; two cells with half of the weight each are two smaller shifts."""
    noise = 1.0 / WEIGHT
    for delta in (1e-6, 1e-3, 0.1):
        one = epsilon_pld([discrete_laplace(noise, WEIGHT)], delta)
        halves = epsilon_pld([discrete_laplace(noise, WEIGHT // 2)] * 2, delta)
        assert halves <= one + 1e-4


def test_gaussian_noise_is_calibrated_over_all_tables() -> None:
    plan = plan_of(epsilon=0.5, mechanism="gaussian", features={f"f{number}": {"low": 0, "high": 1} for number in range(16)})
    assert epsilon_pld([gaussian(plan.noise, 20)], 1e-5 * 0.99) == pytest.approx(0.5, rel=5e-3)
    assert epsilon_pld([plan.event()], 1e-5 * 0.99) <= 0.5
    assert plan.standard_error == plan.noise < plan_of(epsilon=0.5, features=plan.survey.model_dump()["features"]).standard_error


def test_a_study_without_privacy_has_a_survey_with_privacy() -> None:
    survey = survey_study(small("none"))
    assert survey.is_private
    with pytest.raises(ValidationError, match="a survey has tables, privacy"):
        survey.with_changes({"privacy": "none"})


@pytest.mark.parametrize(
    ("event", "is_survey"),
    [
        (plan_of().event(), True),
        (plan_of(mechanism="gaussian").event(), True),
        (discrete_laplace(0.5), False),
        (poisson_gaussian(1.0, 2.0, 3), False),
    ],
)
def test_a_surveys_charge_is_known_by_its_mechanism(event: object, is_survey: bool) -> None:
    assert is_survey_event(event_to_json(event)) is is_survey


@pytest.mark.parametrize("mechanism", ["discrete-laplace", "gaussian"])
def test_the_noise_that_is_drawn_has_the_deviation_that_is_said(mechanism: str) -> None:
    plan = plan_of(epsilon=5.0, mechanism=mechanism, intensity_bins=64)
    table = next(one for one in plan.tables if one.kind == "intensity")
    drawn = np.concatenate([plan.noise_for(table, SystemGenerator()) for _ in range(30)]) / WEIGHT
    assert drawn.std() == pytest.approx(plan.standard_error, rel=0.15)
    assert abs(drawn.mean()) < 5 * plan.standard_error / math.sqrt(len(drawn))
