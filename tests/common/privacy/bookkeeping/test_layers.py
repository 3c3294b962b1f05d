# SPDX-License-Identifier: Apache-2.0
"""Clipped sums of the book-keeping engine against a loop over patients with plain autograd: every layer, shape and grouping."""

import itertools

import pytest
import torch
from torch import Tensor, nn

from common.models.layers import WSConv2d
from common.privacy.bookkeeping import ghost, patient_sum
from common.privacy.bookkeeping.gradients import LEAST_CHANNELS
from common.privacy.engines import make_stepper
from common.privacy.generator import SystemGenerator
from common.privacy.step import MicroBatch

DIVISOR = 4.0
CONVOLUTIONS = {
    "same size": {"kernel_size": 3, "padding": 1},
    "stride, no bias": {"kernel_size": 3, "stride": 2, "padding": 1, "bias": False},
    "dilation": {"kernel_size": 3, "padding": 2, "dilation": 2},
    "groups": {"kernel_size": 3, "padding": "same", "groups": 2},
    "depthwise": {"kernel_size": 2, "padding": "valid", "groups": 4, "bias": False},
    "one by one": {"kernel_size": 1},
    "reflected": {"kernel_size": 3, "padding": 1, "padding_mode": "reflect"},
    "all at once": {"kernel_size": 3, "stride": 2, "padding": 2, "dilation": 2, "groups": 2, "padding_mode": "circular"},
}
WIDE = 2 * LEAST_CHANNELS


class OnTokens(nn.Module):
    """A layer in the middle: something trainable before it, so that its input has a gradient, and one number a row after it."""

    def __init__(self, layer: nn.Module, before: nn.Module | None = None) -> None:
        super().__init__()
        self.before = before or nn.Identity()
        self.layer = layer

    def forward(self, inputs: Tensor) -> Tensor:
        outputs = torch.tanh(self.layer(self.before(inputs))).flatten(1)
        return (outputs * torch.arange(outputs.shape[1]).remainder(3).add(1)).sum(1)


class Lookup(nn.Module):
    """Columns of an image as words."""

    def __init__(self, padding_idx: int | None) -> None:
        super().__init__()
        self.table = nn.Embedding(5, 3, padding_idx=padding_idx)

    def forward(self, inputs: Tensor) -> Tensor:
        words = inputs.flatten(1).abs().mul(3).long().clamp_max(4)
        return torch.tanh(self.table(words)).sum((1, 2))


LAYERS: dict[str, tuple[nn.Module, tuple[int, ...]]] = {
    **{f"conv1d {n}": (OnTokens(nn.Conv1d(4, 4, **o)), (4, 9)) for n, o in CONVOLUTIONS.items()},
    **{f"conv2d {n}": (OnTokens(nn.Conv2d(4, 4, **o)), (4, 7, 6)) for n, o in CONVOLUTIONS.items()},
    **{f"wide conv2d {n}": (OnTokens(nn.Conv2d(WIDE, 4, **o)), (WIDE, 7, 6)) for n, o in CONVOLUTIONS.items()},
    **{f"standardised {n}": (OnTokens(WSConv2d(4, 8, **o)), (4, 7, 6)) for n, o in CONVOLUTIONS.items()},
    **{f"wide standardised {n}": (OnTokens(WSConv2d(WIDE, 4, **o)), (WIDE, 6, 6)) for n, o in CONVOLUTIONS.items()},
    **{f"conv3d {n}": (OnTokens(nn.Conv3d(4, 4, **o)), (4, 5, 4, 6)) for n, o in CONVOLUTIONS.items() if "reflect" not in n},
    "transposed": (OnTokens(nn.ConvTranspose2d(4, 6, 3, stride=2, padding=1, output_padding=1)), (4, 4, 5)),
    "transposed groups": (OnTokens(nn.ConvTranspose2d(4, 4, 2, groups=2, dilation=2, bias=False)), (4, 4, 5)),
    "wide transposed": (OnTokens(nn.ConvTranspose2d(4, WIDE, 3, stride=3)), (4, 3, 3)),
    "linear": (OnTokens(nn.Linear(6, 5)), (6,)),
    "linear on places": (OnTokens(nn.Linear(6, 5, bias=False)), (3, 2, 6)),
    "group norm": (OnTokens(nn.GroupNorm(2, 4), nn.Conv2d(4, 4, 1)), (4, 5, 5)),
    "group norm first": (OnTokens(nn.GroupNorm(2, 4)), (4, 5)),
    "layer norm": (OnTokens(nn.LayerNorm((5, 4)), nn.Conv2d(4, 4, 1)), (4, 5, 4)),
    "layer norm without bias": (OnTokens(nn.LayerNorm(4, bias=False)), (3, 4)),
    "instance norm 1d": (OnTokens(nn.InstanceNorm1d(4, affine=True)), (4, 9)),
    "instance norm 2d": (OnTokens(nn.InstanceNorm2d(4, affine=True), nn.Conv2d(4, 4, 1)), (4, 5, 5)),
    "instance norm 3d": (OnTokens(nn.InstanceNorm3d(4, affine=True)), (4, 3, 3, 2)),
    "embedding": (Lookup(None), (2, 3)),
    "embedding with padding": (Lookup(0), (2, 3)),
}
GROUPINGS: dict[str, tuple[list[int], int | None, int]] = {  # patients of the rows, promised views, padding rows
    "one image a patient": ([0, 1, 2, 3], 1, 0),
    "two views and padding": ([0, 0, 1, 1], 2, 4),
    "three views": ([0, 0, 0, 1, 1, 1], 3, 0),
    "out of order": ([1, 0, 1, 2, 2, 2], None, 1),
}


