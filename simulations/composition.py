# SPDX-License-Identifier: Apache-2.0
"""What several runs cost the same patients together.

The ε of a run is for that run alone. A patient who was in training in each of several runs is protected only by their composition,
which pessimistic PLD gives from the runs' public numbers. It covers the federated models: the baselines of a report are not released.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from common.study import Study
from simulations.results import PrivacyResult, RunResult


@dataclass(frozen=True)
class Composition:
    """Runs on the same patients: ε of the private ones together at `delta`, and the runs that were not private at all."""

    source: str
    private_runs: tuple[str, ...]
    unprotected_runs: tuple[str, ...]
    epsilon: float
    delta: float


def compositions(results: Sequence[RunResult]) -> list[Composition]:
    """One entry for each data set that two or more runs used, at least one of them private.

    Runs share patients when they share the data set's digest (without one: its source). Composed at the smallest δ of the runs, with
    the steps of the site that was charged most in each run, so it is an upper bound for every patient.
    """
    by_data: dict[str, list[RunResult]] = {}
    for result in results:
        by_data.setdefault(result.data_digest or result.source, []).append(result)
    shared = (runs for runs in by_data.values() if len(runs) > 1 and any(run.privacy for run in runs))
    return [_composed(runs) for runs in shared]


def _composed(runs: Sequence[RunResult]) -> Composition:
    private = [(run, run.privacy) for run in runs if run.privacy]
    delta = min(privacy.delta for _, privacy in private)
    return Composition(
        runs[0].source,
        tuple(run.run_id for run, _ in private),
        tuple(run.run_id for run in runs if not is_private(run)),
        _epsilon([(privacy, charged_steps(run, privacy)) for run, privacy in private], delta),
        delta,
    )


def is_private(run: RunResult) -> bool:
    """Whether the run's study asks for privacy. (Its `privacy` is also None when nothing was ever charged.)"""
    return Study.model_validate(run.study).is_private


def charged_steps(run: RunResult, privacy: PrivacyResult) -> int:
    """Steps of the site that was charged most; the planned ones when no site is listed."""
    return max([site.charged_steps for site in run.sites], default=privacy.steps)


def _epsilon(parts: Sequence[tuple[PrivacyResult, int]], delta: float) -> float:
    from common.privacy.accountant import epsilon_pld, poisson_gaussian

    return epsilon_pld([poisson_gaussian(part.sampling_rate, part.noise_multiplier, steps) for part, steps in parts if steps], delta)
