# SPDX-License-Identifier: Apache-2.0
"""Every default model takes a private step, equal to a loop over its patients, with a registered rule for each layer."""

import pytest
import torch
from opacus.grad_sample import GradSampleModule
from torch import Tensor, nn
from torch.nn import functional

from common.models.base import MedicalModel
from common.models.registry import build_model
from common.privacy import grad_samplers
from common.privacy.bookkeeping.gradients import RULES
from common.privacy.engines import ENGINES, make_stepper
from common.privacy.generator import SystemGenerator
from common.privacy.model_check import layer_problems
from common.privacy.step import MicroBatch
from common.study import MODEL_NAMES, TABLE_MODELS, Study
from tests.common.models.studies import random_inputs
from tests.support.tables import table_data

NORM, DIVISOR = 0.01, 2.0


def model_and_inputs(name: str) -> tuple[MedicalModel, Tensor]:
    data = table_data() if name in TABLE_MODELS else {"image_size": 64}
    study = Study.model_validate({"name": "step", "privacy": {}, "model": {"name": name}, "data": data})
    model = build_model(study)
    inputs = random_inputs(model, study, 2)
    torch.manual_seed(0)
    for parameter in model.parameters():  # a head from zero would hide the layers before it
        if parameter.requires_grad and not parameter.any():
            nn.init.normal_(parameter, std=0.1)
    return model, inputs


def row_loss(outputs: Tensor, targets: Tensor) -> Tensor:
    return functional.binary_cross_entropy_with_logits(outputs, targets, reduction="none")


def reference(model: MedicalModel, inputs: Tensor, targets: Tensor) -> Tensor:
    """Sum of the two patients' clipped gradients by plain autograd, flat."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    total = torch.zeros(sum(p.numel() for p in parameters))
    for row in range(len(inputs)):
        loss = row_loss(model(inputs[row : row + 1]), targets[row : row + 1]).sum()
        flat = torch.cat([g.flatten() for g in torch.autograd.grad(loss, parameters)])
        total += flat * min(1.0, NORM / flat.norm().item())
    return total


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", MODEL_NAMES)
def test_one_private_step(name: str, engine: str) -> None:
    model, inputs = model_and_inputs(name)
    targets = torch.tensor([0.0, 1.0])
    expected = reference(model.train(), inputs, targets)
    stepped: list[Tensor] = []
    stepper = make_stepper(
        engine,
        model,
        torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.0),
        row_loss,
        clipping_norm=NORM,
        noise_multiplier=0.0,
        divisor=DIVISOR,
        generator=SystemGenerator(),
        after_noise=lambda: stepped.extend(p.grad.flatten().clone() for p in model.parameters() if p.requires_grad),
        grid_bits=30,
    )
    report = stepper.private_step([MicroBatch(inputs, targets, torch.arange(2), torch.ones(2), 2)])
    ours = torch.cat(stepped) * DIVISOR
    assert (report.patient_count, report.non_finite_count) == (2, 0)
    assert (ours - expected).norm() <= 2e-3 * expected.norm()
    assert all(value.isfinite().all() for value in model.state_dict().values())


@pytest.mark.parametrize("name", MODEL_NAMES)
def test_no_layer_falls_to_functorch(name: str) -> None:
    grad_samplers.register()
    model, _ = model_and_inputs(name)
    assert layer_problems(model, RULES) == []
    trained = [layer for layer in model.modules() if any(p.requires_grad for p in layer.parameters(recurse=False))]
    assert trained and all(type(layer) in GradSampleModule.GRAD_SAMPLERS for layer in trained)
