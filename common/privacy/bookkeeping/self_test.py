# SPDX-License-Identifier: Apache-2.0
"""Does the engine see everything? Asked before the first step, with made-up rows of the shape of the first real ones.

The rules see a layer's input and output gradient. Whatever else moves a parameter's gradient escapes them: a loss or a layer that
couples rows, a parameter used outside its layer, an activation that overwrites its input, a weight used twice. So on three made-up rows
the engine's gradient of each row is compared with autograd's gradient of that row's loss, on one and the same forward pass. Buffers
that the forward pass changes are found by looking. No patient's data is touched, so a refusal tells nothing about any.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import product
from typing import Final

import torch
from torch import Tensor, nn

from common.privacy.bookkeeping.gradients import natural_order, patient_gradients
from common.privacy.bookkeeping.recorder import Recorder, Use
from common.privacy.step import MicroBatch

ROWS: Final = 3
TOLERANCE: Final = 1e-3  # of the largest gradient of a parameter; a coupling or a lost use is far above
AT_ONCE: Final = 1 << 21
SHORT_TOLERANCE: Final = 5e-2  # where activations are bfloat16 or float16


def coupling_problems(recorder: Recorder, model: nn.Module, row_loss: Callable[[Tensor, Tensor], Tensor], like: MicroBatch) -> list[str]:
    """What keeps patients from being told apart, a line each with its remedy; empty if all is well."""
    before = {name: value.clone() for name, value in model.named_buffers()}
    try:
        problems = _gradient_problems(recorder, model, row_loss, *_made_up_rows(like))
    finally:
        recorder.forget()
        changed = [name for name, value in model.named_buffers() if not torch.equal(value, before[name])]
        for name, value in model.named_buffers():
            value.copy_(before[name])
    remedy = "it would carry patients' data past the noise; use a layer without running statistics"
    return problems + [f"{name}: the forward pass changes this buffer, and {remedy}" for name in changed]


def _made_up_rows(like: MicroBatch) -> tuple[Tensor, Tensor]:
    """Inputs of the first rows' shape from a fixed public generator, and targets of zero."""
    shape = (ROWS, *like.inputs.shape[1:])
    if like.inputs.is_floating_point():
        numbers = torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float32)
    else:
        numbers = torch.randint(0, 2, shape, generator=torch.Generator().manual_seed(1))
    targets = torch.zeros((ROWS, *like.targets.shape[1:]), dtype=like.targets.dtype, device=like.targets.device)
    return numbers.to(like.inputs.device, like.inputs.dtype), targets


def _gradient_problems(
    recorder: Recorder, model: nn.Module, row_loss: Callable[[Tensor, Tensor], Tensor], inputs: Tensor, targets: Tensor
) -> list[str]:
    losses = row_loss(recorder.record(inputs), targets)
    if losses.shape != (ROWS,):
        return [shape_problem(losses, ROWS)]
    names = {value: name for name, value in model.named_parameters() if value.requires_grad}
    comparison = _Comparison(names)
    try:
        uses: list[Use] = []
        recorder.backward(losses.sum(), lambda use: uses.append(replace(use)), keep_graph=True)
        for (row, loss), some in product(enumerate(losses), _portions([*names])):
            expected = torch.autograd.grad(loss, some, retain_graph=True, allow_unused=True)
            comparison.add_row(uses, row, dict(zip(some, expected, strict=True)))
    except RuntimeError as error:
        return [f"the model: its backward pass fails ({str(error).splitlines()[0]}); use no operation that works in place"]
    return comparison.problems()


def _portions(parameters: Sequence[nn.Parameter]) -> list[list[nn.Parameter]]:
    """The parameters in order, cut where `AT_ONCE` numbers are together: a large model's gradient is never in memory whole."""
    portions: list[list[nn.Parameter]] = [[]]
    for parameter in parameters:
        if portions[-1] and sum(other.numel() for other in portions[-1]) + parameter.numel() > AT_ONCE:
            portions.append([])
        portions[-1].append(parameter)
    return portions


class _Comparison:
    """Row by row and portion by portion."""

    def __init__(self, names: dict[nn.Parameter, str]) -> None:
        self._names = names
        self._reached: set[Tensor] = set()
        self._used: set[Tensor] = set()
        self._wrong: set[Tensor] = set()

    def add_row(self, uses: Sequence[Use], row: int, expected: dict[nn.Parameter, Tensor | None]) -> None:
        """What autograd's gradient of one row has left when the engine's is taken from it; nothing should be."""
        tolerance = SHORT_TOLERANCE if any(_is_short(use) for use in uses) else TOLERANCE
        left: dict[Tensor, Tensor] = {parameter: value.flatten() for parameter, value in expected.items() if value is not None}
        size = {parameter: value.abs().max().item() for parameter, value in left.items()}
        self._reached |= left.keys()
        for use in (use for use in uses if any(parameter in expected for parameter in use.layer.parameters(recurse=False))):
            for part in patient_gradients(use.of_row(row), 1):
                self._used.add(part.parameter)
                if part.parameter in left:
                    left[part.parameter] -= natural_order(part.parameter, part.rows[0], part.taps)
        least = TOLERANCE * max(size.values(), default=0.0)
        self._wrong |= {parameter for parameter, rest in left.items() if rest.abs().max() > tolerance * max(size[parameter], least)}

    def problems(self) -> list[str]:
        """One line for each parameter with something wrong."""
        return [line for parameter, name in self._names.items() if (line := self._problem(parameter, name)) is not None]

    def _problem(self, parameter: Tensor, name: str) -> str | None:
        if parameter not in self._reached:
            return f"{name}: the loss does not depend on it; freeze or remove it"
        if parameter not in self._used:
            return f"{name}: the loss depends on it, but not by its own layer; use it there only, overwrite nothing in place, or freeze it"
        if parameter in self._wrong:
            return (
                f"{name}: a row's gradient is not what its layer saw; the loss or a layer mixes rows, the parameter is also used "
                "elsewhere, or an operation works in place: give one loss a row, use GroupNorm, and operations that return a new tensor"
            )
        return None


def _is_short(use: Use) -> bool:
    return use.output_gradient is not None and use.output_gradient.dtype in (torch.bfloat16, torch.float16)


def shape_problem(losses: Tensor, rows: int) -> str:
    """What to say of a loss that is not one number a row."""
    return (
        f"row_loss: gave a tensor of shape {list(losses.shape)} for {rows} rows, must be [{rows}]: one number a row, without "
        "reduction; squeeze outputs and targets to [R] (a loss of [R, 1] silently breaks clipping)"
    )
