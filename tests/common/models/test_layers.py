# SPDX-License-Identifier: Apache-2.0
"""The weight-standardised convolution and the small helpers."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional

from common.models.layers import WEIGHT_GAIN, WSConv2d, as_logits, global_average_pool, group_norm, output_count, zero_linear
from tests.common.models.studies import study


def convolution(**options: int) -> WSConv2d:
    torch.manual_seed(0)
    return WSConv2d(4, 6, 3, padding=1, bias=False, **options).double()


@pytest.mark.parametrize("groups", [1, 2])
def test_every_used_filter_is_centred_and_has_the_gain_as_norm(groups: int) -> None:
    used = convolution(groups=groups).standardised_weight().flatten(1)
    assert used.mean(dim=1).abs().max() < 1e-12
    assert used.norm(dim=1).tolist() == pytest.approx([WEIGHT_GAIN] * 6, rel=1e-5)


@pytest.mark.parametrize("groups", [1, 2])
def test_the_chain_rule_equals_autograd(groups: int) -> None:
    layer = convolution(groups=groups)
    used = layer.standardised_weight().detach().requires_grad_()
    images, target = torch.randn(3, 4, 7, 7, dtype=torch.float64), torch.randn(3, 6, 7, 7, dtype=torch.float64)
    (functional.conv2d(images, used, padding=1, groups=groups) * target).sum().backward()
    (layer(images) * target).sum().backward()
    assert (layer.standardise_gradient(used.grad) - layer.weight.grad).abs().max() < 1e-10


def test_the_chain_rule_takes_a_gradient_for_each_sample() -> None:
    layer = convolution()
    gradients = torch.randn(5, *layer.weight.shape, dtype=torch.float64)
    one_by_one = torch.stack([layer.standardise_gradient(gradient) for gradient in gradients])
    assert torch.equal(layer.standardise_gradient(gradients), one_by_one)
    for gradient, found in zip(gradients, one_by_one, strict=True):
        expected = torch.autograd.grad(layer.standardised_weight(), layer.weight, gradient)[0]
        assert (found - expected).abs().max() < 1e-10


def test_a_filter_of_equal_numbers_gives_no_nan() -> None:
    layer = WSConv2d(1, 1, 3, bias=False)
    nn.init.constant_(layer.weight, 0.3)
    assert torch.isfinite(layer(torch.randn(1, 1, 5, 5))).all()
    assert torch.isfinite(layer.standardise_gradient(torch.randn(1, 1, 3, 3))).all()


def test_helpers() -> None:
    assert as_logits(torch.zeros(3, 1)).shape == (3,)
    assert as_logits(torch.zeros(1, 4)).shape == (1, 4)
    assert global_average_pool(torch.arange(8.0).view(1, 2, 2, 2)).tolist() == [[1.5, 5.5]]
    assert zero_linear(3, 2)(torch.randn(4, 3)).abs().max() == 0
    assert group_norm(64).num_groups == 32
    assert group_norm(48).num_groups == 16
    assert (output_count(study(classes=2)), output_count(study(classes=5))) == (1, 5)
