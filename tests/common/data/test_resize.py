# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import numpy as np
import pytest

from common.data.resize import resize, size_problem
from tests.common.data.tables import small_images


def test_whole_factor_is_the_rounded_mean_of_blocks() -> None:
    image = np.array([[[0, 1, 10, 20], [2, 3, 30, 41], [255, 255, 0, 0], [255, 255, 0, 2]]], dtype=np.uint8)
    assert resize(image, 2).tolist() == [[[2, 25], [255, 1]]]  # 6/4 = 1.5 and 101/4, 255, 2/4 = .5, halves up


def test_colour_channels_stay_apart() -> None:
    image = np.zeros((1, 32, 32, 3), dtype=np.uint8)
    image[..., 1] = 200
    assert resize(image, 16).shape == (1, 16, 16, 3)
    assert resize(image, 16)[0, 5, 5].tolist() == [0, 200, 0]
    assert resize(image, 20)[0, 5, 5].tolist() == [0, 200, 0]


def test_other_factors_keep_the_mean_and_the_fitting_size_is_untouched() -> None:
    images = small_images(3, 28)
    assert resize(images, 28) is images
    assert np.abs(resize(images, 20).mean((1, 2)) - images.mean((1, 2))).max() < 1
    assert resize(images, 32).shape == (3, 32, 32)


@pytest.mark.parametrize(
    ("height", "width", "size", "problem"),
    [(28, 28, 32, None), (16, 16, 32, None), (15, 15, 32, "image_size: 15"), (64, 48, 32, "square"), (1024, 1024, 32, None)],
)
def test_what_cannot_be_resized_is_said(height: int, width: int, size: int, problem: str | None) -> None:
    found = size_problem(height, width, size)
    assert found is None if problem is None else (found is not None and problem in found)