def row_loss(outputs: Tensor, targets: Tensor) -> Tensor:
    return (outputs - targets).square() * 3


def batch(grouping: str, shape: tuple[int, ...], dtype: torch.dtype) -> MicroBatch:
    patient, views, padding = GROUPINGS[grouping]
    torch.manual_seed(3)
    owners = torch.tensor(patient)
    weight = torch.cat([1.0 / torch.bincount(owners)[owners], torch.zeros(padding)]).to(dtype)
    rows = len(patient) + padding
    inputs = torch.randn(rows, *shape, dtype=dtype)
    return MicroBatch(
        inputs, torch.randn(rows, dtype=dtype), torch.cat([owners, torch.zeros(padding).long()]), weight, max(patient) + 1, views
    )


def loop_over_patients(model: nn.Module, part: MicroBatch, norm: float) -> Tensor:
    parameters = [p for p in model.parameters() if p.requires_grad]
    total = torch.zeros(sum(p.numel() for p in parameters), dtype=part.inputs.dtype)
    for patient in range(part.patient_count):
        mine = (part.patient == patient) & (part.weight > 0)
        loss = (row_loss(model(part.inputs[mine]), part.targets[mine]) * part.weight[mine]).sum()
        flat = torch.cat([g.flatten() for g in torch.autograd.grad(loss, parameters)])
        total += flat * min(1.0, norm / flat.norm().item())
    return total


def engine_sum(engine: str, model: nn.Module, parts: list[MicroBatch], norm: float, bits: int = 48) -> Tensor:
    seen: list[Tensor] = []
    parameters = [p for p in model.parameters() if p.requires_grad]
    settings = {"clipping_norm": norm, "noise_multiplier": 0.0, "divisor": DIVISOR, "generator": SystemGenerator(), "grid_bits": bits}
    stepper = make_stepper(
        engine,
        model,
        torch.optim.SGD(parameters, lr=0.0),
        row_loss,
        after_noise=lambda: seen.extend(p.grad.flatten().clone() for p in parameters),
        **settings,
    )
    stepper.private_step(parts)
    stepper.close()
    return torch.cat(seen) * DIVISOR


