# SPDX-License-Identifier: Apache-2.0
"""The engines by name. Each is one `PrivateStepper`; a study runs with any of them."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Final

from common.privacy.bookkeeping import bounds
from common.privacy.grid import GRID_BITS, relative_sensitivity

if TYPE_CHECKING:
    from torch import Tensor, nn
    from torch.optim import Optimizer

    from common.privacy.generator import SystemGenerator
    from common.privacy.step import ClosableStepper

ENGINES: Final[Mapping[str, tuple[str, str]]] = {
    "bookkeeping": ("common.privacy.bookkeeping.engine", "BookkeepingStepper"),
    "opacus": ("common.privacy.opacus_engine", "OpacusStepper"),
}


def make_stepper(
    engine: str,
    model: nn.Module,
    optimiser: Optimizer,
    row_loss: Callable[[Tensor, Tensor], Tensor],
    *,
    clipping_norm: float,
    noise_multiplier: float,
    divisor: float,
    generator: SystemGenerator,
    after_noise: Callable[[], None] | None = None,
    grid_bits: int = GRID_BITS,
) -> ClosableStepper:
    """The stepper of `engine`; see `common.privacy.opacus_engine.OpacusStepper` for the arguments. Raises InputError."""
    module, name = ENGINES[engine]
    stepper: ClosableStepper = getattr(importlib.import_module(module), name)(
        model,
        optimiser,
        row_loss,
        clipping_norm=clipping_norm,
        noise_multiplier=noise_multiplier,
        divisor=divisor,
        generator=generator,
        after_noise=after_noise,
        grid_bits=grid_bits,
    )
    return stepper


def sensitivity(engine: str, parameter_count: int) -> float:
    """How far one patient moves an engine's integer sum at most, in units of C. The engine with hooks adds integers, without error."""
    slack = bounds.float_slack(parameter_count) if engine == "bookkeeping" else 0.0
    return relative_sensitivity(parameter_count) + slack


def failure_mass(engine: str, steps: int) -> float:
    """Probability, to be taken out of δ, that an engine's sensitivity is larger than `sensitivity` says in any of `steps` steps."""
    return bounds.failure_mass(steps) if engine == "bookkeeping" else 0.0
