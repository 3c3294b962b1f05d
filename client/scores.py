# SPDX-License-Identifier: Apache-2.0
"""A model's scores on a site's held-out images, as the site keeps them in its own folder. Nothing of it is sent."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from common.data.cohort import IntArray
from common.files import atomic_file


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
