# SPDX-License-Identifier: Apache-2.0
"""The fixed filters of the scattering transform: Morlet wavelets and a Gaussian average, for a square periodic image.

Scale j has centre frequency 3π/4·2⁻ʲ and spatial width 0.8·2ʲ pixels, elongated by 1/SLANT across its direction (the usual design of
Bruna & Mallat 2013, IEEE TPAMI 35(8)). From scale 1 on a wavelet is cut to the band |ω| ≤ π/2ʲ⁻¹ in both axes; what is cut off is
below 1 % of its peak, and in exchange an image may first be reduced to that band *exactly*. So one array for each scale serves
every order of the transform: it lives on a spectrum of `size / 2^max(j-1, 0)` frequencies.

All wavelets are scaled by one number such that the transform cannot expand: |φ(ω)|² + ½ Σ (|ψ(ω)|² + |ψ(-ω)|²) ≤ 1.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

ANGLES = 8
CENTRE = 3 * np.pi / 4
WIDTH = 0.8
SLANT = 4 / ANGLES

Array = npt.NDArray[np.float64]


def band(scale: int) -> int:
    """How far an image may be reduced before the wavelets of `scale` are applied to it: a factor of 1, 1, 2, 4, …"""
    return 1 << max(scale - 1, 0)


def frequencies(count: int, reduction: int = 1) -> Array:
    """The `count` lowest angular frequencies of an image that was reduced by `reduction`, in FFT order, per original pixel."""
    return np.asarray(2 * np.pi * np.fft.fftfreq(count) / reduction, dtype=np.float64)


def gaussian_bump(rows: Array, columns: Array, scale: int, angle: float, centre: float) -> Array:
    """Spectrum of a Gaussian of direction `angle`, moved to frequency `centre` along that direction: [rows, columns]."""
    along = np.cos(angle) * columns[None, :] + np.sin(angle) * rows[:, None] - centre
    across = np.cos(angle) * rows[:, None] - np.sin(angle) * columns[None, :]
    width = WIDTH * 2**scale
    return np.asarray(np.exp(-0.5 * width**2 * (along**2 + (across / SLANT) ** 2)), dtype=np.float64)


def periodic_bump(size: int, scale: int, angle: float, centre: float) -> Array:
    """The same for a sampled image: spectra repeat every 2π, and their copies add up. [n, n] with n = size / band(scale)."""
    grid = frequencies(size // band(scale), band(scale))
    shifts = 2 * np.pi * np.arange(-1, 2)
    return np.asarray(sum(gaussian_bump(grid + down, grid + right, scale, angle, centre) for down in shifts for right in shifts))


def morlet(size: int, scale: int, angle: float) -> Array:
    """Spectrum of one Morlet wavelet, real, with a mean of exactly zero: [n, n] with n = size / band(scale)."""
    centred = periodic_bump(size, scale, angle, 0.0)
    moved = periodic_bump(size, scale, angle, CENTRE / 2**scale)
    return np.asarray(moved - centred * (moved[0, 0] / centred[0, 0]))


def mirrored(spectrum: Array) -> Array:
    """The spectrum at -ω."""
    return np.roll(spectrum[::-1, ::-1], (1, 1), axis=(0, 1))


def at_full_size(spectrum: Array, size: int) -> Array:
    """Put a spectrum of the lowest frequencies back into one of `size` frequencies: [n, n] to [size, size]."""
    whole = np.zeros((size, size))
    kept = np.round(np.fft.fftfreq(len(spectrum)) * len(spectrum)).astype(int)
    whole[np.ix_(kept, kept)] = spectrum
    return whole


def average_spectrum(size: int, scales: int) -> Array:
    """Spectrum of the Gaussian average over about 2^scales pixels, with a mean of one: [size, size]."""
    grid = frequencies(size)
    line = sum(np.exp(-0.5 * (average_width(scales) * (grid + shift)) ** 2) for shift in 2 * np.pi * np.arange(-1, 2))
    return np.asarray(np.outer(line, line) / line[0] ** 2)


def average_width(scales: int) -> float:
    """Standard deviation in pixels of the Gaussian average."""
    return float(WIDTH * 2 ** (scales - 1))


def littlewood_paley(size: int, scales: int, wavelets: list[Array]) -> Array:
    """Share of the energy of a real image that average and wavelets keep at each frequency: [size, size]."""
    total = average_spectrum(size, scales) ** 2
    for scale in wavelets:
        for spectrum in scale:
            energy = at_full_size(spectrum, size) ** 2
            total += 0.5 * (energy + mirrored(energy))
    return total


def wavelet_bank(size: int, scales: int) -> list[Array]:
    """Wavelets of every scale on a periodic image of `size` pixels: for scale j an array [ANGLES, n, n], n = size / band(j).

    `size` must be divisible by 2^scales.
    """
    angles = np.pi * np.arange(ANGLES) / ANGLES
    raw = [np.stack([morlet(size, scale, angle) for angle in angles]) for scale in range(scales)]
    room = 1 - average_spectrum(size, scales) ** 2
    used = littlewood_paley(size, scales, raw) - (1 - room)
    present = used > 1e-12
    gain = float(np.sqrt((room[present] / used[present]).min()))
    return [gain * scale for scale in raw]


def averaging_matrix(size: int, step: int, positions: Array, scales: int) -> Array:
    """Average a line of `size` periodic pixels that was sampled at every `step`: [len(positions), size / step], rows sum to one.

    The two-dimensional average is separable: averaging_matrix @ image @ averaging_matrix.T.
    """
    distance = positions[:, None] - step * np.arange(size // step)[None, :]
    distance = (distance + size / 2) % size - size / 2
    weight = np.exp(-0.5 * (distance / average_width(scales)) ** 2)
    return np.asarray(weight / weight.sum(axis=1, keepdims=True), dtype=np.float64)
