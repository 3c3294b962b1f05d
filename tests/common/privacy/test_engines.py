# SPDX-License-Identifier: Apache-2.0
"""Conformance of every engine: each private step against a loop over patients with plain autograd, and everything that may go wrong."""

import copy
import warnings
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from common.errors import InputError
from common.models.layers import WSConv2d
from common.privacy import engines
from common.privacy.generator import SystemGenerator
from common.privacy.step import ClosableStepper, MicroBatch

DIVISOR = 8.0
ENGINE = "opacus"


@pytest.fixture(params=engines.ENGINES, autouse=True)
def _each_engine(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(f"{__name__}.ENGINE", request.param)


class CountingGenerator(SystemGenerator):
    """Counts draws and words."""

    def __init__(self) -> None:
        super().__init__()
        self.draws: list[int] = []

    def words(self, count: int):
        self.draws.append(count)
        return super().words(count)


class SmallNet(nn.Module):
    """Convolutions with and without weight standardisation, GroupNorm, a linear head; one output a row."""

    def __init__(self) -> None:
        super().__init__()
        self.first = WSConv2d(1, 4, 3, stride=2, padding=1)
        self.norm = nn.GroupNorm(2, 4)
        self.second = nn.Conv2d(4, 4, 3, padding=1, groups=2, bias=False)
        self.head = nn.Linear(4 * 4 * 4, 1)

    def forward(self, images: Tensor) -> Tensor:
        if len(images) == 0:
            raise AssertionError("the model saw an empty batch")
        hidden = torch.relu(self.norm(self.first(images)))
        return self.head(torch.tanh(self.second(hidden)).flatten(1)).squeeze(1)


def row_loss(outputs: Tensor, targets: Tensor) -> Tensor:
    return functional.binary_cross_entropy_with_logits(outputs, targets, reduction="none") * 7


def make_net(dtype: torch.dtype = torch.float64, seed: int = 0) -> SmallNet:
    torch.manual_seed(seed)
    return SmallNet().to(dtype)


def make_stepper(
    model: nn.Module, *, learning_rate: float = 1.0, noise: float = 0.0, norm: float = 1.0, bits: int = 48, **options
) -> ClosableStepper:
    optimiser = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=learning_rate)
    settings = {"clipping_norm": norm, "noise_multiplier": noise, "divisor": DIVISOR, "generator": SystemGenerator(), "grid_bits": bits}
    return engines.make_stepper(ENGINE, model, optimiser, options.pop("loss", row_loss), **(settings | options))


def batch(patient: list[int], *, padding: int = 0, seed: int = 1, dtype: torch.dtype = torch.float64, scale: float = 1.0) -> MicroBatch:
    """Random images; a patient's rows weigh 1 over their number, `padding` rows follow."""
    torch.manual_seed(seed)
    owners = torch.tensor(patient)
    rows = len(patient) + padding
    weight = torch.cat([1.0 / torch.bincount(owners)[owners], torch.zeros(padding)]).to(dtype)
    return MicroBatch(
        inputs=torch.randn(rows, 1, 8, 8, dtype=dtype) * scale,
        targets=torch.randint(0, 2, (rows,)).to(dtype),
        patient=torch.cat([owners, torch.zeros(padding, dtype=torch.int64)]),
        weight=weight,
        patient_count=max(patient) + 1,
    )


