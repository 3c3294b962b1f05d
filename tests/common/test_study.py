# SPDX-License-Identifier: Apache-2.0
import hashlib
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from common.evaluation_plan import evaluation_plan
from common.privacy.accountant import epsilon_rdp
from common.study import Data, PatientPrivacy, Study

PRIVATE: dict[str, Any] = {"name": "a", "privacy": {"epsilon": 3}}


def study(**changes: Any) -> Study:
    return Study.model_validate(PRIVATE | changes)


def refusal(**changes: Any) -> str:
    with pytest.raises(ValidationError) as caught:
        study(**changes)
    return str(caught.value)


def test_id_is_the_sha256_of_the_canonical_json() -> None:
    text = study().canonical_json
    assert study().id == hashlib.sha256(text.encode()).hexdigest()
    assert text == json.dumps(json.loads(text), sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def test_canonical_json_writes_out_every_default() -> None:
    content = json.loads(study().canonical_json)
    assert content["federation"]["rounds"] == 10
    assert content["privacy"]["unit"] == "patient"
    assert content["data"]["phantom"] == {"patients": 480, "scanners": 4}


def test_the_same_meaning_has_the_same_id() -> None:
    written_out = study(task="binary", seed=0, federation={"rounds": 10}, privacy={"unit": "patient", "epsilon": 3.0, "delta": 1e-6})
    assert written_out.id == study().id
    assert Study.model_validate({"privacy": {"epsilon": 3}, "name": "a"}).id == study().id


def test_both_spellings_of_no_privacy_are_one_study() -> None:
    assert study(privacy="none").id == study(privacy={"unit": "none"}).id
    assert not study(privacy="none").is_private


@pytest.mark.parametrize("key", ["seed", "federation.rounds", "training.local_steps", "privacy.views_per_patient", "data.phantom.scanners"])
def test_every_change_is_another_study(key: str) -> None:
    assert study().with_changes({key: 7}).id != study().id


def test_privacy_has_no_default() -> None:
    with pytest.raises(ValidationError, match="privacy"):
        Study.model_validate({"name": "a"})


def test_a_study_cannot_be_changed() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        study().name = "b"


def test_with_changes_checks_the_result() -> None:
    with pytest.raises(ValidationError):
        study().with_changes({"federation.rounds": 0})
    assert not study().with_changes({"privacy": "none"}).is_private


def test_total_steps() -> None:
    assert study(federation={"rounds": 7}, training={"local_steps": 3}).total_steps == 21


@given(st.floats(0.01, 100), st.integers(1, 500), st.lists(st.text(min_size=1), min_size=2, max_size=4, unique=True), st.text(max_size=50))
def test_a_study_survives_the_wire(epsilon: float, rounds: int, labels: list[str], description: str) -> None:
    sent = study(
        task="multiclass",
        data={"labels": labels},
        federation={"rounds": rounds},
        description=description,
        privacy={"epsilon": epsilon},
    )
    received = Study.from_canonical_json(sent.canonical_json)
    assert received == sent
    assert received.id == sent.id


@pytest.mark.parametrize("value", [0, -1, float("nan"), float("inf"), 101])
def test_impossible_epsilons_are_refused(value: float) -> None:
    assert "epsilon" in refusal(privacy={"epsilon": value})


def test_delta_is_never_above_1e_minus_5() -> None:
    assert PatientPrivacy(delta=1e-5).delta == 1e-5
    assert "delta" in refusal(privacy={"delta": 1.01e-5})


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"privacy": {"mode": "distributed"}}, "secure aggregation"),
        ({"privacy": {"epsilon": 1, "epsilom": 1}}, "epsilom"),
        ({"data": {"labels": ["a", "b", "c"]}}, "two labels"),
        ({"data": {"labels": ["a", "a"]}}, "stands twice"),
        ({"data": {"label_values": [1, 1]}}, "2 different numbers"),
        ({"data": {"label_values": [0, 1, 1]}}, "2 different numbers"),
        ({"data": {"channels": 3}}, "grey images"),
        ({"model": {"name": "scattering"}, "training": {"augmentation": {"flip": True}}}, "computed once"),
        ({"model": {"name": "resnet18", "freeze": "backbone"}}, "add pretrained"),
        ({"model": {"pretrained": {"path": "w", "sha256": "0" * 64}}}, "no pretrained weights"),
        ({"model": {"name": "resnet18", "pretrained": {"path": "w", "sha256": "A" * 64}}}, "sha256"),
        ({"federation": {"strategy": "fedprox"}}, "proximal_mu"),
        ({"federation": {"proximal_mu": 0.1}}, "proximal_mu"),
        ({"federation": {"weights": {"north": 0}}}, "weights"),
        ({"training": {"optimiser": "adam", "momentum": 0.9}}, "momentum"),
        ({"name": "With Space"}, "name"),
    ],
)
def test_what_does_not_fit_is_refused(changes: dict[str, Any], words: str) -> None:
    assert words in refusal(**changes)


