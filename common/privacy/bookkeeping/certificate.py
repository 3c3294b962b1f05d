# SPDX-License-Identifier: Apache-2.0
"""A measured bound on the float error of large sums of products.

A sum over patients of c * left^T right, formed in float32 over thousands of terms, has no useful error bound by theory: terms of one
patient may cancel. So the error is measured. With E the difference between the float32 sum and the exact one, and R a matrix of
independent standard normal numbers drawn anew for each step, E R is known cheaply in double precision (the exact side is left^T (right
R), Freivalds 1977), and |E R|² / k estimates |E|² without bias. For k = 32 probes the estimate is below |E|² / 32 with probability
less than (e^(31/32) / 32)^16 < 2^-57, whatever E is (a chi-square tail; rank one is the worst case). So a sum is accepted when the
estimate is below bound² / 32, and then |E| <= bound but for that probability; `bounds.failure_mass` takes it out of δ
for both of two neighbouring sums.

A sum that is not accepted is not used: the engine forms that step again in double precision. Layers of different width share R: their
errors stacked, each padded by zero columns, are one matrix.
"""

from __future__ import annotations

import math
from typing import Final

import numpy as np
import torch
from torch import Tensor

from common.privacy.bookkeeping.bounds import CERTIFIED_ERROR
from common.privacy.generator import SystemGenerator

PROBES: Final = 32
SHRINKAGE: Final = 32.0
ROWS_AT_ONCE: Final = 128  # of a sum in double precision


class Certificate:
    """The exact side of one step's large sums, as far as the probes see it."""

    def __init__(self, generator: SystemGenerator) -> None:
        self._generator = generator
        self._probes: Tensor | None = None
        self._seen: dict[Tensor, Tensor] = {}

    def add(self, weight: Tensor, left: Tensor, right: Tensor) -> None:
        """Count in left^T right, with `left` [T, O] and `right` [T, F]."""
        seen = left.double().t() @ (right.double() @ self._probe(right.shape[1], right.device))
        if weight in self._seen:
            seen += self._seen[weight]
        self._seen[weight] = seen

    def accepts(self, sums: dict[Tensor, Tensor], clipping_norm: float) -> bool:
        """Whether the float32 sums [O, F] are within `CERTIFIED_ERROR` * C of the exact ones, all layers together."""
        if not self._seen:
            return True
        squares = sum(self._squared_error(sums[weight], seen) for weight, seen in self._seen.items())
        estimate = float(squares) / PROBES
        return estimate <= (CERTIFIED_ERROR * clipping_norm) ** 2 / SHRINKAGE  # a NaN is not accepted

    def clear(self) -> None:
        """Forget sums and probes."""
        self._probes = None
        self._seen.clear()

    def _squared_error(self, total: Tensor, seen: Tensor) -> Tensor:
        probe = self._probe(total.shape[1], total.device)
        rows = zip(torch.split(total, ROWS_AT_ONCE), torch.split(seen, ROWS_AT_ONCE), strict=True)
        return torch.stack([(part.double() @ probe - exact).square_().sum() for part, exact in rows]).sum()

    def _probe(self, width: int, device: torch.device) -> Tensor:
        """The first `width` rows of R, made longer when a wider layer comes."""
        probes = torch.empty(0, PROBES, dtype=torch.float64, device=device) if self._probes is None else self._probes
        missing = width - len(probes)
        if missing > 0:
            more = _normal_numbers(missing * PROBES, self._generator).view(-1, PROBES).to(device)
            self._probes = probes = torch.cat((probes, more))
        return probes[:width]


def _normal_numbers(count: int, generator: SystemGenerator) -> Tensor:
    """Standard normal numbers, float64 [count], from 53 bits each: here they are probes and protect nobody."""
    uniform = (generator.words(count) >> np.uint64(11)).astype(np.float64) * 2.0**-53 + 2.0**-54
    return torch.erfinv(torch.from_numpy(2 * uniform - 1)).mul_(math.sqrt(2))
