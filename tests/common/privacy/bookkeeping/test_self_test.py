# SPDX-License-Identifier: Apache-2.0
"""Models and losses in which patients cannot be told apart are refused before any row of a patient is used."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from common.errors import InputError
from common.privacy.engines import make_stepper
from common.privacy.generator import SystemGenerator
from common.privacy.step import MicroBatch


def row_loss(outputs: Tensor, targets: Tensor) -> Tensor:
    return functional.binary_cross_entropy_with_logits(outputs, targets, reduction="none")


def step(model: nn.Module, loss=row_loss) -> None:
    stepper = make_stepper(
        "bookkeeping",
        model,
        torch.optim.SGD(model.parameters(), lr=0.1),
        loss,
        clipping_norm=1.0,
        noise_multiplier=1.0,
        divisor=4.0,
        generator=SystemGenerator(),
    )
    stepper.private_step([MicroBatch(torch.randn(4, 1, 6, 6), torch.ones(4), torch.arange(4), torch.ones(4), 4, 1)])


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 3, 3)
        self.head = nn.Linear(48, 1)
        self.register_buffer("seen", torch.zeros(1))

    def hidden(self, images: Tensor) -> Tensor:
        return self.conv(images)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(torch.relu(self.hidden(images)).flatten(1)).squeeze(1)


class MixesRows(Net):
    def hidden(self, images: Tensor) -> Tensor:
        hidden = self.conv(images)
        return hidden - hidden.mean(0, keepdim=True)


class OverwritesInput(Net):
    def hidden(self, images: Tensor) -> Tensor:
        hidden = self.conv(images)
        scaled = hidden * hidden
        hidden.add_(1.0)
        return scaled


class OverwritesOutput(Net):
    def hidden(self, images: Tensor) -> Tensor:
        return self.conv(images).mul_(2.0)


class RemembersPatients(Net):
    def hidden(self, images: Tensor) -> Tensor:
        with torch.no_grad():
            self.seen += images.mean()
        return self.conv(images)


class UsesWeightElsewhere(Net):
    def hidden(self, images: Tensor) -> Tensor:
        return self.conv(images) + self.conv.weight.sum()


class ForgetsItsHead(Net):
    def forward(self, images: Tensor) -> Tensor:
        return self.conv(images).mean((1, 2, 3))


def batch_normalised_loss(outputs: Tensor, targets: Tensor) -> Tensor:
    losses = row_loss(outputs, targets)
    return losses / losses.sum()


def contrastive_loss(outputs: Tensor, targets: Tensor) -> Tensor:
    return (outputs - outputs.roll(1)).square()


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        (MixesRows, "conv.weight: a row's gradient"),
        (OverwritesInput, "in place"),
        (OverwritesOutput, "in place"),
        (RemembersPatients, "seen: the forward pass changes this buffer"),
        (UsesWeightElsewhere, "conv.weight: a row's gradient"),
        (ForgetsItsHead, "head.weight: the loss does not depend on it"),
    ],
)
def test_models_that_escape_the_rules(model: type[Net], expected: str) -> None:
    torch.manual_seed(0)
    with pytest.raises(InputError) as error:
        step(model())
    assert expected in str(error.value)


@pytest.mark.parametrize("loss", [batch_normalised_loss, contrastive_loss], ids=lambda loss: loss.__name__)
def test_losses_that_couple_patients(loss) -> None:
    torch.manual_seed(0)
    with pytest.raises(InputError, match="mixes rows"):
        step(Net(), loss)


def test_a_loss_of_one_column_against_a_vector() -> None:
    class Column(Net):
        def forward(self, images: Tensor) -> Tensor:
            return super().forward(images).unsqueeze(1)

    torch.manual_seed(0)
    with pytest.raises(InputError, match=r"\[3, 3\] for 3 rows"):
        step(Column(), lambda outputs, targets: (outputs - targets).square())


def test_a_refusal_leaves_model_and_buffers_as_they_were() -> None:
    torch.manual_seed(0)
    model = RemembersPatients()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(InputError):
        step(model)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_dropout_and_ordinary_models_pass() -> None:
    torch.manual_seed(0)
    step(Net())
    step(nn.Sequential(nn.Conv2d(1, 3, 3), nn.Dropout(0.5), nn.ReLU(), nn.Flatten(), nn.Linear(48, 1), nn.Flatten(0)))
