# SPDX-License-Identifier: Apache-2.0
"""Scores the global model on a site's held-out images."""

from __future__ import annotations

import torch

from client.rows import RowSource
from client.scores import SiteScores
from common.data.cohort import Cohort, Split
from common.models.base import MedicalModel

EVALUATION_ROWS = 256


@torch.no_grad()
def score(model: MedicalModel, cohort: Cohort, source: RowSource, task: str) -> SiteScores:
    """Probabilities of the model as it is now on the cohort's test images."""
    rows = cohort.rows_in(Split.TEST)
    parts = [model(source.inputs(rows[first : first + EVALUATION_ROWS], None)) for first in range(0, len(rows), EVALUATION_ROWS)]
    empty = torch.zeros(0) if task == "binary" else torch.zeros(0, len(cohort.dataset.label_names))
    logits = torch.cat(parts) if parts else empty
    probabilities = logits.sigmoid() if task == "binary" else logits.softmax(dim=1)
    dataset = cohort.dataset
    return SiteScores(rows, dataset.labels[rows], dataset.patients[rows], probabilities.float().cpu().numpy())