def clipping_norm_between(model: nn.Module, part: MicroBatch) -> float:
    """A norm that clips some patients and not others."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    norms = []
    for patient in range(part.patient_count):
        mine = (part.patient == patient) & (part.weight > 0)
        loss = (row_loss(model(part.inputs[mine]), part.targets[mine]) * part.weight[mine]).sum()
        norms.append(torch.cat([g.flatten() for g in torch.autograd.grad(loss, parameters)]).norm().item())
    return (min(norms) * max(norms)) ** 0.5


def fresh(name: str, dtype: torch.dtype) -> nn.Module:
    model = LAYERS[name][0].to(dtype)
    torch.manual_seed(5)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.5)
    return model


@pytest.mark.parametrize(("name", "grouping"), list(itertools.product(LAYERS, GROUPINGS)), ids=str)
def test_every_layer_and_grouping_in_double_precision(name: str, grouping: str) -> None:
    model, part = fresh(name, torch.float64), batch(grouping, LAYERS[name][1], torch.float64)
    norm = clipping_norm_between(model, part)
    expected = loop_over_patients(model, part, norm)
    assert (engine_sum("bookkeeping", model, [part], norm) - expected).norm() <= 1e-10 * expected.norm()


@pytest.mark.parametrize("name", LAYERS)
def test_every_layer_in_single_precision(name: str) -> None:
    model, part = fresh(name, torch.float32), batch("two views and padding", LAYERS[name][1], torch.float32)
    norm = clipping_norm_between(model, part)
    expected = loop_over_patients(model, part, norm)
    assert (engine_sum("bookkeeping", model, [part], norm, bits=26) - expected).norm() <= 1e-4 * expected.norm()


@pytest.mark.parametrize(
    "name",
    [name for name in LAYERS if not any(word in name for word in ("transposed", "reflected", "all at once", "padding", "without bias"))],
)
def test_both_engines_agree(name: str) -> None:
    model, part = fresh(name, torch.float64), batch("three views", LAYERS[name][1], torch.float64)
    norm = clipping_norm_between(model, part)
    hooks = engine_sum("opacus", model, [part], norm)
    assert (engine_sum("bookkeeping", model, [part], norm) - hooks).norm() <= 1e-10 * hooks.norm()


GHOSTS: dict[str, tuple[nn.Module, tuple[int, ...]]] = {
    "linear": (nn.Linear(24, 20), (24,)),
    "linear on places": (nn.Linear(24, 20), (3, 24)),
    "conv": (nn.Conv2d(8, 20, 3, stride=2, padding=1), (8, 4, 4)),
    "conv without bias": (nn.Conv2d(16, 32, 3, dilation=2, padding=2, bias=False), (16, 2, 2)),
    "reflected": (nn.Conv2d(16, 32, 3, padding=1, padding_mode="reflect"), (16, 3, 2)),
}


@pytest.mark.parametrize("frozen", [None, "weight", "bias"])
@pytest.mark.parametrize("grouping", GROUPINGS)
@pytest.mark.parametrize("name", GHOSTS)
def test_large_layers_without_per_patient_gradients(name: str, grouping: str, frozen: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ghost, "LEAST_WEIGHTS", 1)
    monkeypatch.setattr(ghost, "is_cheaper", lambda use, slots: True)
    used = []
    original = ghost.factors_of
    monkeypatch.setattr(ghost, "factors_of", lambda use, slots: used.append(use) or original(use, slots))
    layer, shape = GHOSTS[name]
    model = OnTokens(layer).double()
    if frozen is not None:
        if layer.bias is None:
            pytest.skip("has no bias")
        getattr(layer, frozen).requires_grad_(False)
    try:
        part = batch(grouping, shape, torch.float64)
        norm = clipping_norm_between(model, part)
        expected = loop_over_patients(model, part, norm)
        assert (engine_sum("bookkeeping", model, [part], norm) - expected).norm() <= 1e-9 * expected.norm()
        assert bool(used) == (frozen != "weight" and grouping != "out of order")
    finally:
        layer.requires_grad_(True)


def test_a_layer_that_is_used_twice_adds_up() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(6, 6)

        def forward(self, inputs: Tensor) -> Tensor:
            return self.layer(torch.tanh(self.layer(inputs))).sum(1)

    torch.manual_seed(0)
    model, part = Twice().double(), batch("two views and padding", (6,), torch.float64)
    expected = loop_over_patients(model, part, 2.0)
    assert (engine_sum("bookkeeping", model, [part], 2.0) - expected).norm() <= 1e-10 * expected.norm()


def test_bfloat16_activations_are_clipped_as_they_are_summed() -> None:
    """Autocast changes gradients by per mille; the norm that is clipped is that of what is summed, so the bound still holds."""

    class Cast(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Sequential(nn.Conv2d(1, 8, 3), nn.GroupNorm(2, 8), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 1))

        def forward(self, inputs: Tensor) -> Tensor:
            with torch.autocast("cpu", dtype=torch.bfloat16):
                return self.net(inputs).squeeze(1).float()

    torch.manual_seed(0)
    model = Cast()
    part = MicroBatch(torch.randn(1, 1, 8, 8) * 50, torch.zeros(1), torch.zeros(1).long(), torch.ones(1), 1, 1)
    alone = engine_sum("bookkeeping", model, [part], 0.5, bits=20)
    assert alone.double().norm().item() == pytest.approx(0.5, rel=1e-4)


@pytest.mark.parametrize("views", [None, 1])
def test_patients_beyond_the_float_part_are_added_as_integers(views: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patient_sum, "MOST_IN_FLOAT", 5)
    model = fresh("linear", torch.float64)
    parts = [batch("one image a patient", (6,), torch.float64) for _ in range(3)]
    parts = [MicroBatch(p.inputs + number, p.targets, p.patient, p.weight, p.patient_count, views) for number, p in enumerate(parts)]
    exact = []
    original = patient_sum.clip_and_sum
    monkeypatch.setattr(patient_sum, "clip_and_sum", lambda *arguments: exact.append(1) or original(*arguments))
    expected = sum(loop_over_patients(model, part, 0.7) for part in parts)
    assert (engine_sum("bookkeeping", model, parts, 0.7) - expected).norm() <= 1e-10 * expected.norm()
    assert len(exact) == 2
