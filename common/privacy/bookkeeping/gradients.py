# SPDX-License-Identifier: Apache-2.0
"""Each patient's gradient of a layer's parameters, from the layer's input and its output gradient.

One function a layer type, found by the exact class in `RULES`. All of them answer the same question: rows come as `slots` patients with
the same number of views each (views of a patient stand together), and the result holds for every trainable parameter one flat gradient
a patient, [slots, n], in at least float32 whatever the activations were.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from common.models.layers import WEIGHT_EPS, WEIGHT_GAIN, WSConv2d
from common.privacy.bookkeeping.recorder import Use

CHUNK_NUMBERS: Final = 1 << 19  # of unfolded input handled at once: stays in the processor's cache
LEAST_CHANNELS: Final = 8  # from here on patches are laid out with the channels together, which copies faster


@dataclass(frozen=True)
class Gradients:
    """`rows` [slots, n]: one parameter's gradient for each patient.

    With `taps` above 1 a row holds a convolution's weight as [outputs, taps, inputs], not as the parameter's [outputs, inputs, taps];
    norms do not care, and only the sum has to be put in order.
    """

    parameter: Tensor
    rows: Tensor
    taps: int = 1


Rule = Callable[["Use", int], list[Gradients]]


def natural_order(parameter: Tensor, flat: Tensor, taps: int) -> Tensor:
    """One flat gradient [n] in the order of the parameter."""
    return flat if taps == 1 else flat.view(parameter.shape[0], taps, -1).transpose(1, 2).reshape(-1)


def patient_gradients(use: Use, slots: int) -> list[Gradients]:
    """Gradients of `use`'s trainable parameters for each of `slots` patients."""
    return RULES[type(use.layer)](use, slots)


def wanted(parameter: Tensor | None) -> bool:
    """Whether a parameter is there and trained."""
    return parameter is not None and parameter.requires_grad


def operands(use: Use) -> tuple[Tensor, Tensor]:
    """Input and output gradient of one precision, float32 or better."""
    if use.output_gradient is None:
        raise RuntimeError("the layer was not reached by the backward pass")
    dtype = torch.float64 if use.output_gradient.dtype == torch.float64 else torch.float32
    inputs = use.inputs.to(dtype) if use.inputs.is_floating_point() else use.inputs
    return inputs, use.output_gradient.to(dtype)


