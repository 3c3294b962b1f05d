# SPDX-License-Identifier: Apache-2.0
"""What leaves a site must not tell how many patients it has: rounds in which nobody is drawn are noise and nothing else.

Such a round is the noise of the study's plan over the public divisor. Noise multiplier, divisor or weight taken from the true count
would make sites of different sizes look different. A test fails by chance less than once in 10^9.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import chi2

from client.site import Site
from client.workbench import StudyBench
from common.models.registry import initial_state
from common.privacy.calibration import plan_privacy
from common.protocol import Instruction
from common.study import PatientPrivacy, Study
from tests.support.studies import PRIVATE, small

CERTAIN = 1e-9
NOMINAL = 60  # as in the fixture


@pytest.fixture(scope="module")
def study() -> Study:
    """A rate at which nobody is ever drawn."""
    return small(PRIVATE, **{"training.sampling_rate": 1e-7, "training.learning_rate": 1.0})


@pytest.mark.parametrize("patients", [20, 79])
def test_the_noise_is_that_of_the_whole_study_over_the_public_divisor(
    study: Study, patients: int, make_site: Callable[..., Path], instruct: Callable[..., Instruction]
) -> None:
    site = Site.open(make_site(study, patients=patients))
    update = StudyBench(study, torch.device("cpu")).train(site, instruct(study))
    moved = np.concatenate([value.ravel() for value in update.delta.values()]).astype(np.float64)
    assert isinstance(study.privacy, PatientPrivacy)
    size = sum(value.size for value in initial_state(study).values())
    plan = plan_privacy(study.privacy, 1e-7, study.total_steps, size)
    sd = plan.noise_multiplier * study.privacy.clipping_norm / (1e-7 * NOMINAL) * np.sqrt(study.training.local_steps)
    low, high = chi2.ppf([CERTAIN / 2, 1 - CERTAIN / 2], size) / size
    assert low < np.mean(np.square(moved / sd)) < high


def test_what_leaves_has_the_same_size_and_names_for_all(
    study: Study, make_site: Callable[..., Path], instruct: Callable[..., Instruction]
) -> None:
    shapes = []
    for patients in (20, 79):
        site = Site.open(make_site(study, f"site-{patients}", patients=patients))
        records = StudyBench(study, torch.device("cpu")).train(site, instruct(study)).to_records()
        facts = {name: value for name, value in records.config_records["wardround"].items() if name != "site"}
        tensors = {name: len(array.data) for name, array in records.array_records["model"].items()}
        shapes.append((facts, tensors, dict(records.metric_records["metrics"])))
    assert shapes[0] == shapes[1]