def clipped_sum(model: nn.Module, batches: list[MicroBatch], norm: float, loss: Callable = row_loss) -> list[Tensor]:
    """The reference: patient by patient, plain autograd, clip, sum."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    total = [torch.zeros_like(p) for p in parameters]
    for part in batches:
        for patient in range(part.patient_count):
            mine = (part.patient == patient) & (part.weight > 0)
            gradient = torch.autograd.grad((loss(model(part.inputs[mine]), part.targets[mine]) * part.weight[mine]).sum(), parameters)
            size = torch.sqrt(sum(g.square().sum() for g in gradient))
            total = [t + g * min(1.0, norm / size.item()) for t, g in zip(total, gradient, strict=True)]
    return total


def step_of(model: nn.Module, stepper: ClosableStepper, batches: list[MicroBatch]) -> list[Tensor]:
    """What a step with learning rate 1 subtracts, times the divisor: the noisy sum."""
    before = [p.detach().clone() for p in model.parameters() if p.requires_grad]
    stepper.private_step(batches)
    after = [p.detach() for p in model.parameters() if p.requires_grad]
    return [(b - a) * DIVISOR for b, a in zip(before, after, strict=True)]


def assert_close(ours: list[Tensor], reference: list[Tensor], relative: float) -> None:
    for mine, expected in zip(ours, reference, strict=True):
        assert (mine - expected).norm() <= relative * expected.norm() + 1e-12


CASES = {
    "one image a patient": [batch([0, 1, 2, 3, 4])],
    "two views": [batch([0, 0, 1, 1, 2, 2])],
    "unequal and out of order": [batch([2, 0, 1, 0, 2, 2])],
    "padding": [batch([0, 1, 1], padding=3)],
    "three micro-batches": [batch([0, 1], seed=1), batch([0, 0, 1, 1], seed=2), batch([0], padding=1, seed=3)],
}


@pytest.mark.parametrize("norm", [0.3, 1000.0], ids=["all clipped", "none clipped"])
@pytest.mark.parametrize("case", CASES)
def test_a_step_without_noise_is_the_sum_over_patients(case: str, norm: float) -> None:
    model = make_net()
    reference = clipped_sum(model, CASES[case], norm)
    assert_close(step_of(model, make_stepper(model, norm=norm), CASES[case]), reference, 1e-10)


def test_float32_on_the_released_grid() -> None:
    model = make_net(torch.float32)
    parts = [batch(list(range(20)), dtype=torch.float32), batch([0, 0, 1, 1], seed=5, dtype=torch.float32)]
    reference = torch.cat([value.flatten() for value in clipped_sum(model, parts, 0.5)])
    ours = torch.cat([value.flatten() for value in step_of(model, make_stepper(model, norm=0.5, bits=20), parts)])
    assert (ours - reference).norm() <= 1e-4 * reference.norm()


def test_the_report_is_about_patients() -> None:
    model = make_net()
    part = batch([0, 0, 1, 1], padding=1)
    expected = (row_loss(model(part.inputs), part.targets) * part.weight).sum().item()
    report = make_stepper(model).private_step([part])
    assert (report.patient_count, report.non_finite_count) == (2, 0)
    assert report.loss_sum == pytest.approx(expected)


def test_no_micro_batch_is_a_step_of_noise_only() -> None:
    model, generator = make_net(torch.float32), CountingGenerator()
    stepper = make_stepper(model, noise=2.0, norm=3.0, bits=20, generator=generator)
    moved = torch.cat([value.flatten() for value in step_of(model, stepper, [])])
    assert sum(generator.draws) == len(moved)
    assert moved.std().item() == pytest.approx(2.0 * 3.0, rel=0.3)
    empty = MicroBatch(torch.zeros(0, 1, 8, 8), torch.zeros(0), torch.zeros(0, dtype=torch.int64), torch.zeros(0), 0)
    assert stepper.private_step([empty]).patient_count == 0


@pytest.mark.parametrize("count", [0, 1, 3])
def test_noise_is_drawn_once_a_step(count: int) -> None:
    model, generator = make_net(torch.float32), CountingGenerator()
    stepper = make_stepper(model, noise=1.0, bits=20, generator=generator)
    stepper.private_step([batch([0, 1], dtype=torch.float32, seed=seed) for seed in range(count)])
    size = sum(p.numel() for p in model.parameters())
    assert size <= sum(generator.draws) <= size + 4  # a few more words only where 63 bits do not decide


def test_thirty_images_of_one_patient_move_the_sum_by_at_most_the_norm() -> None:
    one, others = batch([0] * 30, scale=50, seed=4), batch([0, 1, 2], seed=6)
    model = make_net()
    with_patient = step_of(model, make_stepper(model), [others, one])
    model = make_net()
    without = step_of(model, make_stepper(model), [others])
    moved = torch.sqrt(sum((a - b).square().sum() for a, b in zip(with_patient, without, strict=True)))
    assert moved.item() == pytest.approx(1.0, rel=1e-6)


def test_an_aborted_step_leaves_nothing_behind() -> None:
    good, bad = batch([0, 1]), batch([0, 1, 2], seed=9)
    model = make_net()
    reference = clipped_sum(model, [good], 0.5)
    stepper = make_stepper(model, norm=0.5)

    def interrupted():
        yield bad
        raise KeyboardInterrupt

    before = copy.deepcopy(model.state_dict())
    with pytest.raises(KeyboardInterrupt):
        stepper.private_step(interrupted())
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert all(p.grad is None and p.grad_sample is None and p.summed_grad is None for p in model.parameters())
    assert_close(step_of(model, stepper, [good]), reference, 1e-10)


def test_a_failing_loss_leaves_nothing_behind() -> None:
    calls = []

    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        calls.append(1)
        if len(calls) == 2:
            raise MemoryError
        return row_loss(outputs, targets)

    part = batch([0, 1])
    model = make_net()
    reference = clipped_sum(model, [part], 0.5)
    stepper = make_stepper(model, norm=0.5, loss=loss)
    with pytest.raises(MemoryError):
        stepper.private_step([part, part])
    assert_close(step_of(model, stepper, [part]), reference, 1e-10)


def test_forward_passes_outside_of_a_step_do_not_matter() -> None:
    part = batch([0, 1])
    model = make_net()
    reference = clipped_sum(model, [part], 0.5)
    stepper = make_stepper(model, norm=0.5)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Full backward hook")  # Opacus' hooks
        model(part.inputs * 100).sum().backward()
    model.eval()
    model(part.inputs)
    assert_close(step_of(model, stepper, [part]), reference, 1e-10)


def test_two_models_interleaved() -> None:
    models = [make_net(seed=1), make_net(seed=2)]
    references = [clipped_sum(model, CASES["two views"], 0.5) for model in models]
    steppers = [make_stepper(model, norm=0.5) for model in models]

    def first_in_the_middle_of_the_second():
        assert_close(step_of(models[0], steppers[0], CASES["two views"]), references[0], 1e-10)
        yield from CASES["two views"]

    assert_close(step_of(models[1], steppers[1], first_in_the_middle_of_the_second()), references[1], 1e-10)


def test_steps_follow_each_other() -> None:
    model, twin = make_net(), make_net()
    stepper = make_stepper(model, learning_rate=0.5, norm=0.5)
    for number in range(3):
        part = batch([0, 1, 1], seed=number)
        for p, g in zip(twin.parameters(), clipped_sum(twin, [part], 0.5), strict=True):
            p.data -= 0.5 * g / DIVISOR
        stepper.private_step([part])
    assert_close(list(model.parameters()), list(twin.parameters()), 1e-9)


def test_a_patient_that_is_not_finite_is_left_out_and_counted() -> None:
    model = make_net()
    part = batch([0, 1, 2])
    others = MicroBatch(part.inputs[[0, 2]], part.targets[[0, 2]], torch.arange(2), torch.ones(2, dtype=torch.float64), 2)
    reference = clipped_sum(model, [others], 0.5)
    part.inputs[1, 0, 3, 3] = float("nan")
    stepper = make_stepper(model, norm=0.5)
    assert_close(step_of(model, stepper, [part]), reference, 1e-10)
    assert stepper.private_step([part]).non_finite_count == 1


def test_padding_rows_do_not_matter_even_if_not_finite() -> None:
    part = batch([0, 1], padding=2)
    part.inputs[-1] = float("inf")
    model = make_net()
    real = MicroBatch(part.inputs[:2], part.targets[:2], part.patient[:2], part.weight[:2], 2)
    reference = clipped_sum(model, [real], 0.5)
    stepper = make_stepper(model, norm=0.5)
    assert_close(step_of(model, stepper, [part]), reference, 1e-10)


def test_after_noise_sees_the_finished_gradient_and_may_change_it() -> None:
    model = make_net()
    seen = []

    def pull() -> None:
        for p in model.parameters():
            seen.append(p.grad.clone())
            p.grad.add_(2.0)

    reference = clipped_sum(model, CASES["two views"], 0.5)
    moved = step_of(model, make_stepper(model, norm=0.5, after_noise=pull), CASES["two views"])
    assert_close([g * DIVISOR for g in seen], reference, 1e-10)
    assert_close([m - 2.0 * DIVISOR for m in moved], reference, 1e-8)


def test_frozen_parameters_stay_and_only_the_rest_is_clipped() -> None:
    model = make_net()
    for p in (*model.first.parameters(), *model.norm.parameters()):
        p.requires_grad_(False)
    before = copy.deepcopy(model.first.state_dict())
    reference = clipped_sum(model, CASES["two views"], 0.5)
    assert_close(step_of(model, make_stepper(model, norm=0.5), CASES["two views"]), reference, 1e-10)
    assert all(torch.equal(before[name], value) for name, value in model.first.state_dict().items())


def test_a_linear_head_on_features() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(30, 1), nn.Flatten(0)).double()
    part = MicroBatch(torch.randn(4, 30).double(), torch.ones(4).double(), torch.tensor([0, 0, 1, 1]), torch.full((4,), 0.5).double(), 2)
    reference = clipped_sum(model, [part], 0.5)
    assert_close(step_of(model, make_stepper(model, norm=0.5), [part]), reference, 1e-10)


@pytest.mark.parametrize("shape", [(-1, 1), (1, -1), ()], ids=str)
def test_a_loss_that_is_not_one_number_a_row_is_refused(shape: tuple[int, ...]) -> None:
    model = make_net()

    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        values = row_loss(outputs, targets)
        return values.reshape(shape) if shape else values.sum()

    with pytest.raises(InputError, match="one number a row"):
        make_stepper(model, loss=loss).private_step([batch([0, 1, 2])])


def test_leaving_the_loop_early_cannot_double_count() -> None:
    """Opacus' BatchMemoryManager: four records, C=1, stop after two chunks; the next step summed to 6 where at most 4 is allowed."""
    model = nn.Sequential(nn.Linear(4, 1, bias=False), nn.Flatten(0)).double()
    nn.init.zeros_(model[0].weight)
    chunks = [MicroBatch(torch.full((1, 4), 100.0).double(), torch.ones(1).double(), torch.zeros(1).long(), torch.ones(1).double(), 1)] * 4
    stepper = make_stepper(model, learning_rate=1e-9, loss=lambda o, t: (o - t).square())

    def two_then_stop():
        yield from chunks[:2]
        raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        stepper.private_step(two_then_stop())
    before = model[0].weight.detach().clone()
    stepper.private_step(chunks)
    assert ((before - model[0].weight).norm() * DIVISOR / 1e-9).item() == pytest.approx(4.0, rel=1e-5)