@pytest.mark.parametrize(("test", "validation", "fits"), [(0.8, 0.3, False), (0.6, 0.4, False), (0.6, 0.31, False), (0.6, 0.3, True)])
def test_somebody_is_left_for_training(test: float, validation: float, fits: bool) -> None:
    fractions = {"test_fraction": test, "validation_fraction": validation}
    if fits:
        assert Data(**fractions).validation_fraction == validation
    else:
        assert "sum of at most 0.9" in refusal(data=fractions)


def test_problems_of_one_study_are_raised_together() -> None:
    text = refusal(data={"labels": ["a", "b", "c"], "channels": 3})
    assert "two labels" in text
    assert "grey images" in text


def test_features_are_stored_for_fixed_models_only() -> None:
    weights = {"path": "w", "sha256": "0" * 64}
    assert study(model={"name": "scattering"}).has_stored_features
    assert study(model={"name": "resnet18", "pretrained": weights, "freeze": "backbone"}).has_stored_features
    assert not study().has_stored_features
    assert Data().labels == ("normal", "opacity")


def test_the_private_evaluation_is_on_for_private_studies_and_can_be_switched_off() -> None:
    assert study().evaluation.private is not None
    plan = evaluation_plan(study())
    assert plan is not None
    assert (plan.epsilon, plan.rounds, plan.shape, plan.noise_parameter) == (1.0, (10,), (1, 2, 16), 1.0)
    assert evaluation_plan(study(evaluation={"private": "none"})) is None
    assert evaluation_plan(study(privacy="none")) is None


def test_several_classes_and_several_measurements_divide_epsilon() -> None:
    private = {"every": 5, "held_out_patients": 10_000, "epsilon": 6.0}
    plan = evaluation_plan(study(task="multiclass", data={"labels": ["a", "b", "c"]}, evaluation={"private": private}))
    assert plan is not None
    assert (plan.rounds, plan.shape, plan.noise_parameter) == ((5, 10), (3, 2, 16), 1.0)
    assert epsilon_rdp([plan.event()] * 2, 1e-9) == 6.0


@pytest.mark.parametrize(
    ("private", "problem"),
    [
        ({"every": 1}, "needs held_out_patients"),
        (
            {"every": 1, "held_out_patients": 100},
            "10 measurements at ε=1 together would each have a standard error of .*; use every: 0",
        ),
        ({"bins": 33}, "less than or equal to 32"),
        ({"epsilon": 0}, "greater than or equal to 0.01"),
        ({"edges": [0.5]}, "Extra inputs"),
    ],
)
def test_a_private_evaluation_that_would_drown_in_noise_is_refused(private: dict[str, Any], problem: str) -> None:
    with pytest.raises(ValidationError, match=problem):
        study(evaluation={"private": private})
    if "every" in private:
        study(evaluation={"private": private}, privacy="none")  # nothing is released there


def test_measuring_often_is_allowed_where_it_is_predicted_to_work() -> None:
    private = {"every": 5, "held_out_patients": 500}
    assert evaluation_plan(study(evaluation={"private": private})).rounds == (5, 10)
    assert study(evaluation={"private": {}}).id != study(evaluation={"private": private}).id
    written_out = study(evaluation={"private": "none"})
    assert Study.from_canonical_json(written_out.canonical_json) == written_out
