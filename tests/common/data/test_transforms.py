# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
import torch
from torch import Tensor

from common.data.transforms import UNIFORMS, augment
from common.study import Augmentation

IMAGES = torch.arange(2 * 1 * 4 * 4, dtype=torch.float32).view(2, 1, 4, 4)


def numbers(**changes: float) -> Tensor:
    """0.5 (no change) everywhere, but for the named columns."""
    order = ("dx", "dy", "rotate", "zoom", "contrast", "brightness", "flip")
    uniforms = torch.full((2, UNIFORMS), 0.5)
    for name, value in changes.items():
        uniforms[:, order.index(name)] = value
    return uniforms


def test_identity_without_settings_and_with_neutral_numbers() -> None:
    assert augment(IMAGES, Augmentation(), torch.rand(2, UNIFORMS)) is IMAGES
    everything = Augmentation(shift=0.3, rotate_degrees=30, zoom=0.2, contrast=0.5, brightness=0.5, flip=True)
    assert torch.allclose(augment(IMAGES, everything, numbers()), IMAGES, atol=1e-4)


def test_shift_moves_right_and_down_and_repeats_the_border() -> None:
    right = augment(IMAGES, Augmentation(shift=0.25), numbers(dx=1.0))  # a quarter of 4 pixels
    assert torch.allclose(right[..., 1:], IMAGES[..., :-1], atol=1e-5) and torch.allclose(right[..., 0], IMAGES[..., 0], atol=1e-5)
    down = augment(IMAGES, Augmentation(shift=0.25), numbers(dy=1.0))
    assert torch.allclose(down[..., 1:, :], IMAGES[..., :-1, :], atol=1e-5)
    half = augment(IMAGES, Augmentation(shift=0.25), numbers(dx=0.75))
    assert torch.allclose(half[..., 1:], (IMAGES[..., 1:] + IMAGES[..., :-1]) / 2, atol=1e-5)


def test_rotation_of_a_quarter_turn_in_two_steps() -> None:
    twice = Augmentation(rotate_degrees=45)
    smooth = torch.nn.functional.interpolate(torch.rand(2, 1, 4, 4, generator=torch.Generator().manual_seed(0)), (65, 65), mode="bicubic")
    turned = augment(augment(smooth, twice, numbers(rotate=1.0)), twice, numbers(rotate=1.0))
    expected = torch.rot90(smooth, -1, (2, 3))  # positive is clockwise
    inside = (slice(None), slice(None), slice(22, 43), slice(22, 43))
    assert (turned - expected)[inside].abs().max() < 0.02


def test_zoom_enlarges_about_the_centre() -> None:
    ramp = torch.linspace(-1, 1, 9).view(1, 1, 1, 9).expand(2, 1, 9, 9)
    larger = augment(ramp, Augmentation(zoom=0.25), numbers(zoom=1.0))
    assert torch.allclose(larger, ramp / 1.25, atol=1e-5)


def test_contrast_brightness_and_flip() -> None:
    graded = augment(IMAGES, Augmentation(contrast=0.5, brightness=0.1), numbers(contrast=1.0, brightness=0.0))
    assert torch.allclose(graded, IMAGES * 1.5 - 0.4)  # the grey range is 4 in model units
    assert torch.equal(augment(IMAGES, Augmentation(flip=True), numbers(flip=0.49)), IMAGES.flip(-1))
    assert torch.equal(augment(IMAGES, Augmentation(flip=True), numbers(flip=0.5)), IMAGES)


def test_each_image_has_its_own_numbers_and_the_input_is_not_changed() -> None:
    settings = Augmentation(shift=0.3, rotate_degrees=30, zoom=0.2, contrast=0.5, brightness=0.5, flip=True)
    uniforms = torch.rand(2, UNIFORMS, generator=torch.Generator().manual_seed(1))
    before = IMAGES.clone()
    both = augment(IMAGES, settings, uniforms)
    assert torch.equal(IMAGES, before)
    for row in range(2):
        assert torch.allclose(augment(IMAGES[row : row + 1], settings, uniforms[row : row + 1]), both[row : row + 1], atol=1e-5)
    assert torch.equal(both, augment(IMAGES, settings, uniforms))


def test_wrong_shape_of_numbers_is_refused() -> None:
    with pytest.raises(ValueError, match=r"expected shape \[2, 8\]"):
        augment(IMAGES, Augmentation(flip=True), torch.rand(2, 7))
