# SPDX-License-Identifier: Apache-2.0
"""Traps that every engine has to stay out of, through the one call `private_step`."""

import pytest
import torch
from torch import Tensor, nn

from common.errors import InputError
from common.privacy.bookkeeping.bounds import float_slack
from common.privacy.bookkeeping.certificate import Certificate
from common.privacy.calibration import plan_privacy
from common.privacy.engines import make_stepper
from common.privacy.generator import SystemGenerator
from common.privacy.grid import relative_sensitivity
from common.privacy.step import MicroBatch, PrivateStepper
from common.study import PatientPrivacy
from tests.support.mechanism import ENGINES

SIZE = 5


def one_step(engine: str, model: nn.Module, loss, learning_rate: float = 1.0) -> PrivateStepper:
    optimiser = torch.optim.SGD(model.parameters(), lr=learning_rate)
    return make_stepper(engine, model, optimiser, loss, clipping_norm=1.0, noise_multiplier=0.0, divisor=1.0, generator=SystemGenerator())


def linear() -> nn.Module:
    model = nn.Sequential(nn.Linear(SIZE, 1, bias=False), nn.Flatten(0))
    nn.init.zeros_(model[0].weight)
    return model


def batch(inputs: Tensor) -> MicroBatch:
    rows = len(inputs)
    return MicroBatch(inputs, torch.ones(rows), torch.arange(rows), torch.ones(rows), rows)


@pytest.mark.parametrize("engine", ENGINES)
def test_a_loss_that_changes_its_shape_later_is_refused(engine: str) -> None:
    """[B, 1] against [B] broadcasts to [B, B] and voids clipping; also when it comes after a first good step."""
    shapes = [(-1,), (-1,), (-1,), (-1,)]

    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        return (outputs * targets).reshape(shapes[0])

    model = linear()
    stepper = one_step(engine, model, loss)
    stepper.private_step([batch(torch.ones(3, SIZE))])
    shapes[0] = (-1, 1)
    before = model[0].weight.detach().clone()
    with pytest.raises(InputError, match="one number a row"):
        stepper.private_step([batch(torch.ones(3, SIZE))])
    assert torch.equal(model[0].weight, before)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("poison", [float("nan"), float("inf"), 1e30])
def test_a_patient_that_is_not_finite_is_left_out(engine: str, poison: float) -> None:
    inputs = torch.zeros(3, SIZE)
    inputs[:, 0] = torch.tensor([0.5, poison, 0.25])
    model = linear()
    report = one_step(engine, model, lambda outputs, targets: outputs * targets).private_step([batch(inputs)])
    assert report.non_finite_count == 1
    assert model[0].weight[0, 0].item() == pytest.approx(-0.75, rel=1e-5)


def test_a_sum_that_is_wrong_has_no_certificate() -> None:
    torch.manual_seed(0)
    weight = nn.Parameter(torch.zeros(40, 60))
    left, right = torch.randn(30, 40), torch.randn(30, 60) / 100
    right /= (left.t() @ right).norm()
    exact = (left.double().t() @ right.double()).float()
    for error, accepted in ((1e-5, True), (0.5, False)):
        certificate = Certificate(SystemGenerator())
        certificate.add(weight, left, right)
        wrong = exact.clone()
        wrong[3, 7] += error
        assert certificate.accepts({weight: wrong}, 1.0) is accepted


@pytest.mark.parametrize("engine", ENGINES)
def test_the_plan_pays_for_the_float_error_of_its_engine(engine: str) -> None:
    plan = plan_privacy(PatientPrivacy(engine=engine), 0.1, 20, 50_000)
    slack = float_slack(50_000) if engine == "bookkeeping" else 0.0
    assert plan.noise_multiplier / plan.accounted_noise_multiplier == pytest.approx(relative_sensitivity(50_000) + slack, rel=1e-9)
    assert engine == "opacus" or slack > 1e-3
