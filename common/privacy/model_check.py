# SPDX-License-Identifier: Apache-2.0
"""What can be said of a model, an optimiser and the numbers of a step before any row is seen: all problems, each with its remedy."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator

from torch import nn
from torch.optim import Optimizer

from common.privacy.clipping import MANTISSA_BITS
from common.privacy.grid import GRID_BITS

SMALLEST_NORM, LARGEST_NORM = 1e-6, 1e6
STEPPER_MARKS = ("autograd_grad_sample_hooks", "wardround_recorder")


def number_problems(clipping_norm: float, noise_multiplier: float, divisor: float, grid_bits: int) -> list[str]:
    """Settings of a step that make no sense."""
    problems = []
    if not SMALLEST_NORM <= clipping_norm <= LARGEST_NORM:
        problems.append(f"clipping_norm: {clipping_norm} is not between {SMALLEST_NORM} and {LARGEST_NORM}")
    if not 0 <= noise_multiplier < math.inf:
        problems.append(f"noise_multiplier: {noise_multiplier} is not a number from 0")
    if not 0 < divisor < math.inf:
        problems.append(f"divisor: {divisor} is not above 0; it is the public sampling rate times the public nominal size")
    if not GRID_BITS <= grid_bits <= 48:
        problems.append(f"grid_bits: {grid_bits} is not between {GRID_BITS} and 48")
    return problems


def model_problems(model: nn.Module, optimiser: Optimizer, rules: Collection[type[nn.Module]]) -> list[str]:
    """Everything in `model` and `optimiser` that private training cannot take; `rules` are the trainable layers that an engine knows."""
    problems = layer_problems(model, rules)
    if any(hasattr(model, mark) for mark in STEPPER_MARKS):
        problems.append("the model already has a stepper; close that one first")
    trainable = {parameter: name for name, parameter in model.named_parameters() if parameter.requires_grad}
    stepped = {parameter for group in optimiser.param_groups for parameter in group["params"] if parameter.requires_grad}
    problems += [
        f"{name}: trainable but not in the optimiser; its gradient would escape the noise"
        for p, name in trainable.items()
        if p not in stepped
    ]
    if stepped - trainable.keys():
        problems.append("the optimiser holds parameters that are not the model's; make it from this model's parameters")
    problems += [
        f"{name}: {p.dtype} cannot be clipped exactly; use float32" for p, name in trainable.items() if p.dtype not in MANTISSA_BITS
    ]
    return problems


def layer_problems(model: nn.Module, rules: Collection[type[nn.Module]]) -> list[str]:
    """Layers that private training cannot take, one line with a remedy for each; empty if all is well."""
    problems = [problem for name, layer in model.named_modules() for problem in _problems_of(name or "the model itself", layer, rules)]
    problems += shared_parameters(model)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        problems.append("no parameter is trainable; unfreeze at least the last layer")
    return problems


def shared_parameters(model: nn.Module) -> Iterator[str]:
    """Trainable parameters that are used under two names: their per-sample gradients would be counted apart."""
    first: dict[int, str] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        other = first.setdefault(id(parameter), name)
        if parameter.requires_grad and other != name:
            yield f"{name}: the same parameter as {other}; give each layer its own"


def _problems_of(name: str, layer: nn.Module, rules: Collection[type[nn.Module]]) -> Iterator[str]:
    kind = type(layer).__name__
    trainable = any(parameter.requires_grad for parameter in layer.parameters(recurse=False))
    if isinstance(layer, nn.modules.batchnorm._BatchNorm):
        yield f"{name}: {kind} mixes the patients of a batch and keeps their statistics; use GroupNorm"
        return
    if isinstance(layer, nn.modules.instancenorm._InstanceNorm) and layer.track_running_stats:
        yield f"{name}: {kind} keeps running statistics of patients; set track_running_stats=False"
    if getattr(layer, "inplace", False):
        yield f"{name}: {kind} works in place, which breaks per-sample gradients; set inplace=False"
    if trainable and type(layer) not in rules:
        yield f"{name}: {kind} is trained but has no rule for per-sample gradients; register one, replace the layer or freeze it"
    if isinstance(layer, nn.Embedding):
        yield from _embedding_problems(name, layer)


def _embedding_problems(name: str, layer: nn.Embedding) -> Iterator[str]:
    if layer.weight.requires_grad and (layer.max_norm is not None or layer.scale_grad_by_freq or layer.sparse):
        yield f"{name}: Embedding with max_norm, scale_grad_by_freq or sparse couples rows or changes weights; leave these off"
