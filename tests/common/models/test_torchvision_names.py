# SPDX-License-Identifier: Apache-2.0
"""The larger architectures are torchvision's: names, shapes, and the function itself where the norms are taken out."""

from __future__ import annotations

import pytest
import torch
import torchvision
from torch import Tensor, nn

from common.models.backbone import BackboneModel
from common.models.densenet import DenseNet121
from common.models.resnet import BasicBlock, ResNet18
from common.models.vgg import Vgg16

RUNNING = ("running_mean", "running_var", "num_batches_tracked")
PAIRS = [(ResNet18, torchvision.models.resnet18), (DenseNet121, torchvision.models.densenet121)]


def shapes(state: dict[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in state.items() if not name.endswith(RUNNING)}


@pytest.mark.parametrize(("ours", "theirs"), PAIRS)
def test_names_and_shapes_are_torchvisions(ours: type[BackboneModel], theirs: type[nn.Module]) -> None:
    assert shapes(ours(64, 3, 1000).state_dict()) == shapes(theirs(num_classes=1000).state_dict())


def test_names_and_shapes_of_vgg_are_torchvisions_without_the_large_head() -> None:
    with torch.device("meta"):
        theirs = torchvision.models.VGG(torchvision.models.vgg.make_layers(torchvision.models.vgg.cfgs["D"]), init_weights=False)
    model = Vgg16(64, 3, 1)
    convolutions = {name: shape for name, shape in shapes(theirs.state_dict()).items() if name.startswith("features.")}
    assert shapes(model.state_dict()) == {**convolutions, "classifier.weight": (1, 512), "classifier.bias": (1,)}
    assert sum(value.numel() for value in model.parameters()) == 14_714_688 + 513


def without_norms(model: nn.Module) -> nn.Module:
    for name, child in list(model.named_children()):
        if isinstance(child, nn.BatchNorm2d | nn.GroupNorm):
            setattr(model, name, nn.Identity())
        without_norms(child)
    return model


@pytest.mark.parametrize(("ours", "theirs"), PAIRS)
def test_the_function_is_torchvisions_apart_from_the_norms(ours: type[BackboneModel], theirs: type[nn.Module]) -> None:
    one, other = without_norms(ours(64, 3, 5)).double(), without_norms(theirs(num_classes=5)).double()
    other.load_state_dict(one.state_dict())
    images = 0.1 * torch.randn(2, 3, 64, 64, dtype=torch.float64)
    with torch.no_grad():
        assert torch.allclose(one(images), other(images), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("ours", [ResNet18, DenseNet121, Vgg16])
def test_grey_images_change_the_first_convolution_only(ours: type[BackboneModel]) -> None:
    grey, colour = shapes(ours(64, 1, 1).state_dict()), shapes(ours(64, 3, 1).state_dict())
    stem = ours.stem_name + ".weight"
    assert grey[stem] == (64, 1, *colour[stem][2:])
    assert {**grey, stem: colour[stem]} == colour


def test_the_stems_for_grey_and_colour_start_equally_wide() -> None:
    torch.manual_seed(0)
    grey, colour = ResNet18(64, 1, 1).state_dict()["conv1.weight"], ResNet18(64, 3, 1).state_dict()["conv1.weight"]
    assert grey.std().item() == pytest.approx(colour.std().item(), rel=0.1)


def test_the_block_takes_no_arguments_that_it_would_ignore() -> None:
    with pytest.raises(ValueError, match="dilation"):
        BasicBlock(8, 8, dilation=2)
