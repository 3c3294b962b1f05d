# SPDX-License-Identifier: Apache-2.0
"""Per-sample gradients for layers that Opacus does not know.

Opacus finds the rule of a layer by its exact class; for any other class it falls back to functorch, which is slow and fails on some
batches. `register` adds our rules to its table.
"""

from __future__ import annotations

import torch
from opacus.grad_sample import GradSampleModule, register_grad_sampler
from opacus.utils.tensor_utils import unfold2d
from torch import Tensor, nn

from common.models.layers import WEIGHT_EPS, WEIGHT_GAIN, WSConv2d

GradSamples = dict[Tensor, Tensor]


def register() -> None:
    """Make our layers known to Opacus; calling it again changes nothing."""
    if GradSampleModule.GRAD_SAMPLERS.get(WSConv2d) is not ws_conv_grad_samples:
        register_grad_sampler(WSConv2d)(ws_conv_grad_samples)


def ws_conv_grad_samples(layer: WSConv2d, activations: list[Tensor], backprops: Tensor) -> GradSamples:
    """Gradients of the stored weight [R, O, I/groups, kH, kW] and of the bias [R, O] for each of R rows.

    `activations[0]` is the layer's input [R, I, H, W], `backprops` the loss gradient at its output [R, O, H', W'].
    """
    samples: GradSamples = {}
    flat = backprops.flatten(2)  # (R, O, T)
    if layer.weight.requires_grad:
        samples[layer.weight] = _weight_grad_samples(layer, activations[0].to(backprops.dtype).contiguous(), flat)
    if layer.bias is not None and layer.bias.requires_grad:
        samples[layer.bias] = flat.sum(2)
    return samples


@torch.no_grad()
def _weight_grad_samples(layer: WSConv2d, inputs: Tensor, backprops: Tensor) -> Tensor:
    """Output gradient times unfolded input is the gradient g of the weight that the convolution uses; then the Jacobian.

    Same as `WSConv2d.standardise_gradient`, arranged for many rows: with n the norm of a centred filter, u its direction and
    s = n + eps, the Jacobian is gain / s times the identity less two projections, g - u (u.g) n / s - mean(g).
    """
    rows, outputs = backprops.shape[:2]
    centred = layer.weight.flatten(1) - layer.weight.flatten(1).mean(1, keepdim=True)  # (O, F), F = I/groups*kH*kW
    norm = centred.norm(dim=1, keepdim=True)
    scale = norm + WEIGHT_EPS
    direction = centred / norm.clamp_min(torch.finfo(norm.dtype).tiny)
    removed = torch.stack(((norm / scale).sqrt() * direction, torch.full_like(centred, centred.shape[1] ** -0.5)), dim=1)  # (O, 2, F)

    columns = unfold2d(inputs, kernel_size=layer.kernel_size, padding=layer.padding, stride=layer.stride, dilation=layer.dilation)
    columns = columns.reshape(rows * layer.groups, centred.shape[1], -1)  # (R*groups, F, T)
    scaled = (backprops * (WEIGHT_GAIN / scale)).reshape(rows * layer.groups, outputs // layer.groups, -1)
    gradient = torch.bmm(scaled, columns.transpose(1, 2)).view(rows, outputs, -1).transpose(0, 1)  # (O, R, F)
    gradient.baddbmm_(torch.bmm(gradient, removed.transpose(1, 2)), removed, alpha=-1)
    return gradient.transpose(0, 1).reshape(rows, *layer.weight.shape)


def padding_problems(model: nn.Module) -> list[str]:
    """Trainable convolutions whose padding these rules do not know, one line with a remedy for each."""
    return [
        f"{name}: padding_mode {layer.padding_mode} has no rule for per-sample gradients in the engine opacus; use zeros, or bookkeeping"
        for name, layer in model.named_modules()
        if getattr(layer, "padding_mode", "zeros") != "zeros" and any(p.requires_grad for p in layer.parameters(recurse=False))
    ]
