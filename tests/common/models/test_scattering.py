# SPDX-License-Identifier: Apache-2.0
"""The scattering transform against closed forms and a direct computation, its constants, and the model on top."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from common.errors import InputError
from common.models import scattering
from common.models.base import to_model_units
from common.models.scattering import Scattering, ScatteringModel, channel_count, log_coefficients, scales_for
from common.models.wavelets import ANGLES, at_full_size, averaging_matrix, band, wavelet_bank
from simulations.make_scattering_constants import channel_constants, noise_images


def noise(count: int, size: int, seed: int = 7) -> Tensor:
    return torch.from_numpy(noise_images(count, size, seed))


@pytest.mark.parametrize(
    ("size", "scales", "channels", "grid"),
    [(16, 1, 9, 8), (28, 2, 81, 7), (30, 2, 81, 7), (32, 2, 81, 8), (64, 3, 217, 8), (67, 3, 217, 8)],
)
def test_shape_of_the_coefficients(size: int, scales: int, channels: int, grid: int) -> None:
    assert scales_for(size) == scales
    assert channel_count(scales) == channels
    assert Scattering(size, scales)(noise(2, size)).shape == (2, channels, grid, grid)


def test_an_image_too_large_is_refused_with_a_remedy() -> None:
    assert scales_for(256) == 5
    with pytest.raises(InputError, match="set 256 or less"):
        scales_for(512)


@pytest.mark.parametrize(("size", "scales"), [(28, 2), (64, 3)])
def test_a_constant_image_is_the_constant_in_order_zero_and_nothing_else(size: int, scales: int) -> None:
    coefficients = Scattering(size, scales)(torch.full((1, size, size), 1.7))
    assert coefficients[:, 0].sub(1.7).abs().max() < 1e-5
    assert coefficients[:, 1:].abs().max() < 1e-5


def direct(image: np.ndarray, scales: int) -> np.ndarray:
    """The definition, slowly, in float64: every response at full size, reduced only by taking every 2^j-th pixel of the response."""
    size, step = len(image), 1 << scales
    padded = np.pad(image, step, mode="reflect")
    bank = [[at_full_size(spectrum, len(padded)) for spectrum in spectra] for spectra in wavelet_bank(len(padded), scales)]
    positions = step + (step - 1) / 2 + step * np.arange(size // step)

    def average(response: np.ndarray, scale: int) -> np.ndarray:
        matrix = averaging_matrix(len(padded), 1 << scale, positions, scales)
        return np.asarray(matrix @ response[:: 1 << scale, :: 1 << scale] @ matrix.T)

    def responses(plane: np.ndarray, scale: int) -> list[np.ndarray]:
        return [np.abs(np.fft.ifft2(np.fft.fft2(plane) * spectrum)) for spectrum in bank[scale]]

    first, second = [], []
    for outer in range(scales):
        for response in (outers := responses(padded, outer)):
            first.append(average(response, outer))
        for inner in range(outer + 1, scales):
            second += [average(deep, inner) for response in outers for deep in responses(response, inner)]
    return np.stack([average(padded, 0), *first, *second])


def test_the_fast_transform_is_the_definition() -> None:
    """What differs is aliasing: the fast one takes every 2^j-th pixel of the outer response before it goes on."""
    image = noise(1, 32)
    fast, slow = Scattering(32, 2)(image)[0].double().numpy(), direct(image[0].double().numpy(), 2)
    exact = 1 + 2 * ANGLES  # orders 0 and 1
    assert np.abs(fast[:exact] - slow[:exact]).max() < 1e-5
    assert np.abs(fast - slow).max() < 1e-5  # and order 2, because at J = 2 the outer response is at full size


def test_three_scales_agree_with_the_definition_up_to_aliasing() -> None:
    image = noise(1, 64)
    fast, slow = Scattering(64, 3)(image)[0].double().numpy(), direct(image[0].double().numpy(), 3)
    assert np.abs(fast[:25] - slow[:25]).max() < 1e-5
    assert np.linalg.norm(fast[25:] - slow[25:]) < 0.05 * np.linalg.norm(slow[25:])


def test_two_images_are_never_further_apart_after_the_transform() -> None:
    """Non-expansive: a coefficient stands for the 4^J pixels of its cell; .01 is the room for the aliasing of the average."""
    one, other = noise(8, 32, seed=1), noise(8, 32, seed=2)
    transform = Scattering(32, 2)
    before = functional.pad((one - other)[:, None], (4, 4, 4, 4), mode="reflect").flatten(1).norm(dim=1)
    after = (transform(one) - transform(other)).flatten(1).norm(dim=1) * 4
    assert (after <= 1.01 * before).all()
    energy = functional.pad(one[:, None], (4, 4, 4, 4), mode="reflect").flatten(1).norm(dim=1)
    assert (transform(one).flatten(1).norm(dim=1) * 4 <= 1.01 * energy).all()


def test_a_shift_by_one_pixel_changes_the_coefficients_much_less_than_the_image() -> None:
    image = noise(4, 65)
    here, there = image[:, :64, :64], image[:, :64, 1:]
    transform = Scattering(64, 3)
    inner = (slice(None), slice(1, None), slice(1, -1), slice(1, -1))  # orders 1 and 2, away from the border
    change = (transform(here)[inner] - transform(there)[inner]).norm() / transform(here)[inner].norm()
    raw_change = (here - there).norm() / here.norm()
    assert change < 0.1
    assert change < 0.35 * raw_change


def test_the_transform_of_a_turned_image_is_the_turned_transform_with_other_angles() -> None:
    """A quarter turn moves angle number a to a + 4 of 8 (a wavelet and its mirror image have the same modulus).

    Exact at scale 0; at scale 1 the turn exchanges the pixels that are kept and those that are left out.
    """
    image = noise(2, 32)
    transform = Scattering(32, 2)
    straight, turned = transform(image), transform(torch.rot90(image, 1, (1, 2)))
    first = torch.rot90(straight[:, 1:17].view(2, 2, 8, 8, 8).roll(4, dims=2), 1, (3, 4))
    difference = first - turned[:, 1:17].view(2, 2, 8, 8, 8)
    assert difference[:, 0].abs().max() < 1e-5
    assert difference[:, 1].norm() < 0.03 * first[:, 1].norm()


def test_the_same_images_give_the_same_bits_in_whatever_batch() -> None:
    model = ScatteringModel(32, 1, 1)
    images = noise(50, 32)[:, None]
    together = model.frozen_features(images)
    assert torch.equal(together, model.frozen_features(images))
    assert torch.allclose(together[:7], model.frozen_features(images[:7]), atol=1e-6)


def test_features_are_centred_and_of_length_one() -> None:
    features = ScatteringModel(28, 3, 1).frozen_features(noise(6, 28).view(2, 3, 28, 28))
    assert features.shape == (2, 3 * 81 * 7 * 7)
    assert features.dtype == torch.float32
    assert torch.allclose(features.norm(dim=1), torch.ones(2), atol=1e-5)
    assert features.mean(dim=1).abs().max() < 1e-7


def test_extreme_images_have_finite_features() -> None:
    for grey in (0, 255):
        images = to_model_units(torch.full((1, 1, 32, 32), grey, dtype=torch.uint8))
        assert torch.isfinite(ScatteringModel(32, 1, 1).frozen_features(images)).all()


def test_images_of_another_size_are_refused() -> None:
    with pytest.raises(InputError, match="prepare the data"):
        ScatteringModel(32, 1, 1).frozen_features(torch.zeros(1, 1, 28, 28))


def test_forward_takes_features_and_starts_at_zero() -> None:
    model = ScatteringModel(28, 1, 3)
    assert torch.equal(model(torch.randn(4, 3969)), torch.zeros(4, 3))
    assert sum(value.numel() for value in ScatteringModel(64, 1, 1).parameters()) == 13_889


def test_the_digest_names_size_channels_code_and_constants(monkeypatch: pytest.MonkeyPatch) -> None:
    def digest(size: int = 32, channels: int = 1, outputs: int = 1) -> str:
        return ScatteringModel(size, channels, outputs).feature_digest

    plain = digest()
    assert len(plain) == 64
    assert digest() == plain == digest(outputs=5)  # the head is no part of the features
    others = [digest(size=28), digest(size=64), digest(channels=3)]
    monkeypatch.setattr(scattering, "CODE_VERSION", 999)
    others.append(digest())
    monkeypatch.undo()
    changed = scattering.constants_text().replace("1", "2", 1)
    monkeypatch.setattr(scattering, "constants_text", lambda: changed)
    others.append(digest())
    assert len({plain, *others}) == 6


def test_known_features_stay_as_they_are() -> None:
    """If this fails, features changed: raise CODE_VERSION, make the constants anew, and write the new numbers here."""
    ramp = torch.linspace(-2, 2, 32).expand(32, 32) * torch.linspace(1, 0, 32)[:, None]
    features = ScatteringModel(32, 1, 1).frozen_features(ramp[None, None])[0]
    assert scattering.CODE_VERSION == 1
    assert features[[0, 9, 100, 1500, 5183]].tolist() == pytest.approx(KNOWN, rel=1e-3, abs=1e-6)


KNOWN = [0.0167981, 0.0234885, -0.0206927, -0.000567691, 0.00168323]


@pytest.mark.parametrize("scales", [1, 2, 3])
def test_the_shipped_constants_are_what_the_script_makes(scales: int) -> None:
    shipped = json.loads(scattering.constants_text())
    assert shipped["code_version"] == scattering.CODE_VERSION
    made = channel_constants(scales)
    for key in ("mean", "deviation"):
        assert shipped["scales"][str(scales)][key] == pytest.approx(made[key], rel=1e-3, abs=1e-5)


def test_constants_are_there_for_every_scale() -> None:
    shipped = json.loads(scattering.constants_text())["scales"]
    assert sorted(shipped) == [str(scales) for scales in range(1, scattering.MAX_SCALES + 1)]
    for scales, constants in shipped.items():
        assert len(constants["mean"]) == len(constants["deviation"]) == channel_count(int(scales))
        assert min(constants["deviation"]) > 0.01


def test_noise_falls_with_frequency_as_promised() -> None:
    images = noise_images(64, 64, 0)
    power = (np.abs(np.fft.fft2(images)) ** 2).mean(axis=0)
    slope = np.log(power[0, 16] / power[0, 4]) / np.log(4)
    assert slope == pytest.approx(-2.6, abs=0.5)
    assert images.std(axis=(1, 2)) == pytest.approx(np.ones(64), rel=1e-4)


def test_standardised_noise_has_mean_zero_and_deviation_one() -> None:
    constants = json.loads(scattering.constants_text())["scales"]["2"]
    values = log_coefficients(Scattering(32, 2)(noise(100, 32, seed=11)))
    standard = (values.mean(dim=(0, 2, 3)) - torch.tensor(constants["mean"])) / torch.tensor(constants["deviation"])
    assert standard.abs().max() < 0.25
    assert band(0) == band(1) == 1
