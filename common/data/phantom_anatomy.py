# SPDX-License-Identifier: Apache-2.0
"""How one synthetic chest radiograph is drawn.

All lengths are in units of half the image, x to the right and y downwards from the centre, so the same parameters give the same
chest at any size. Brightness is radiographic: 0 is air, 1 is dense. Every parameter is an array with one value for each image and
a batch is drawn at once. Nothing here is random; `phantom` draws the parameters.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.floating[Any]]
Parameters = Mapping[str, Floats]

PATIENT_RANGES = {
    "chest_width": (0.80, 0.93),
    "chest_height": (-0.03, 0.05),
    "lung_width": (0.29, 0.35),
    "lung_height": (0.62, 0.72),
    "heart_width": (0.26, 0.38),
    "spine": (0.14, 0.26),
    "rib_strength": (0.05, 0.11),
    "rib_spacing": (0.145, 0.175),
    "rib_slope": (0.15, 0.40),
    "breast_height": (0.22, 0.38),
}
"""What stays the same in all images of a patient: name to (lowest, highest), drawn uniformly."""

IMAGE_RANGES = {
    "shift_x": (-0.05, 0.05),
    "shift_y": (-0.05, 0.05),
    "turn": (-0.07, 0.07),
    "breath": (-0.09, 0.07),
    "exposure": (-0.07, 0.07),
    "slope_x": (-0.08, 0.08),
    "slope_y": (-0.06, 0.06),
    "haze_left": (-0.07, 0.08),
    "haze_right": (-0.07, 0.08),
    "hilum": (0.04, 0.14),
}
"""What changes from image to image: position, depth of breath, exposure, density of each lung."""

EVENNESS = 0.75
"""Even part of a density, where its nodules are 1: higher makes it show in coarse pixels too, and so easier."""

LUNG_CENTRE_X = 0.42
LUNG_CENTRE_Y = -0.10


def draw(size: int, p: Parameters, blobs: Floats) -> Floats:
    """Radiographs float32 [B, size, size].

    `p` has [B] arrays by name; `blobs` [B, K, 7] are x, y, radius, strength, inside a lung (1) or not (0), and angle and wavelength
    of the texture.
    """
    column = {name: value[:, None, None] for name, value in p.items()}
    x, y = _coordinates(size, column)
    soft = 1.2 / size
    lungs = _lung(x, y, -1, column, soft) + _lung(x, y, 1, column, soft)
    body = _step(_body_edge(y, column) - np.abs(x), 2 * soft)
    image = 0.56 + _bones(x, y, column, soft) + _soft_tissue(x, y, column)
    haze = np.where(x < 0, column["haze_left"], column["haze_right"])
    image = image - (0.36 - haze) * lungs
    image = np.maximum(image, _heart(x, y, column, soft)) + _blobs(x, y, blobs, lungs)
    tilt = column["exposure"] + column["slope_x"] * x + column["slope_y"] * y
    return np.asarray(0.04 + body * (image - 0.04 + tilt), dtype=np.float32)


def _step(distance: Floats, width: float) -> Floats:
    """0 far below zero, 1 far above, with a smooth edge of `width`."""
    return np.asarray(0.5 + 0.5 * np.tanh(distance / width))


def _bump(distance_squared: Floats) -> Floats:
    """Gaussian of a squared distance in units of its radius."""
    return np.asarray(np.exp(-0.5 * distance_squared))


def _coordinates(size: int, p: Parameters) -> tuple[Floats, Floats]:
    """Pixel centres, turned and shifted with the patient: two arrays [B, size, size]."""
    axis = ((np.arange(size, dtype=np.float32) + 0.5) * (2 / size) - 1).astype(np.float32)
    x, y = axis[None, None, :] - p["shift_x"], axis[None, :, None] - p["shift_y"]
    cosine, sine = np.cos(p["turn"]), np.sin(p["turn"])
    return cosine * x + sine * y, cosine * y - sine * x


def _body_edge(y: Floats, p: Parameters) -> Floats:
    """Half the width of the body at height y: neck, shoulders, chest."""
    shoulders = _step(y + 0.84 + p["chest_height"], 0.10)
    return np.asarray(0.24 + (p["chest_width"] - 0.24) * shoulders - 0.04 * _bump(((y - 0.35) / 0.4) ** 2))


def _lung(x: Floats, y: Floats, side: int, p: Parameters, soft: float) -> Floats:
    """One lung: an ellipse, narrower at the apex, cut off by the dome of the diaphragm. `side` -1 is left in the image."""
    across = (x - side * LUNG_CENTRE_X) / (p["lung_width"] * (0.92 + 0.28 * y))
    along = (y - LUNG_CENTRE_Y) / p["lung_height"]
    ellipse = _step((1 - across**2 - along**2) * p["lung_width"] * 0.5, soft)
    dome = 0.42 + p["breath"] + 0.7 * (x - side * 0.38) ** 2 - 0.04 * (side < 0)
    return np.asarray(ellipse * _step(dome - y, soft))


def _heart(x: Floats, y: Floats, p: Parameters, soft: float) -> Floats:
    """The heart shadow, larger to the right of the image, with the aortic arch above."""
    heart = 1 - ((x - 0.13 - 0.25 * (y - 0.25)) / p["heart_width"]) ** 2 - ((y - 0.22) / 0.34) ** 2
    arch = 1 - ((x - 0.07) / 0.14) ** 2 - ((y + 0.28) / 0.16) ** 2
    return np.asarray(0.66 * _step(heart * 0.12, soft) + 0.1 * _step(arch * 0.06, soft))


def _bones(x: Floats, y: Floats, p: Parameters, soft: float) -> Floats:
    """Spine, ribs that fall away from it, and collar bones."""
    width = np.abs(x)
    spine = p["spine"] * _bump((x / 0.09) ** 2) * (1 + 0.12 * np.cos(y * 40))
    height = y - p["rib_slope"] * width + 0.55 * width**2
    cage = _step(0.80 - width, 0.05) * _step(width - 0.10, 0.04) * _step(0.55 - y, 0.08) * _step(y + 0.78, 0.05)
    ribs = p["rib_strength"] * np.cos(height * (2 * np.pi / p["rib_spacing"])) * cage
    collar = 0.14 * _bump(((y + 0.66 + 0.16 * width) / (0.025 + soft)) ** 2) * _step(width - 0.10, 0.03) * _step(0.72 - width, 0.05)
    return np.asarray(spine + ribs + collar)


def _soft_tissue(x: Floats, y: Floats, p: Parameters) -> Floats:
    """Mediastinum, hilar vessels, the abdomen below the diaphragm, and breast shadows (`breast` 0 or 1)."""
    middle = 0.10 * _bump((x / 0.17) ** 2)
    hilum = p["hilum"] * _bump(((np.abs(x) - 0.20) / 0.10) ** 2 + ((y + 0.04) / 0.16) ** 2)
    abdomen = 0.12 * _step(y - 0.55 - p["breath"], 0.10)
    breast = p["breast"] * 0.09 * _bump(((np.abs(x) - 0.44) / 0.22) ** 2 + ((y - p["breast_height"]) / 0.20) ** 2)
    return np.asarray(middle + hilum + abdomen + breast)


def _blobs(x: Floats, y: Floats, blobs: Floats, lungs: Floats) -> Floats:
    """Soft round densities of uneven texture, each kept inside the lungs or outside of them."""
    total = np.zeros_like(x)
    for k in range(blobs.shape[1]):
        cx, cy, radius, strength, inside, angle, wave = (blobs[:, k, i, None, None] for i in range(7))
        region = inside * lungs + (1 - inside) * (1 - lungs)
        u = (np.cos(angle) * (x - cx) + np.sin(angle) * (y - cy)) * (2 * np.pi / wave)
        v = (np.cos(angle) * (y - cy) - np.sin(angle) * (x - cx)) * (2 * np.pi / wave)
        texture = EVENNESS + np.cos(u) * np.cos(v)
        total += strength * texture * _bump(((x - cx) ** 2 + (y - cy) ** 2) / radius**2) * region
    return total