def add_views(rows: Tensor, slots: int) -> Tensor:
    """Sum over each patient's views: [slots * views, n] to [slots, n]."""
    return rows if len(rows) == slots else rows.view(slots, len(rows) // slots, -1).sum(1)


def patches_by_place(inputs: Tensor, layer: nn.modules.conv._ConvNd, positions: Sequence[int]) -> Tensor:
    """The patches under the kernel at each of `positions` places: [R, I, ...] to [R, groups, places, taps * I/groups], taps first."""
    padded = _pad(inputs, layer, channels_last=True)
    steps = padded.stride()[1:-1]
    channels = inputs.shape[1] // layer.groups
    sizes = (len(padded), layer.groups, *positions, *layer.kernel_size, channels)
    strides = (padded.stride(0), channels, *_shifts(steps, layer.stride), *_shifts(steps, layer.dilation), 1)
    return padded.as_strided(sizes, strides).reshape(len(padded), layer.groups, math.prod(positions), -1)


def patches_by_tap(inputs: Tensor, layer: nn.modules.conv._ConvNd, positions: Sequence[int]) -> Tensor:
    """The same as [R, groups, I/groups * taps, places], channels first."""
    padded = _pad(inputs, layer, channels_last=False)
    steps = padded.stride()[2:]
    sizes = (*padded.shape[:2], *layer.kernel_size, *positions)
    strides = (*padded.stride()[:2], *_shifts(steps, layer.dilation), *_shifts(steps, layer.stride))
    return padded.as_strided(sizes, strides).reshape(len(padded), layer.groups, -1, math.prod(positions))


def _shifts(steps: Sequence[int], factors: Sequence[int]) -> list[int]:
    return [step * factor for step, factor in zip(steps, factors, strict=True)]


def _pad(inputs: Tensor, layer: nn.modules.conv._ConvNd, *, channels_last: bool) -> Tensor:
    """Inputs with the layer's padding, contiguous, [R, I, ...] or [R, ..., I]."""
    pads = [pad for size in reversed(_padding(layer)) for pad in size]
    if layer.padding_mode != "zeros":
        inputs, pads = functional.pad(inputs, pads, mode=layer.padding_mode), [0] * len(pads)
    if channels_last:
        inputs, pads = inputs.movedim(1, -1), [0, 0, *pads]
    return functional.pad(inputs, pads).contiguous() if any(pads) else inputs.contiguous()


def _padding(layer: nn.modules.conv._ConvNd) -> list[tuple[int, int]]:
    """Padding before and after, for each dimension, first dimension first."""
    if isinstance(layer.padding, str):
        both = layer._reversed_padding_repeated_twice
        return list(zip(both[0::2], both[1::2], strict=True))[::-1]
    return [(size, size) for size in layer.padding]


def bias_gradients(use: Use, slots: int) -> list[Gradients]:
    """Gradient of a convolution's or a linear layer's bias, if it is trained."""
    bias = use.layer.bias
    if not isinstance(bias, nn.Parameter) or not bias.requires_grad:
        return []
    backward = operands(use)[1]
    if isinstance(use.layer, nn.Linear):
        return [Gradients(bias, backward.reshape(slots, -1, backward.shape[-1]).sum(1))]
    return [Gradients(bias, add_views(backward.flatten(2).sum(2), slots))]


def convolution(use: Use, slots: int) -> list[Gradients]:
    """Conv1d, Conv2d, Conv3d: the output gradient times the unfolded input."""
    layer = cast(nn.modules.conv._ConvNd, use.layer)
    inputs, backward = operands(use)
    weight = [_products(layer, backward, inputs, slots)] if wanted(layer.weight) else []
    return weight + bias_gradients(use, slots)


def transposed_convolution(use: Use, slots: int) -> list[Gradients]:
    """ConvTranspose: input and output change places, the output gradient is what is unfolded."""
    layer = cast(nn.modules.conv._ConvTransposeNd, use.layer)
    inputs, backward = operands(use)
    weight = [_products(layer, inputs, backward, slots)] if wanted(layer.weight) else []
    return weight + bias_gradients(use, slots)


def _products(layer: nn.modules.conv._ConvNd, left: Tensor, unfolded: Tensor, slots: int) -> Gradients:
    """Sum over places and views of `left` [R, A, ...] times the patches of `unfolded` [R, B, ...]: the weight, A * B/groups * taps."""
    rows, outputs, *positions = left.shape
    views, groups = rows // slots, layer.groups
    channels, taps, places = unfolded.shape[1] // groups, math.prod(layer.kernel_size), math.prod(positions)
    by_place = channels >= LEAST_CHANNELS
    result = left.new_empty(slots, groups, outputs // groups, channels * taps)
    chunk = max(1, CHUNK_NUMBERS // max(1, views * groups * channels * taps * places))
    for first in range(0, slots, chunk):
        part = slice(first * views, (first + chunk) * views)
        target = result[first : first + chunk]
        factors = left[part].reshape(len(target), views, groups, outputs // groups, places)
        if by_place:
            patches = patches_by_place(unfolded[part], layer, positions).view(len(target), views, groups, places, -1)
        else:
            patches = patches_by_tap(unfolded[part], layer, positions).view(len(target), views, groups, -1, places).transpose(-1, -2)
        _multiply(factors, patches, target)
    return Gradients(layer.weight, result.view(slots, -1), taps if by_place else 1)


def _multiply(factors: Tensor, patches: Tensor, result: Tensor) -> None:
    """result [s, g, a, b] = sum over views v of factors [s, v, g, a, t] times patches [s, v, g, t, b]."""
    flat = result.view(-1, *result.shape[2:])
    for view in range(factors.shape[1]):
        left, right = factors[:, view].flatten(0, 1), patches[:, view].flatten(0, 1)
        if view == 0:
            torch.bmm(left, right, out=flat)
        else:
            flat.baddbmm_(left, right)


def standardised_convolution(use: Use, slots: int) -> list[Gradients]:
    """WSConv2d: the gradient of the filter that is used, then the Jacobian of the standardisation.

    With n the norm of a centred filter, u its direction and s = n + eps, the Jacobian is gain / s times the identity less two
    projections: g - u (u.g) n / s - mean(g).
    """
    layer = cast(WSConv2d, use.layer)
    found = convolution(use, slots)
    for gradients in found:
        if gradients.parameter is layer.weight:
            _standardise(layer, gradients)
    return found


@torch.no_grad()
def _standardise(layer: WSConv2d, gradients: Gradients) -> None:
    """The Jacobian applied to every row, in place."""
    weight = layer.weight.flatten(2).to(gradients.rows.dtype)
    filters = (weight if gradients.taps == 1 else weight.transpose(1, 2)).flatten(1)  # (O, F) in the order of the rows
    centred = filters - filters.mean(1, keepdim=True)
    norm = centred.norm(dim=1, keepdim=True)
    scale = norm + WEIGHT_EPS
    direction = centred / norm.clamp_min(torch.finfo(norm.dtype).tiny)
    removed = torch.stack(((norm / scale).sqrt() * direction, torch.full_like(centred, centred.shape[1] ** -0.5)), dim=1)  # (O, 2, F)
    rows = gradients.rows.view(-1, *centred.shape).transpose(0, 1)  # (O, slots, F)
    along = torch.bmm(rows, removed.transpose(1, 2))
    rows.baddbmm_(along, removed, alpha=-1)
    rows *= (WEIGHT_GAIN / scale).unsqueeze(1)


def linear(use: Use, slots: int) -> list[Gradients]:
    """Linear on [R, ..., I]: places in between are summed like views."""
    layer = cast(nn.Linear, use.layer)
    inputs, backward = operands(use)
    left, right = backward.reshape(slots, -1, layer.out_features), inputs.reshape(slots, -1, layer.in_features)
    weight = [Gradients(layer.weight, torch.bmm(left.transpose(1, 2), right).view(slots, -1))] if wanted(layer.weight) else []
    return weight + bias_gradients(use, slots)


def group_norm(use: Use, slots: int) -> list[Gradients]:
    """GroupNorm: with the group's mean m and reciprocal deviation r, the weight's gradient is r (Σ g x - m Σ g) for each channel."""
    layer = cast(nn.GroupNorm, use.layer)
    inputs, backward = operands(use)
    rows, channels = inputs.shape[:2]
    values, gradient = inputs.reshape(rows, channels, -1), backward.reshape(rows, channels, -1)
    total = gradient.sum(2)
    found = [Gradients(layer.bias, add_views(total, slots))] if wanted(layer.bias) else []
    if wanted(layer.weight):
        mean, reciprocal = (value.repeat_interleave(channels // layer.num_groups, 1) for value in _statistics(use, inputs))
        product = (gradient * values).sum(2)
        found.append(Gradients(layer.weight, add_views(reciprocal * (product - mean * total), slots)))
    return found


def _statistics(use: Use, inputs: Tensor) -> tuple[Tensor, Tensor]:
    layer = cast(nn.GroupNorm, use.layer)
    shape = (len(inputs), layer.num_groups)
    if use.statistics is not None:
        return use.statistics[0].to(inputs.dtype).view(shape), use.statistics[1].to(inputs.dtype).view(shape)
    variance, mean = torch.var_mean(inputs.reshape(*shape, -1), dim=2, correction=0)
    return mean, (variance + layer.eps).rsqrt()


def instance_norm(use: Use, slots: int) -> list[Gradients]:
    """InstanceNorm: every channel is its own group."""
    layer = cast(nn.modules.instancenorm._InstanceNorm, use.layer)
    inputs, backward = operands(use)
    normal = functional.instance_norm(inputs, eps=layer.eps)
    return _affine(layer, (backward * normal).flatten(2).sum(2), backward.flatten(2).sum(2), slots)


def layer_norm(use: Use, slots: int) -> list[Gradients]:
    """LayerNorm over the last dimensions; dimensions before them are summed like views."""
    layer = cast(nn.LayerNorm, use.layer)
    inputs, backward = operands(use)
    normal = functional.layer_norm(inputs, layer.normalized_shape, eps=layer.eps)
    shape = (len(inputs), -1, math.prod(layer.normalized_shape))
    return _affine(layer, (backward * normal).reshape(shape).sum(1), backward.reshape(shape).sum(1), slots)


def _affine(layer: nn.Module, weight: Tensor, bias: Tensor, slots: int) -> list[Gradients]:
    """Weight and bias of a norm layer, from rows [R, n]."""
    pairs = (("weight", weight), ("bias", bias))
    return [Gradients(getattr(layer, name), add_views(rows, slots)) for name, rows in pairs if wanted(getattr(layer, name))]


def embedding(use: Use, slots: int) -> list[Gradients]:
    """Embedding of whole numbers [R, ...]: the output gradient goes to the row that was looked up."""
    layer = cast(nn.Embedding, use.layer)
    backward = operands(use)[1].reshape(slots, -1, layer.embedding_dim)
    looked_up = use.inputs.reshape(slots, -1, 1).expand_as(backward)
    gradient = backward.new_zeros(slots, layer.num_embeddings, layer.embedding_dim).scatter_add_(1, looked_up, backward)
    if layer.padding_idx is not None:
        gradient[:, layer.padding_idx] = 0
    return [Gradients(layer.weight, gradient.view(slots, -1))]


RULES: Final[Mapping[type[nn.Module], Rule]] = {
    nn.Conv1d: convolution,
    nn.Conv2d: convolution,
    nn.Conv3d: convolution,
    nn.ConvTranspose2d: transposed_convolution,
    WSConv2d: standardised_convolution,
    nn.Linear: linear,
    nn.GroupNorm: group_norm,
    nn.LayerNorm: layer_norm,
    nn.InstanceNorm1d: instance_norm,
    nn.InstanceNorm2d: instance_norm,
    nn.InstanceNorm3d: instance_norm,
    nn.Embedding: embedding,
}