def test_a_model_that_cannot_be_trained_privately_is_refused() -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ReLU(inplace=True))
    with pytest.raises(InputError) as error:
        make_stepper(model)
    assert len(error.value.problems) == 2


def test_parameters_that_the_optimiser_does_not_hold_are_refused() -> None:
    model = make_net()
    with pytest.raises(InputError) as error:
        engines.make_stepper(
            ENGINE,
            model,
            torch.optim.SGD([*model.head.parameters(), nn.Parameter(torch.ones(1))], lr=1),
            row_loss,
            clipping_norm=1.0,
            noise_multiplier=1.0,
            divisor=1.0,
            generator=SystemGenerator(),
        )
    text = str(error.value)
    assert "first.weight: trainable but not in the optimiser" in text and "not the model's" in text


@pytest.mark.parametrize("change", [{"norm": 0.0}, {"noise": -1.0}, {"noise": float("nan")}, {"divisor": 0.0}, {"bits": 19}], ids=str)
def test_numbers_that_make_no_mechanism_are_refused(change: dict) -> None:
    with pytest.raises(InputError):
        make_stepper(make_net(), **change)


def test_half_precision_is_refused() -> None:
    with pytest.raises(InputError, match="bfloat16"):
        make_stepper(make_net(torch.bfloat16))


