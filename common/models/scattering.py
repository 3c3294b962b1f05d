# SPDX-License-Identifier: Apache-2.0
"""`scattering`: a fixed wavelet scattering transform of order two, and a linear head that is the only thing trained.

The transform (Bruna & Mallat 2013, IEEE TPAMI 35(8); for private training Tramèr & Boneh 2021, arXiv 2011.11660) takes the modulus of
wavelet responses, of their wavelet responses again, and averages each over 2^J pixels. No patient's data shapes it: the constants
that standardise its channels come from synthetic noise (`simulations/make_scattering_constants.py`), so it costs no privacy.
Features are computed once for each image and stored; `forward` takes the stored features.
"""

from __future__ import annotations

import hashlib
import json
from functools import cached_property
from importlib import resources

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from common.errors import InputError
from common.models.base import INPUT_MEAN, INPUT_SCALE, MedicalModel
from common.models.layers import as_logits, output_count, zero_linear
from common.models.wavelets import ANGLES, averaging_matrix, wavelet_bank
from common.study import Study

CODE_VERSION = 1  # raise it with every change of this file or of wavelets.py that changes a feature
MAX_SCALES = 5
GRID = 8
LOG_FLOOR = 0.003
CONSTANTS_FILE = "scattering_constants.json"
CHUNK_NUMBERS = 1 << 15  # pixels transformed together: more does not fit the processor's cache and is slower


def scales_for(image_size: int) -> int:
    """J: the averaging over 2^J pixels leaves a grid of about 8x8. Raises InputError for images that are too large."""
    scales = max(1, round(float(np.log2(image_size / GRID))))
    if scales > MAX_SCALES:
        raise InputError(f"data.image_size: scattering takes at most 256 pixels, not {image_size}; set 256 or less")
    return scales


