# SPDX-License-Identifier: Apache-2.0
"""What the small CNN does for training under privacy."""

import math

import pytest
import torch

from common.models.cnn import EDGE_WAVELENGTH, SmallCnn, edge_filters


def stripes(degrees: float, size: int) -> torch.Tensor:
    """Waves of the filters' wavelength along a direction, with a crest in the middle: [size, size]."""
    place = torch.arange(size, dtype=torch.float32) - size // 2
    y, x = torch.meshgrid(place, place, indexing="ij")
    angle = math.radians(degrees)
    return torch.cos(2 * math.pi / EDGE_WAVELENGTH * (x * math.cos(angle) + y * math.sin(angle)))


def test_edge_filters_have_length_one_and_no_mean() -> None:
    filters = edge_filters(16, 5)
    assert filters.shape == (16, 5, 5)
    assert torch.allclose(filters.flatten(1).norm(dim=1), torch.ones(16))
    assert torch.allclose(filters.sum(dim=(1, 2)), torch.zeros(16), atol=1e-6)


@pytest.mark.parametrize("number", range(8))
def test_each_orientation_answers_most_to_its_own_stripes(number: int) -> None:
    answers = (edge_filters(16, 5)[::2] * stripes(22.5 * number, 5)).sum(dim=(1, 2))  # the even filters, one for each orientation
    assert int(answers.argmax()) == number


def test_a_pair_is_a_line_and_an_edge() -> None:
    even, odd = edge_filters(16, 5)[0], edge_filters(16, 5)[1]
    assert torch.allclose(even, even.flip(1), atol=1e-6)
    assert torch.allclose(odd, -odd.flip(1), atol=1e-6)


@pytest.mark.parametrize("channels", [1, 3])
def test_the_first_layer_starts_as_edges_at_the_norms_of_random_filters(channels: int) -> None:
    torch.manual_seed(1)
    weight = SmallCnn(channels, 1).stages[0][0].weight.detach()  # type: ignore[index]
    norms = weight.flatten(1).norm(dim=1)
    expected = (edge_filters(16, 5)[:, None] / math.sqrt(channels)).expand(-1, channels, -1, -1)
    assert torch.allclose(weight / norms.view(-1, 1, 1, 1), expected, atol=1e-6)
    assert norms.std() > 0.01
    assert norms.mean() == pytest.approx(1 / math.sqrt(3), rel=0.15)  # Kaiming's uniform default: variance 1 / (3 · inputs)


@torch.no_grad()
def test_the_head_sees_numbers_of_both_signs_and_images_have_little_in_common() -> None:
    """Of the images' own lengths, what they share is a small part; after a ReLU it would be most of it."""
    torch.manual_seed(2)
    model = SmallCnn(1, 1)
    maps = model.stages(torch.randn(64, 1, 32, 32))
    features, rectified = model.pool(maps).flatten(1), model.pool(maps.relu()).flatten(1)
    assert 0.3 < float((features > 0).float().mean()) < 0.7
    assert shared(features) < 0.5 < 0.8 < shared(rectified)


def shared(features: torch.Tensor) -> float:
    """Length of the mean over the mean length: 1 if all rows are the same."""
    return float(features.mean(dim=0).norm() / features.norm(dim=1).mean())
