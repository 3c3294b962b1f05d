# SPDX-License-Identifier: Apache-2.0
"""What a decoded image becomes, by hand."""

import numpy as np
import pytest

from client.cohorts.pixels import MOST_SIDE, enlarge, in_bits, padded, stored_pixels
from common.errors import DataError


def test_a_square_with_the_image_in_the_middle() -> None:
    image = np.array([[1, 2, 3]], np.uint8)
    np.testing.assert_array_equal(padded(image), [[0, 0, 0], [1, 2, 3], [0, 0, 0]])
    np.testing.assert_array_equal(padded(np.array([[1], [2]], np.uint8)), [[1, 0], [2, 0]])


def test_smaller_is_the_mean_over_areas() -> None:
    image = np.array([[0, 2, 10, 10], [4, 6, 10, 11], [0, 0, 255, 255], [0, 1, 255, 255]], np.uint8)
    np.testing.assert_array_equal(stored_pixels(image, 2, 8), [[3, 10], [0, 255]])
    np.testing.assert_array_equal(stored_pixels(image.astype(np.uint16) * 257, 2, 16), [[771, 2634], [64, 65535]])
    thirds = np.arange(9, dtype=np.uint16).reshape(3, 3) * 9
    np.testing.assert_array_equal(stored_pixels(thirds, 2, 16), [[18, 32], [59, 72]])  # (0 + 9 + 27 + 36) / 4 = 18, (18 + 45) / 2 = 31.5


def test_never_larger_and_full_scale_stays_full_scale() -> None:
    image = np.array([[0, 255], [128, 1]], np.uint8)
    np.testing.assert_array_equal(stored_pixels(image, 256, 8), image)
    np.testing.assert_array_equal(in_bits(in_bits(image, 16), 8), image)
    np.testing.assert_array_equal(in_bits(np.array([[0, 128, 129, 65535]], np.uint16), 8), [[0, 0, 1, 255]])


def test_colour_stays_and_grey_in_three_channels_is_grey() -> None:
    colour = np.zeros((4, 2, 3), np.uint8)
    colour[..., 0] = 9
    assert stored_pixels(colour, 2, 8).tolist() == [[[5, 0, 0]] * 2] * 2, "padded to 4 x 4: half of each block is black"
    assert stored_pixels(np.full((2, 2, 3), 7, np.uint8), 2, 16).tolist() == [[7 * 257] * 2] * 2


def test_enlarging_keeps_type_and_shape() -> None:
    for dtype in (np.uint8, np.uint16):
        flat = np.full((3, 3), 77, dtype)
        assert (enlarge(flat, 5) == 77).all() and enlarge(flat, 5).dtype == dtype
        assert enlarge(np.stack([flat] * 3, axis=2), 5).shape == (5, 5, 3)


def test_a_strip_is_refused_before_it_becomes_a_square() -> None:
    with pytest.raises(DataError, match="longer than 16,384 pixels; take"):
        stored_pixels(np.zeros((1, MOST_SIDE + 1), np.uint8), 256, 8)