def channel_count(scales: int) -> int:
    """Channels of the transform of one plane: order 0, 1 and 2."""
    return 1 + ANGLES * scales + ANGLES**2 * (scales * (scales - 1) // 2)


class Scattering:
    """The transform of square planes of one size. Holds constants only, so it is no module; it computes where its input lies."""

    def __init__(self, image_size: int, scales: int, device: torch.device | None = None) -> None:
        self.grid = image_size >> scales
        self.scales = scales
        step = 1 << scales
        padded = -(-image_size // step) * step + 2 * step
        self._pad = (step, padded - image_size - step) * 2
        wavelets = (torch.tensor(bank, dtype=torch.float32, device=device) for bank in wavelet_bank(padded, scales))
        self._wavelets = [bank.repeat_interleave(2, dim=-1) for bank in wavelets]  # each number twice: for real and imaginary part
        first = step + (image_size - self.grid * step) / 2 + (step - 1) / 2
        positions = first + step * np.arange(self.grid, dtype=np.float64)
        averages = (averaging_matrix(padded, 1 << scale, positions, scales) for scale in range(scales))
        self._averages = [torch.tensor(matrix.T, dtype=torch.float32, device=device).contiguous() for matrix in averages]
        self._chunk = max(1, CHUNK_NUMBERS // padded**2)

    @torch.no_grad()
    def __call__(self, planes: Tensor) -> Tensor:
        """Planes [B, H, W] to coefficients [B, channels, grid, grid]: order 0, order 1 by (scale, angle), order 2 by (j1, j2, a1, a2)."""
        return torch.cat([self._transform(chunk) for chunk in torch.split(planes, self._chunk)])

    def _transform(self, planes: Tensor) -> Tensor:
        padded = functional.pad(planes[:, None], self._pad, mode="reflect")  # [B, 1, P, P]
        spectrum = torch.fft.fft2(padded, norm="forward")
        first: list[Tensor] = []
        second: list[Tensor] = []
        for outer in range(self.scales):
            response = self._modulus(spectrum, outer)  # [B, 1·A, m, m]
            first.append(self._average(response, outer))
            if outer + 1 < self.scales:
                response_spectrum = torch.fft.fft2(response, norm="forward")
                second += [self._average(self._modulus(response_spectrum, inner), inner) for inner in range(outer + 1, self.scales)]
        return torch.cat([self._average(padded, 0), *first, *second], dim=1)

    def _modulus(self, spectrum: Tensor, scale: int) -> Tensor:
        """|x ⋆ ψ| for all angles of `scale`, at one pixel in 2^scale: spectrum [B, C, M, M] to [B, C·A, m, m]."""
        wavelets = self._wavelets[scale]
        low = torch.view_as_real(lowest(spectrum, wavelets.shape[-2])).flatten(-2)  # [B, C, n, 2n]: real, imaginary, real, …
        product = multiply_and_fold(low[:, :, None], wavelets) if scale > 0 else low[:, :, None] * wavelets  # [B, C, A, m, 2m]
        response = torch.fft.ifft2(torch.view_as_complex(product.view(*product.shape[:-1], -1, 2)), norm="forward")
        return modulus(response).flatten(1, 2)

    def _average(self, response: Tensor, scale: int) -> Tensor:
        """Average over 2^J pixels at the grid's points: [B, C, m, m] to [B, C, grid, grid]."""
        matrix = self._averages[scale]  # [m, grid]
        rows = (response @ matrix).transpose(-1, -2)  # [B, C, grid of columns, m]
        return (rows @ matrix).transpose(-1, -2)


def lowest(spectrum: Tensor, count: int) -> Tensor:
    """The `count` lowest frequencies in both axes, in FFT order: [..., M, M] to [..., count, count]."""
    if spectrum.shape[-1] == count:
        return spectrum
    half = count // 2
    rows = torch.cat([spectrum[..., :half, :], spectrum[..., -half:, :]], dim=-2)
    return torch.cat([rows[..., :half], rows[..., -half:]], dim=-1)


def quarters(spectrum: Tensor) -> list[Tensor]:
    """The four quarters of [..., n, k], each [..., n/2, k/2]."""
    return [quarter for half in spectrum.chunk(2, dim=-2) for quarter in half.chunk(2, dim=-1)]


def multiply_and_fold(spectrum: Tensor, filters: Tensor) -> Tensor:
    """Filter, then take every second pixel: in the product, frequencies half a period apart add up. [..., n, k] to [..., n/2, k/2]."""
    parts, by = quarters(spectrum), quarters(filters)
    total = parts[0] * by[0]
    for part, filter_part in zip(parts[1:], by[1:], strict=True):
        total.addcmul_(part, filter_part)
    return total


def modulus(values: Tensor) -> Tensor:
    """Absolute value of complex numbers; twice as fast as `abs`, which guards against an overflow that cannot happen here."""
    parts = torch.view_as_real(values)
    real, imaginary = parts[..., 0], parts[..., 1]
    return (real * real).addcmul_(imaginary, imaginary).sqrt_()


def log_coefficients(coefficients: Tensor) -> Tensor:
    """Orders 1 and 2 on a log scale, order 0 as it is: [B, channels, grid, grid]."""
    return torch.cat([coefficients[:, :1], (coefficients[:, 1:] + LOG_FLOOR).log_()], dim=1)


def constants_text() -> str:
    """The constants as they are shipped (JSON)."""
    return resources.files("common.models").joinpath(CONSTANTS_FILE).read_text(encoding="utf-8")


class ScatteringModel(MedicalModel):
    """Recipe: scattering, log, channels standardised by public noise, each image centred and scaled to length 1, linear head from zero."""

    def __init__(self, image_size: int, channels: int, outputs: int) -> None:
        super().__init__()
        self._scales = scales_for(image_size)
        self._shape = (channels, image_size, image_size)
        grid = image_size >> self._scales
        self.head = zero_linear(channels * channel_count(self._scales) * grid**2, outputs)
        self._transform: tuple[torch.device, Scattering, Tensor, Tensor] | None = None

    def forward(self, inputs: Tensor) -> Tensor:
        """Features [B, F] to logits."""
        return as_logits(self.head(inputs))

    @cached_property
    def feature_digest(self) -> str:
        """SHA-256 of code version, settings and constants."""
        settings = [CODE_VERSION, self._scales, ANGLES, self._shape, LOG_FLOOR, INPUT_MEAN, INPUT_SCALE]
        constants = hashlib.sha256(constants_text().encode()).hexdigest()
        return hashlib.sha256(json.dumps(["scattering", settings, constants]).encode()).hexdigest()

    @torch.no_grad()
    def frozen_features(self, images: Tensor) -> Tensor:
        """Images [B, C, H, W] in model units to features [B, F] of length 1. Raises InputError for images of another shape."""
        if images.shape[1:] != self._shape:
            raise InputError(
                f"scattering: images are {tuple(images.shape[1:])}, the study says {self._shape}; prepare the data for this study"
            )
        transform, mean, deviation = self._on(images.device)
        values = log_coefficients(transform(images.flatten(0, 1)))
        features = values.sub_(mean).div_(deviation).reshape(len(images), -1)
        return functional.normalize(features - features.mean(dim=1, keepdim=True), dim=1)

    def _on(self, device: torch.device) -> tuple[Scattering, Tensor, Tensor]:
        """The transform and the constants on `device`, made when they are first needed: training on stored features never does."""
        if self._transform is None or self._transform[0] != device:
            constants = json.loads(constants_text())["scales"][str(self._scales)]
            mean, deviation = (torch.tensor(constants[key], device=device).view(-1, 1, 1) for key in ("mean", "deviation"))
            self._transform = (device, Scattering(self._shape[1], self._scales, device), mean, deviation)
        return self._transform[1:]


def build(study: Study) -> MedicalModel:
    """The model of a study. Raises InputError when its images are too large."""
    return ScatteringModel(study.data.image_size, study.data.channels, output_count(study))
