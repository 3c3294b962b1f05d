# SPDX-License-Identifier: Apache-2.0
"""The models and steps that the privacy benchmark compares: one model, one batch, several ways to take a step on it."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

from common.models.registry import build_model
from common.privacy.engines import make_stepper
from common.privacy.generator import SystemGenerator
from common.privacy.step import MicroBatch
from common.study import Study

Step = Callable[[], object]
CLIPPING_NORM, NOISE_MULTIPLIER, LEARNING_RATE = 1.0, 1.0, 1e-4


@dataclass(frozen=True)
class Case:
    """One model on images of `size`, `batch` patients a step in micro-batches of `microbatch`."""

    name: str
    model: str
    size: int
    batch: int
    microbatch: int
    required: float
    stretch: float


CASES = {
    case.name: case
    for case in (
        Case("small CNN 28x28, batch 64", "small", 28, 64, 64, 2.0, 1.5),
        Case("small CNN 64x64, batch 256", "small", 64, 256, 256, 2.0, 1.5),
        Case("ResNet-18-GN 64x64, 256 in 32s", "resnet18", 64, 256, 32, 1.9, 1.5),
        Case("private head, frozen ResNet-18", "head", 64, 256, 64, 1.15, 1.05),
        Case("cnn of the studies 32x32, batch 64", "cnn", 32, 64, 64, 2.0, 1.5),
    )
}
MEMORY_CASE = Case("ResNet-18-GN 64x64, batch 32", "resnet18", 64, 32, 32, 1.2, 1.0)


class SmallCnn(nn.Module):
    """60,706 parameters: four 3x3 convolutions with GroupNorm and ReLU, each but the first halving the size, and a linear head."""

    def __init__(self) -> None:
        super().__init__()
        widths = (1, 16, 32, 64, 64)
        stages = [
            nn.Sequential(nn.Conv2d(inputs, outputs, 3, stride=1 if inputs == 1 else 2, padding=1), nn.GroupNorm(4, outputs), nn.ReLU())
            for inputs, outputs in pairwise(widths)
        ]
        self.stages = nn.Sequential(*stages)
        self.head = nn.Linear(64, 2)

    def forward(self, images: Tensor) -> Tensor:
        """Images [B, 1, H, W] to two logits [B, 2]."""
        return self.head(self.stages(images).mean((2, 3)))


def build(name: str) -> nn.Module:
    """A model by its name in `Case`."""
    torch.manual_seed(0)
    if name == "small":
        return SmallCnn()
    study = Study.model_validate({"name": "bench", "privacy": "none", "model": {"name": "cnn" if name == "cnn" else "resnet18"}})
    model = build_model(study)
    if name == "head":
        for parameter in model.parameters():
            parameter.requires_grad_(False)
        for parameter in list(model.modules())[-1].parameters():
            parameter.requires_grad_(True)
    return model


def row_loss(outputs: Tensor, targets: Tensor) -> Tensor:
    """One loss a row."""
    if outputs.ndim == 2:
        return functional.cross_entropy(outputs, targets.long(), reduction="none")
    return functional.binary_cross_entropy_with_logits(outputs, targets, reduction="none")


def microbatches(case: Case) -> list[MicroBatch]:
    """Random images, one a patient."""
    torch.manual_seed(1)
    rows = case.microbatch
    return [
        MicroBatch(
            torch.randn(rows, 1, case.size, case.size), torch.rand(rows).round(), torch.arange(rows), torch.ones(rows), rows, views=1
        )
        for _ in range(case.batch // rows)
    ]


def plain_step(case: Case) -> Step:
    """The same step without privacy: autograd, sum of micro-batches, SGD."""
    model, batches = build(case.model).train(), microbatches(case)
    optimiser = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=LEARNING_RATE)

    def step() -> None:
        optimiser.zero_grad()
        for batch in batches:
            (row_loss(model(batch.inputs), batch.targets).sum() / case.batch).backward()
        optimiser.step()

    return step


def private_step(case: Case, engine: str) -> Step:
    """The product's step: clipping, integer noise and update included."""
    model, batches = build(case.model), microbatches(case)
    optimiser = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=LEARNING_RATE)
    settings = {"clipping_norm": CLIPPING_NORM, "noise_multiplier": NOISE_MULTIPLIER, "divisor": float(case.batch)}
    stepper = make_stepper(engine, model, optimiser, row_loss, generator=SystemGenerator(), **settings)
    return lambda: stepper.private_step(batches)


def stock_step(case: Case, mode: str) -> Step:
    """Opacus as it comes, `hooks` or `ghost`, with its own noise; rows, not patients."""
    from opacus.grad_sample import GradSampleModule, GradSampleModuleFastGradientClipping
    from opacus.optimizers import DPOptimizer, DPOptimizerFastGradientClipping
    from opacus.utils.fast_gradient_clipping_utils import DPLossFastGradientClipping

    warnings.simplefilter("ignore")
    raw, batches = build(case.model).train(), microbatches(case)
    optimiser = torch.optim.SGD([p for p in raw.parameters() if p.requires_grad], lr=LEARNING_RATE)
    settings = {"noise_multiplier": NOISE_MULTIPLIER, "max_grad_norm": CLIPPING_NORM, "expected_batch_size": case.batch}
    if mode == "hooks":
        model, private = GradSampleModule(raw, loss_reduction="sum"), DPOptimizer(optimiser, loss_reduction="sum", **settings)
        criterion = _StockLoss()
    else:
        model = GradSampleModuleFastGradientClipping(raw, max_grad_norm=CLIPPING_NORM, use_ghost_clipping=True, loss_reduction="sum")
        private = DPOptimizerFastGradientClipping(optimiser, loss_reduction="sum", **settings)
        criterion = DPLossFastGradientClipping(model, private, _StockLoss(), loss_reduction="sum")

    def step() -> None:
        for number, batch in enumerate(batches):
            private.signal_skip_step(do_skip=number < len(batches) - 1)
            criterion(model(batch.inputs), batch.targets).backward()
            private.step()
            private.zero_grad()

    return step


class _StockLoss(nn.Module):
    """`row_loss` in the form that Opacus' ghost clipping takes."""

    reduction = "sum"

    def forward(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return row_loss(outputs, targets) if self.reduction == "none" else row_loss(outputs, targets).sum()


def step_of(case: Case, way: str) -> Step:
    """A step by the name of its way: plain, bookkeeping, opacus (ours on hooks), stock hooks, stock ghost."""
    if way == "plain":
        return plain_step(case)
    if way.startswith("stock "):
        return stock_step(case, way.removeprefix("stock "))
    return private_step(case, way)
