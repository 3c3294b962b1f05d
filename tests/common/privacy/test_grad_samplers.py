# SPDX-License-Identifier: Apache-2.0
import pytest
import torch
from opacus.grad_sample import GradSampleModule
from torch import nn

from common.models.layers import WSConv2d
from common.privacy.grad_samplers import padding_problems, register, ws_conv_grad_samples
from common.privacy.model_check import layer_problems
from common.privacy.row_gradients import RowGradients

CONVOLUTIONS = [
    {"kernel_size": 3, "padding": 1},
    {"kernel_size": 3, "stride": 2, "padding": 1, "bias": False},
    {"kernel_size": (5, 3), "stride": (2, 1), "padding": (2, 0)},
    {"kernel_size": 3, "padding": 2, "dilation": 2},
    {"kernel_size": 3, "padding": "same", "groups": 2},
    {"kernel_size": 2, "padding": "valid", "groups": 4, "bias": False},
    {"kernel_size": 1},
]

RULES = GradSampleModule.GRAD_SAMPLERS.keys()


def row_by_row(model: nn.Module, inputs: torch.Tensor) -> list[torch.Tensor]:
    """Gradients of each row alone by plain autograd, one stacked tensor for each parameter."""
    rows = [torch.autograd.grad(model(row.unsqueeze(0)).square().sum(), list(model.parameters())) for row in inputs]
    return [torch.stack(parameter) for parameter in zip(*rows, strict=True)]


def by_hooks(model: nn.Module, inputs: torch.Tensor) -> list[torch.Tensor]:
    hooked = RowGradients(model)
    hooked.enable_hooks()
    hooked.backward(hooked(inputs).square().sum())
    samples = [parameter.grad_sample for parameter in model.parameters()]
    hooked.to_standard_module()
    return samples


@pytest.mark.parametrize("settings", CONVOLUTIONS, ids=str)
def test_weight_standardised_convolution(settings: dict) -> None:
    register()
    torch.manual_seed(0)
    layer = WSConv2d(4, 8, **settings).double()
    inputs = torch.randn(5, 4, 9, 7, dtype=torch.float64)
    for ours, reference in zip(by_hooks(layer, inputs), row_by_row(layer, inputs), strict=True):
        assert (ours - reference).norm() <= 1e-10 * reference.norm()


def test_the_arranged_jacobian_is_the_layer_s_own() -> None:
    torch.manual_seed(1)
    layer = WSConv2d(3, 4, 3, bias=False).double()
    plain = nn.Conv2d(3, 4, 3, bias=False).double()
    plain.weight.data = layer.standardised_weight().detach()
    inputs, backprops = torch.randn(2, 3, 6, 6, dtype=torch.float64), torch.randn(2, 4, 4, 4, dtype=torch.float64)
    used = GradSampleModule.GRAD_SAMPLERS[nn.Conv2d](plain, [inputs], backprops)[plain.weight]
    ours = ws_conv_grad_samples(layer, [inputs], backprops)[layer.weight]
    assert torch.allclose(ours, layer.standardise_gradient(used), rtol=1e-10, atol=1e-12)


def test_channels_last_inputs_are_read_rightly() -> None:
    register()
    torch.manual_seed(2)
    layer = WSConv2d(4, 4, 3).double()
    inputs = torch.randn(3, 4, 6, 6, dtype=torch.float64).to(memory_format=torch.channels_last)
    for ours, reference in zip(by_hooks(layer, inputs), row_by_row(layer, inputs), strict=True):
        assert torch.allclose(ours, reference, rtol=1e-10)


def test_a_zero_filter_gives_finite_gradients() -> None:
    layer = WSConv2d(1, 2, 3)
    nn.init.zeros_(layer.weight)
    samples = ws_conv_grad_samples(layer, [torch.ones(1, 1, 3, 3)], torch.ones(1, 2, 1, 1))
    assert all(value.isfinite().all() for value in samples.values())


def test_frozen_parts_have_no_gradient() -> None:
    layer = WSConv2d(1, 2, 3)
    layer.weight.requires_grad_(False)
    samples = ws_conv_grad_samples(layer, [torch.ones(1, 1, 3, 3)], torch.ones(1, 2, 1, 1))
    assert set(samples) == {layer.bias}


def test_registering_twice_changes_nothing() -> None:
    register()
    before = dict(GradSampleModule.GRAD_SAMPLERS)
    register()
    assert before == GradSampleModule.GRAD_SAMPLERS


def test_a_layer_that_is_used_twice_adds_up() -> None:
    register()
    torch.manual_seed(3)
    shared = nn.Linear(4, 4).double()
    model = nn.Sequential(shared, nn.Tanh(), shared)
    inputs = torch.randn(3, 4, dtype=torch.float64)
    for ours, reference in zip(by_hooks(model, inputs), row_by_row(model, inputs), strict=True):
        assert torch.allclose(ours, reference, rtol=1e-10)


def test_every_problem_of_a_model_is_listed_with_a_remedy() -> None:
    class OwnLayer(nn.Linear):
        pass

    model = nn.ModuleDict(
        {
            "norm": nn.BatchNorm2d(4),
            "instance": nn.InstanceNorm2d(4, affine=True, track_running_stats=True),
            "relu": nn.ReLU(inplace=True),
            "own": OwnLayer(2, 2),
            "reflect": nn.Conv2d(1, 1, 3, padding=1, padding_mode="reflect"),
            "fine": nn.Linear(2, 2),
        }
    )
    problems = "\n".join([*layer_problems(model, RULES), *padding_problems(model)])
    for expected in ("norm: BatchNorm2d", "instance: ", "relu: ReLU", "own: OwnLayer", "reflect: padding_mode"):
        assert expected in problems
    assert "fine" not in problems


def test_parameters_outside_of_layers_and_models_without_any_are_problems() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(1))

    assert "Scaled" in layer_problems(Scaled(), RULES)[0]
    assert "unfreeze" in layer_problems(nn.ReLU(), RULES)[0]
    assert layer_problems(nn.Linear(2, 1), RULES) == []
