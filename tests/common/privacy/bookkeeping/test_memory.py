# SPDX-License-Identifier: Apache-2.0
"""A step leaves nothing in memory but the model."""

import gc

import pytest
import torch
from torch import nn

from common.privacy.engines import ENGINES, make_stepper
from common.privacy.generator import SystemGenerator
from common.privacy.step import MicroBatch


def tensor_bytes() -> int:
    """What all tensors hold that Python can still reach."""
    tensors = [thing for thing in gc.get_objects() if type(thing) in (torch.Tensor, nn.Parameter)]
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}
    return sum(storages.values())


@pytest.mark.parametrize("engine", ENGINES)
def test_steps_do_not_pile_up(engine: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 8, 3), nn.GroupNorm(2, 8), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 1), nn.Flatten(0))
    stepper = make_stepper(
        engine,
        model,
        torch.optim.SGD(model.parameters(), lr=0.1),
        lambda outputs, targets: (outputs - targets).square(),
        clipping_norm=1.0,
        noise_multiplier=1.0,
        divisor=4.0,
        generator=SystemGenerator(),
    )
    batch = MicroBatch(torch.randn(16, 1, 8, 8), torch.ones(16), torch.arange(16), torch.ones(16), 16, 1)
    stepper.private_step([batch])
    gc.collect()
    before = tensor_bytes()
    for _ in range(5):
        stepper.private_step([batch])
    gc.collect()
    assert tensor_bytes() <= before + 1000
