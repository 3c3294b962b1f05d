# SPDX-License-Identifier: Apache-2.0
"""Makes the constants that standardise the channels of `scattering`, from synthetic noise alone: no patient's image is involved.

    python -m simulations.make_scattering_constants common/models/scattering_constants.json

For each J: mean and standard deviation of every channel over 200 noise images (seed 3) of 8·2^J pixels whose amplitude falls with
frequency as 1/f^1.3, with mean 0 and standard deviation 1 in model units. Takes a minute; run it again whenever
`CODE_VERSION` of `common/models/scattering.py` changes.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from common.files import write_atomic
from common.models.scattering import CODE_VERSION, GRID, MAX_SCALES, Scattering, log_coefficients

IMAGES = 200
SEED = 3
EXPONENT = 1.3
DIGITS = 6


def noise_images(count: int, size: int, seed: int) -> npt.NDArray[np.float32]:
    """Grey noise [count, size, size] with amplitude 1/f^EXPONENT; every image has mean 0 and standard deviation 1."""
    grid = np.fft.fftfreq(size)
    frequency = np.hypot(grid[:, None], grid[None, :])
    frequency[0, 0] = np.inf
    white = np.random.default_rng(seed).standard_normal((count, size, size))
    images = np.fft.ifft2(np.fft.fft2(white) * frequency**-EXPONENT).real
    return np.asarray(images / images.std(axis=(1, 2), keepdims=True), dtype=np.float32)


def channel_constants(scales: int, images: int = IMAGES) -> dict[str, list[float]]:
    """Mean and standard deviation of every channel for J = `scales`."""
    size = GRID << scales
    values = log_coefficients(Scattering(size, scales)(torch.from_numpy(noise_images(images, size, SEED)))).double()
    deviation, mean = torch.std_mean(values, dim=(0, 2, 3), correction=0)
    return {"mean": significant(mean), "deviation": significant(deviation)}


def significant(values: torch.Tensor) -> list[float]:
    """The numbers with DIGITS significant digits."""
    return [float(f"{value:.{DIGITS}g}") for value in values.tolist()]


def constants_json() -> str:
    """The whole file."""
    content = {
        "made_by": "simulations/make_scattering_constants.py from synthetic noise; no patient data",
        "code_version": CODE_VERSION,
        "images": IMAGES,
        "seed": SEED,
        "exponent": EXPONENT,
        "scales": {str(scales): channel_constants(scales) for scales in range(1, MAX_SCALES + 1)},
    }
    return json.dumps(content, separators=(",", ":")) + "\n"


def main() -> None:
    """Write the file that the first argument names."""
    parser = argparse.ArgumentParser(description="Make the constants of the scattering model from synthetic noise.")
    parser.add_argument("path", type=Path, help="file to write, common/models/scattering_constants.json")
    write_atomic(parser.parse_args().path, constants_json())


if __name__ == "__main__":
    main()
