# SPDX-License-Identifier: Apache-2.0
"""A model's scores on a site's held-out images, as the site keeps them in its own folder, and by patient.

None of it is sent as it is: `client.measuring` counts patients into bins and adds noise first.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from common.data.cohort import IntArray
from common.files import atomic_file

LEAST_PROBABILITY = 2e-9


@dataclass(frozen=True)
class SiteScores:
    """Held-out rows of one site with labels, patient numbers and probabilities: [n] for a binary task, [n, classes] otherwise."""

    rows: IntArray
    labels: IntArray
    patients: IntArray
    scores: npt.NDArray[np.float32]

    def write(self, path: Path) -> None:
        """Write to an npz file, atomically."""
        with atomic_file(path) as file:
            np.savez(file, rows=self.rows, labels=self.labels, patients=self.patients, scores=self.scores)

    @classmethod
    def read(cls, path: Path) -> SiteScores:
        """Read what `write` wrote."""
        with np.load(path, allow_pickle=False) as stored:
            return cls(stored["rows"], stored["labels"], stored["patients"], stored["scores"])


@dataclass(frozen=True)
class HeldOutPatients:
    """One row for each patient, one column for each question (the finding; or each class against the rest).

    `scores` float64 [P, questions] is the logit of the mean probability over the patient's images. `labels` bool [P, questions]: a
    patient has a label when any of their held-out images has it, so a patient with mixed images still counts once.
    """

    labels: npt.NDArray[np.bool_]
    scores: npt.NDArray[np.float64]


def by_patient(scores: SiteScores, questions: int) -> HeldOutPatients:
    """One score and one label a patient for each of `questions` (1: binary)."""
    numbers, owner = np.unique(scores.patients, return_inverse=True)
    probabilities = scores.scores.reshape(len(owner), questions).astype(np.float64)
    labels = scores.labels[:, None] == (np.arange(questions) if questions > 1 else np.ones(1))
    total = np.zeros((len(numbers), questions))
    has_label = np.zeros((len(numbers), questions), dtype=bool)
    np.add.at(total, owner, probabilities)
    np.logical_or.at(has_label, owner, labels)
    images = np.bincount(owner, minlength=len(numbers))
    return HeldOutPatients(has_label, log_odds(total / images[:, None]))


def log_odds(probabilities: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """log(p / (1 - p)), cut at ±20, about where float32 probabilities end."""
    cut = np.clip(probabilities, LEAST_PROBABILITY, 1 - LEAST_PROBABILITY)
    odds: npt.NDArray[np.float64] = np.log(cut) - np.log1p(-cut)
    return odds
