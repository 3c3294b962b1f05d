# SPDX-License-Identifier: Apache-2.0
"""Every rule of site.yaml against a study that breaks just that one."""

import time
from pathlib import Path
from typing import Any

import pytest

from client.policy import is_open, problems
from client.site_config import SiteConfig
from common.protocol import RefusalCode
from tests.client.offered import MEASURED, Hospital, hospital_study


def config(folder: Path, **changes: Any) -> SiteConfig:
    hospital = Hospital.make(folder / "home")
    for part, values in changes.items():
        hospital.change(part, **values) if isinstance(values, dict) else hospital.set(**{part: values})
    return SiteConfig.read(hospital.home.config)


def test_a_study_that_keeps_every_rule(tmp_path: Path) -> None:
    assert problems(config(tmp_path), hospital_study(**{"evaluation.private": MEASURED}), "chest") == []


@pytest.mark.parametrize(
    ("study", "policy", "said"),
    [
        ({}, {"allow": {"tasks": ["multiclass"]}}, "allow.tasks does not have binary"),
        ({}, {"allow": {"models": ["resnet18"]}}, "allow.models does not have cnn"),
        ({"evaluation.private": MEASURED}, {"metrics_may_leave": []}, "metrics_may_leave does not have it"),
        ({"privacy.epsilon": 8.001}, {}, "ε=8.001 on training, limits.epsilon_per_account is 8"),
        ({"evaluation.private": {"epsilon": 9.0}}, {}, "ε=9 on measuring"),
        ({"privacy.delta": 1e-5}, {"limits": {"delta": 1e-6}}, "δ is 1e-05, limits.delta is 1e-06"),
        ({}, {"limits": {"min_patients": 51}}, "nominal size of 50, limits.min_patients is 51"),
        ({"privacy": {"unit": "none"}}, {}, "has no privacy, and allow.unprotected_studies does not have its id"),
    ],
)
def test_each_rule_forbids_what_breaks_it(tmp_path: Path, study: dict[str, Any], policy: dict[str, Any], said: str) -> None:
    ((code, text),) = problems(config(tmp_path, **policy), hospital_study(**study), "chest")
    assert code is RefusalCode.POLICY_REFUSED and said in text


def test_rules_that_are_just_kept(tmp_path: Path) -> None:
    policy = {"limits": {"delta": 1e-5, "min_patients": 50}, "metrics_may_leave": [], "allow": {"tasks": ["binary"], "models": ["cnn"]}}
    assert problems(config(tmp_path, **policy), hospital_study(**{"privacy.epsilon": 8.0}), "chest") == []


def test_without_privacy_only_by_id(tmp_path: Path) -> None:
    study = hospital_study("none")
    assert problems(config(tmp_path, allow={"unprotected_studies": [study.id]}), study, "chest") == []
    other = study.with_changes({"name": "another"})
    assert problems(config(tmp_path / "home", allow={"unprotected_studies": [study.id]}), other, "chest") != []


def test_a_study_asks_for_more_patients_than_the_public_number(tmp_path: Path) -> None:
    """The code never depends on how many there really are."""
    ((code, _),) = problems(config(tmp_path), hospital_study(**{"data.min_patients": 51}), "chest")
    assert code is RefusalCode.NOT_READY
    ((code, text),) = problems(config(tmp_path / "home"), hospital_study(), "gone")
    assert code is RefusalCode.NOT_READY and "cohorts does not have gone" in text


def test_everything_wrong_is_said_at_once(tmp_path: Path) -> None:
    policy = {"allow": {"tasks": ["multiclass"], "models": ["vgg16"]}, "limits": {"min_patients": 60, "epsilon_per_account": 1.0}}
    assert len(problems(config(tmp_path, **policy), hospital_study(), "chest")) == 4


def test_the_schedule_is_local_time(tmp_path: Path) -> None:
    night = config(tmp_path, limits={"schedule": "18:00-06:00"})
    for hour, open_then in ((17, False), (18, True), (23, True), (5, True), (6, False), (12, False)):
        assert is_open(night, time.mktime((2026, 3, 2, hour, 0, 0, 0, 0, -1))) is open_then
    assert is_open(config(tmp_path / "home"), 0.0)
