# SPDX-License-Identifier: Apache-2.0
"""What a patient's account has spent after a release: the ε that an egress line shows. An upper bound, for display; it decides nothing.

The ledger's history is composed by Rényi accounting at whole orders, where the Poisson-sampled Gaussian is a finite sum (Mironov, Talwar
and Zhang 2019, arXiv 1908.10530, section 3.3) and ε follows from Canonne, Kamath and Steinke 2020 (arXiv 2004.00010, proposition 12).
The same bound as `common.privacy.accountant.epsilon_rdp`, which a test holds it to, without loading dp_accounting: the node that sends
replies stays small, and a line costs a millisecond.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable
from functools import lru_cache
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt

from client.ledger.book import Ledger
from common.errors import StorageError
from common.privacy.accountant import LEAST_NOISE, RENYI_ORDERS
from common.privacy.charge_book import Line, State

Spent = float | Literal["not protected", "unknown"] | None
_ORDERS: Final = np.array(RENYI_ORDERS, dtype=np.float64)


def spent_after(book: Ledger, study_id: str, run_id: str, round_number: int, line: Line) -> Spent:
    """ε of the account that paid for this round on `line`, over its whole history; "unknown" when no charge is found.

    Raises StorageError or RefusedError when the ledger cannot be read.
    """
    slot = (study_id, run_id, round_number, line)
    paid = next((charge.key.account for charge in book.charges() if charge.key.slot == slot), None)
    if paid is None:
        return "unknown"
    events = [charge.event_json for charge in book.history(paid, line) if charge.state is not State.SETTLED]
    epsilon = epsilon_bound(events, book.delta(paid))
    return epsilon if math.isfinite(epsilon) else "not protected"


def worst(spent: Iterable[Spent]) -> Spent:
    """The most of several lines, where one release was paid for on more than one; a line on which it was not counts for nothing."""
    found = list(spent)
    known = [one for one in found if isinstance(one, float)]
    return "not protected" if "not protected" in found else max(known) if known else "unknown"


def epsilon_bound(events: Iterable[str], delta: float) -> float:
    """Upper bound of ε of a history of events (canonical JSON) at `delta`; infinite where something was not protected.

    Raises StorageError for an event that is not ours.
    """
    renyi, pure = np.zeros_like(_ORDERS), 0.0
    try:
        for text, times in sorted(Counter(events).items()):
            of_one, pure_of_one = _event_cost(text)
            renyi, pure = renyi + times * of_one, pure + times * pure_of_one
    except (ValueError, KeyError, TypeError) as error:
        raise StorageError(f"ledger: a mechanism cannot be read ({type(error).__name__}); restore it from its backup") from error
    if not renyi.any():
        return pure
    if delta**2 + np.expm1(-renyi).max() > 0:  # so close that δ alone covers it
        return pure
    return pure + max(float(np.min(renyi + np.log1p(-1 / _ORDERS) - np.log(delta * _ORDERS) / (_ORDERS - 1))), 0.0)


@lru_cache(maxsize=64)
def _event_cost(text: str) -> tuple[npt.NDArray[np.float64], float]:
    """Rényi divergence at each order, and pure ε, of one event."""
    return _cost(json.loads(text))


def _cost(event: dict[str, Any]) -> tuple[npt.NDArray[np.float64], float]:
    nothing = np.zeros_like(_ORDERS)
    match event["type"]:
        case "SelfComposedDpEvent":
            renyi, pure = _cost(event["event"])
            return renyi * event["count"], pure * event["count"]
        case "PoissonSampledDpEvent" if event["event"]["type"] == "GaussianDpEvent":
            return _sampled_gaussian(float(event["sampling_probability"]), float(event["event"]["noise_multiplier"])), 0.0
        case "GaussianDpEvent":
            return _sampled_gaussian(1.0, float(event["noise_multiplier"])), 0.0
        case "DiscreteLaplaceDpEvent":
            noise = float(event["noise_parameter"])
            return nothing, noise * event["sensitivity"] if noise > 0 else math.inf
        case "NonPrivateDpEvent":
            return nothing, math.inf
    raise ValueError(event["type"])


def _sampled_gaussian(rate: float, noise: float) -> npt.NDArray[np.float64]:
    """log(sum over k of C(α,k) (1-q)^(α-k) q^k exp(k(k-1) / 2σ²)) / (α-1), for each order α."""
    if noise < LEAST_NOISE:
        return np.full_like(_ORDERS, np.inf)
    if rate >= 1:
        return _ORDERS / (2 * noise**2)
    return np.array([_log_moment(order, rate, noise) / (order - 1) for order in RENYI_ORDERS])


def _log_moment(order: int, rate: float, noise: float) -> float:
    terms = np.arange(order + 1, dtype=np.float64)
    factorials = np.cumsum(np.log(np.maximum(terms, 1)))
    choose = factorials[-1] - factorials - factorials[::-1]
    logs = choose + (order - terms) * math.log1p(-rate) + terms * math.log(rate) + terms * (terms - 1) / (2 * noise**2)
    return float(np.logaddexp.reduce(logs))