def test_a_layer_that_the_loss_bypasses_is_named() -> None:
    class Bypass(SmallNet):
        def forward(self, images: Tensor) -> Tensor:
            return super().forward(images) if False else functional.linear(images.flatten(1), self.head.weight, self.head.bias).squeeze(1)

    torch.manual_seed(0)
    model = Bypass().double()
    stepper = make_stepper(model)
    with pytest.raises(InputError, match=r"head\.weight.*own layer"):
        stepper.private_step([batch([0, 1])])


def test_closing_gives_the_model_back_clean() -> None:
    model = make_net()
    stepper = make_stepper(model)
    with pytest.raises(InputError, match="already has a stepper"):
        make_stepper(model)
    stepper.private_step([batch([0, 1])])
    stepper.close()
    for layer in model.modules():
        assert not layer._forward_hooks and not layer._backward_hooks
        assert "activations" not in layer.__dict__
    assert all(set(vars(p)) == set() for p in model.parameters())
    make_stepper(model).private_step([batch([0, 1])])


def test_the_trained_model_is_the_caller_s_own() -> None:
    model = make_net(torch.float32)
    weight = model.head.weight
    before = weight.detach().clone()
    make_stepper(model, noise=1.0, bits=20).private_step([batch([0, 1], dtype=torch.float32)])
    assert model.head.weight is weight and not torch.equal(before, weight)
    assert set(model.state_dict()) == {name for name, _ in SmallNet().named_parameters()}
