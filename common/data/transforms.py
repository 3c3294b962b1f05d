# SPDX-License-Identifier: Apache-2.0
"""Random changes of training images, as a plain function of uniform numbers that the caller draws.

Nothing here owns a generator: private training draws its numbers from the operating system, a run without privacy from a seed, and
the same numbers give the same images.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from common import study
from common.models.base import INPUT_SCALE

UNIFORMS = 8
"""Numbers for each image: shift x, shift y, rotation, zoom, contrast, brightness, flip, and one in reserve."""


def augment(images: Tensor, settings: study.Augmentation, uniforms: Tensor) -> Tensor:
    """Change each image by its own numbers.

    `images` float32 [B, C, H, W] in model units, `uniforms` float32 [B, 8] in [0, 1): 0.5 means no change and the ends mean the
    largest change either way. What comes in from outside repeats the border. Grey values are not clipped. The input is not changed;
    it is returned as it is when no setting is active. Raises ValueError on other shapes.
    """
    if uniforms.shape != (len(images), UNIFORMS):
        raise ValueError(f"uniforms: expected shape {[len(images), UNIFORMS]}, got {list(uniforms.shape)}")
    if not settings.is_active:
        return images
    signed = 2 * uniforms - 1  # [B, 8] in [-1, 1)
    if settings.flip:
        images = torch.where((uniforms[:, 6] < 0.5).view(-1, 1, 1, 1), images.flip(-1), images)
    if settings.shift or settings.rotate_degrees or settings.zoom:
        images = _warp(images, settings, signed)
    if settings.contrast or settings.brightness:
        images = _regrade(images, settings, signed)
    return images


def _warp(images: Tensor, settings: study.Augmentation, signed: Tensor) -> Tensor:
    """Shift, rotate and zoom about the centre, bilinear, in one resampling."""
    height, width = images.shape[-2:]
    angle = signed[:, 2] * math.radians(settings.rotate_degrees)
    zoom = 1 + signed[:, 3] * settings.zoom
    cosine, sine = angle.cos() / zoom, angle.sin() / zoom
    # Where each output pixel is read: turned back, in units in which the image is 2 wide and 2 high.
    dx, dy = -2 * settings.shift * signed[:, 0], -2 * settings.shift * signed[:, 1]
    across = torch.stack([cosine, sine * (height / width), dx], dim=1)
    down = torch.stack([-sine * (width / height), cosine, dy], dim=1)
    grid = functional.affine_grid(torch.stack([across, down], dim=1), list(images.shape), align_corners=False)  # [B, H, W, 2]
    return functional.grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=False)


def _regrade(images: Tensor, settings: study.Augmentation, signed: Tensor) -> Tensor:
    """Contrast about mid-grey, then brightness in units of the full grey range."""
    contrast = 1 + signed[:, 4] * settings.contrast
    brightness = signed[:, 5] * settings.brightness / INPUT_SCALE
    return images * contrast.view(-1, 1, 1, 1) + brightness.view(-1, 1, 1, 1)
