# SPDX-License-Identifier: Apache-2.0
"""Scores the global model on a site's held-out images, and places the bins in which the scores may be counted.

Bins must have public edges, yet scores of one model lie within 0.05 of each other and those of another at ±12: any fixed edges would
put the first into one bin (measured: the AUROC falls by up to 0.45). So the edges are laid around what the model, which is public, says
to reference images (of a table: rows), which are generated and public too. Patients' own are not looked at. Measured on 12 trained and
half-trained models, chest X-rays among them: with 16 bins the AUROC by patient moves by 0.003 on average and by 0.009 at most.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from client.rows import RowSource
from client.scores import SiteScores, log_odds
from common.data.cohort import Cohort, Split
from common.data.phantom import PhantomReader
from common.data.table_features import reference_features
from common.models.base import MedicalModel, to_model_units
from common.study import Data, Phantom, Study

EVALUATION_ROWS = 256
REFERENCE_IMAGES = 96
REFERENCE_PHANTOM = Phantom(patients=64, scanners=8)
REACH = 6.0  # the outermost edges lie so many reference standard deviations from the reference mean
LEAST_SPREAD = 1e-3  # of log odds; less only while a model says the same to everything


@torch.no_grad()
def score(model: MedicalModel, cohort: Cohort, source: RowSource, task: str) -> SiteScores:
    """Probabilities of the model as it is now on the cohort's test images."""
    rows = cohort.rows_in(Split.TEST)
    parts = [model(source.inputs(rows[first : first + EVALUATION_ROWS], None)) for first in range(0, len(rows), EVALUATION_ROWS)]
    empty = torch.zeros(0) if task == "binary" else torch.zeros(0, len(cohort.dataset.label_names))
    probabilities = _probabilities(torch.cat(parts) if parts else empty, task)
    dataset = cohort.dataset
    return SiteScores(rows, dataset.labels[rows], dataset.patients[rows], probabilities)


def _probabilities(logits: Tensor, task: str) -> npt.NDArray[np.float32]:
    values: npt.NDArray[np.float32] = (logits.sigmoid() if task == "binary" else logits.softmax(dim=1)).float().cpu().numpy()
    return values


class BinPlacer:
    """Places the bins of one study's scores. Reference images (or their frozen features) are made once, at the first use."""

    def __init__(self, study: Study, device: torch.device) -> None:
        self._study = study
        self._device = device
        self._inputs: Tensor | None = None

    @torch.no_grad()
    def edges(self, model: MedicalModel, bins: int) -> npt.NDArray[np.float64]:
        """Edges float64 [questions, bins - 1] in log odds: dense around the reference mean, wider further out (a sinh scale)."""
        if self._inputs is None:
            self._inputs = self._reference_inputs(model)
        probabilities = _probabilities(model(self._inputs), self._study.task).astype(np.float64)
        reference = log_odds(probabilities.reshape(REFERENCE_IMAGES, -1))  # [images, questions]
        spread = np.maximum(reference.std(axis=0), LEAST_SPREAD)
        scale = np.sinh(np.linspace(-1, 1, bins - 1) * np.arcsinh(REACH))
        edges: npt.NDArray[np.float64] = reference.mean(axis=0)[:, None] + spread[:, None] * scale
        return edges

    def _reference_inputs(self, model: MedicalModel) -> Tensor:
        data = self._study.data
        if data.kind == "tabular":
            return torch.from_numpy(reference_features(data, REFERENCE_IMAGES)).to(self._device)
        made = PhantomReader().read(Data(image_size=data.image_size, phantom=REFERENCE_PHANTOM), None)
        images = torch.from_numpy(np.array(made.images[:REFERENCE_IMAGES]))
        images = images.reshape(REFERENCE_IMAGES, 1, data.image_size, data.image_size).expand(-1, data.channels, -1, -1)
        inputs = to_model_units(images.to(self._device))
        return inputs if model.feature_digest is None else model.frozen_features(inputs)
