# SPDX-License-Identifier: Apache-2.0
"""Exact ε of histories for display, each worked out once.

Privacy loss distributions take seconds, most of them to load what computes them. What was found is kept in `figures.json` beside the
ledger, under the digest of the question: the events, δ, and what answers it. It may be deleted at any time. Nothing is decided by it:
whoever reserves or promises asks the accountant. Only digests and ε are in it.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from collections.abc import Iterable
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import Final

from common.files import write_atomic
from common.privacy.accountant import COARSEST_INTERVAL, FINEST_INTERVAL, INTERVALS_PER_EPSILON, epsilon_pld, event_from_json

MOST_KEPT: Final = 500


class Figures:
    """The figures in the file `path`, read once."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._known = _read(path)

    def epsilon(self, events: Iterable[str], delta: float) -> float:
        """`epsilon_pld` of a history of events (canonical JSON) in any order; infinite where something was not protected."""
        counted = sorted(Counter(events).items())
        question = _digest(counted, delta)
        if question not in self._known:
            self._known[question] = epsilon_pld([event_from_json(text) for text, count in counted for _ in range(count)], delta)
            self._keep()
        return self._known[question]

    def _keep(self) -> None:
        newest = dict(list(self._known.items())[-MOST_KEPT:])
        with suppress(OSError):  # a full disk must not hide the figures
            write_atomic(self._path, json.dumps({question: repr(value) for question, value in newest.items()}))


def _digest(counted: list[tuple[str, int]], delta: float) -> str:
    answered_by = [metadata.version("dp-accounting"), FINEST_INTERVAL, COARSEST_INTERVAL, INTERVALS_PER_EPSILON]
    return hashlib.sha256(json.dumps([answered_by, delta, counted]).encode()).hexdigest()


def _read(path: Path) -> dict[str, float]:
    """What is there; nothing when it is missing or damaged."""
    try:
        plain = json.loads(path.read_text(encoding="utf-8"))
        known = {str(question): float(value) for question, value in plain.items()}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}
    return {question: value for question, value in known.items() if value >= 0 and not math.isnan(value)}
