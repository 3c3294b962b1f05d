# SPDX-License-Identifier: Apache-2.0
"""From a study to a model: shapes of all architectures, initial weights, the check, and states that come over the wire."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn

from common.errors import InputError, ProtocolError
from common.models.cnn import SmallCnn
from common.models.layers import WSConv2d
from common.models.registry import MODEL_MODULES, build_model, check_model, initial_state, load_state
from common.study import MODEL_NAMES
from tests.common.models.studies import random_inputs, study

COLOUR = ("resnet18", "densenet121", "vgg16")


def test_the_table_agrees_with_the_study() -> None:
    assert tuple(MODEL_MODULES) == MODEL_NAMES


@pytest.mark.parametrize("name", MODEL_NAMES)
def test_logits_have_the_shape_of_the_task_at_every_size(name: str) -> None:
    for size in (28, 32, 64):
        for classes in (2, 4):
            channels = 3 if name in COLOUR and classes == 4 else 1
            model = build_model(study(name, size, channels, classes))
            with torch.no_grad():
                logits = model(random_inputs(model, study(name, size, channels, classes), 2, channels))
            assert logits.shape == ((2,) if classes == 2 else (2, 4))
            assert logits.dtype == torch.float32
            assert torch.isfinite(logits).all()


@pytest.mark.parametrize("name", MODEL_NAMES)
def test_every_trainable_parameter_gets_a_gradient_and_nothing_mixes_the_batch(name: str) -> None:
    model = build_model(study(name, 28))
    for parameter in model.parameters():  # a head at zero would hide the rest
        if parameter.abs().max() == 0:
            nn.init.normal_(parameter, std=0.1)
    inputs = random_inputs(model, study(name, 28), 3)
    logits = model(inputs)
    assert torch.allclose(logits[:1], model(inputs[:1]), rtol=1e-3, atol=1e-4)
    logits.sum().backward()
    without = [name for name, value in model.named_parameters() if value.grad is None or value.grad.abs().max() == 0]
    assert without == []


@pytest.mark.parametrize("size", [16, 28, 32, 45, 64])
@pytest.mark.parametrize("channels", [1, 3])
def test_the_cnn_is_small_at_any_size_and_starts_undecided(size: int, channels: int) -> None:
    model = SmallCnn(channels, 1)
    check_model(model)
    assert sum(value.numel() for value in model.parameters()) == 23_921 + 400 * (channels - 1)
    assert model.pool(model.stages(torch.randn(2, channels, size, size))).shape == (2, 64, 2, 2)
    assert torch.equal(model(torch.randn(2, channels, size, size)), torch.zeros(2))


def test_names_of_the_cnn_are_stable() -> None:
    """They are part of the wire format and of checkpoints."""
    layers = ["0.weight", "1.weight", "1.bias"]
    assert list(initial_state(study())) == [f"stages.{stage}.{layer}" for stage in range(3) for layer in layers] + [
        "head.weight",
        "head.bias",
    ]


@pytest.mark.parametrize("name", ["cnn", "resnet18"])
def test_initial_weights_come_from_the_seed_and_leave_the_generator_alone(name: str) -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    one = initial_state(study(name, seed=3))
    assert torch.equal(before, torch.get_rng_state())
    torch.manual_seed(6)
    same, other = initial_state(study(name, seed=3)), initial_state(study(name, seed=4))
    assert all(np.array_equal(one[key], same[key]) and one[key].dtype == np.float32 for key in one)
    assert any(not np.array_equal(one[key], other[key]) for key in one)


def test_an_initial_state_is_a_copy() -> None:
    configuration = study()
    initial_state(configuration)["stages.0.0.weight"][:] = 7
    assert initial_state(configuration)["stages.0.0.weight"].max() < 7


def test_only_the_architecture_asked_for_is_imported() -> None:
    code = (
        "import sys; from common.models.registry import build_model; from tests.common.models.studies import study; build_model(study());"
        "print([name for name in ('torchvision', 'opacus', 'common.models.resnet', 'common.models.scattering') if name in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"


class Odd(nn.Module):
    """Everything that a model must not have."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(3)
        self.instance = nn.InstanceNorm2d(3, track_running_stats=True)
        self.act = nn.ReLU(inplace=True)
        self.own = nn.Bilinear(3, 3, 3)
        self.register_buffer("count", torch.zeros(1), persistent=False)


