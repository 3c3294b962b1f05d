# SPDX-License-Identifier: Apache-2.0
"""The filter bank against closed forms."""

from __future__ import annotations

import numpy as np
import pytest

from common.models import wavelets

SIZES = [(1, 20), (2, 36), (2, 40), (3, 80)]


@pytest.mark.parametrize(("scales", "size"), SIZES)
def test_the_transform_never_gains_energy_and_keeps_most_of_it(scales: int, size: int) -> None:
    kept = wavelets.littlewood_paley(size, scales, wavelets.wavelet_bank(size, scales))
    assert kept.max() <= 1 + 1e-12
    assert kept.max() == pytest.approx(1)
    assert kept[0, 0] == pytest.approx(1)  # the average keeps a constant as it is
    assert kept[0, : size // 2].min() > 0.6  # no frequency along an axis is lost


@pytest.mark.parametrize(("scales", "size"), SIZES)
def test_every_wavelet_has_mean_zero(scales: int, size: int) -> None:
    for spectra in wavelets.wavelet_bank(size, scales):
        assert np.abs(spectra[:, 0, 0]).max() < 1e-15


def test_a_wavelet_peaks_at_its_centre_frequency_along_its_direction() -> None:
    size, bank = 128, wavelets.wavelet_bank(128, 3)
    for scale, spectra in enumerate(bank):
        grid = wavelets.frequencies(spectra.shape[-1], wavelets.band(scale))
        for number, spectrum in enumerate(spectra):
            row, column = np.unravel_index(spectrum.argmax(), spectrum.shape)
            angle = np.pi * number / wavelets.ANGLES
            wanted = 3 * np.pi / 4 / 2**scale * np.array([np.sin(angle), np.cos(angle)])
            assert np.abs(np.array([grid[row], grid[column]]) - wanted).max() < 2.5 * np.pi / size + 0.06 / 2**scale


def test_what_the_band_limit_cuts_off_is_below_one_percent_of_the_peak() -> None:
    size, scale = 80, 2
    kept = wavelets.at_full_size(np.ones((size // wavelets.band(scale),) * 2), size) == 1
    assert kept.sum() == 40**2
    grid = wavelets.frequencies(size)
    for angle in np.linspace(0, np.pi, 9):
        whole = wavelets.gaussian_bump(grid, grid, scale, angle, wavelets.CENTRE / 2**scale)
        assert 0 < whole[~kept].max() < 0.01 * whole.max()


def test_the_spectrum_of_a_bump_is_the_transform_of_the_sampled_gaussian() -> None:
    size, scale = 64, 1
    position = np.fft.fftfreq(size) * size
    rows, columns = position[:, None], position[None, :]
    width = 0.8 * 2**scale
    carrier = np.exp(1j * (3 * np.pi / 4 / 2**scale) * columns)
    sampled = carrier * np.exp(-0.5 * (columns**2 + (0.5 * rows) ** 2) / width**2) * (0.5 / (2 * np.pi * width**2))
    spectrum = wavelets.periodic_bump(size, scale, 0.0, 3 * np.pi / 4 / 2**scale)
    assert np.abs(np.fft.fft2(sampled) - spectrum).max() < 1e-9


def test_mirrored_is_the_spectrum_of_the_conjugate() -> None:
    image = np.random.default_rng(0).standard_normal((6, 6)) + 1j * np.random.default_rng(1).standard_normal((6, 6))
    spectrum = np.fft.fft2(image)
    assert np.allclose(wavelets.mirrored(spectrum.real), np.fft.fft2(image.conj()).real)


def test_averaging_equals_the_gaussian_spectrum_and_keeps_a_constant() -> None:
    size, scales = 40, 2
    positions = np.arange(0, size, 4.0)
    matrix = wavelets.averaging_matrix(size, 1, positions, scales)
    assert np.allclose(matrix.sum(axis=1), 1)
    image = np.random.default_rng(0).standard_normal((size, size))
    smooth = np.fft.ifft2(np.fft.fft2(image) * wavelets.average_spectrum(size, scales)).real
    assert np.abs(matrix @ image @ matrix.T - smooth[::4, ::4]).max() < 1e-9


def test_averaging_a_reduced_image_gives_the_same_where_nothing_was_lost() -> None:
    size, scales, positions = 40, 2, np.array([3.5, 7.5, 20.0])
    wave = np.cos(2 * np.pi * 2 * np.arange(size) / size)
    fine = wavelets.averaging_matrix(size, 1, positions, scales) @ wave
    coarse = wavelets.averaging_matrix(size, 2, positions, scales) @ wave[::2]
    assert np.abs(fine - coarse).max() < 0.02