def test_all_problems_are_listed_with_a_remedy_each() -> None:
    with pytest.raises(InputError) as error:
        check_model(Odd())
    text = "\n".join(error.value.problems)
    for part in ("norm: BatchNorm2d mixes", "use GroupNorm", "act: ReLU works in place", "inplace=False", "own: no rule", "Bilinear"):
        assert part in text
    assert "Odd: buffer 'count'" in text
    assert "instance: buffer 'running_mean'" in text
    assert len(error.value.problems) == 4 + 3


class Subclassed(nn.Linear):
    """A layer whose per-sample gradient could differ from Linear's."""


@pytest.mark.parametrize(
    ("make", "problem"),
    [
        (lambda: nn.Sequential(nn.Linear(2, 2), nn.SyncBatchNorm(2, track_running_stats=False)), "1: SyncBatchNorm mixes"),
        (lambda: nn.Sequential(nn.Linear(2, 2).requires_grad_(False)), "no parameter is trainable"),
        (lambda: Subclassed(2, 2), "no rule for per-sample gradients of Subclassed"),
        (lambda: nn.Sequential(nn.Linear(2, 2), nn.Dropout(inplace=True)), "1: Dropout works in place"),
        (lambda: nn.Sequential(nn.Conv2d(1, 1, 1), nn.ConvTranspose2d(1, 1, 1)), "no rule for per-sample gradients of ConvTranspose2d"),
    ],
)
def test_each_problem_alone_is_found(make: Callable[[], nn.Module], problem: str) -> None:
    with pytest.raises(InputError, match=problem) as error:
        check_model(make())
    assert len(error.value.problems) == 1


def test_a_shared_parameter_is_found() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    model[1].weight = model[0].weight
    with pytest.raises(InputError, match=r"1\.weight: the same parameter as 0\.weight"):
        check_model(model)


def test_allowed_layers_and_frozen_ones_of_any_kind_pass() -> None:
    frozen = nn.Bilinear(1, 1, 1).requires_grad_(False)
    check_model(nn.Sequential(WSConv2d(1, 4, 3), nn.GroupNorm(2, 4), nn.ReLU(), nn.Flatten(), nn.LayerNorm(4), nn.Linear(4, 1), frozen))


def test_a_state_survives_the_way_out_and_in() -> None:
    model = build_model(study(seed=1))
    pointer = model.head.weight.data_ptr()
    state = initial_state(study(seed=2))
    for array in state.values():
        array.flags.writeable = False  # what comes over the wire is read-only
    load_state(model, state)
    assert model.head.weight.data_ptr() == pointer
    assert all(np.array_equal(value.numpy(), state[name]) for name, value in model.trainable_state().items())
    assert all(value.requires_grad for value in model.parameters())


def test_a_state_that_does_not_fit_changes_nothing_and_lists_all() -> None:
    model = build_model(study(seed=1))
    before = {name: value.clone() for name, value in model.trainable_state().items()}
    state: dict[str, np.ndarray] = dict(initial_state(study(seed=2)))
    del state["head.bias"]
    state["extra"] = np.zeros(1, np.float32)
    state["head.weight"] = state["head.weight"].astype(np.float64)
    state["stages.0.1.bias"] = state["stages.0.1.bias"].reshape(1, -1)
    with pytest.raises(ProtocolError) as error:
        load_state(model, state)
    for part in (
        "head.bias: missing",
        "extra: not a trainable",
        "head.weight: float64",
        "stages.0.1.bias: float32 (1, 16), expected float32 (16,)",
    ):
        assert part in str(error.value)
    assert all(torch.equal(value, before[name]) for name, value in model.trainable_state().items())
