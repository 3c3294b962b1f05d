# SPDX-License-Identifier: Apache-2.0
"""`mlp`: hidden layers of `model.hidden_units` on the features of a table, and a linear head from zero.

Tanh between the layers: its bounded outputs keep patients' gradients short, which under clipping and noise does better than ReLU
(Papernot et al. 2021, arXiv 2007.14191). No normalisation: the features are scaled by public constants already.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn

from common.models.base import MedicalModel
from common.models.layers import as_logits, output_count, zero_linear
from common.study import Study


class Mlp(MedicalModel):
    """Features [B, F] of a table to logits."""

    def __init__(self, features: int, hidden: Sequence[int], outputs: int) -> None:
        super().__init__()
        layers = [nn.Linear(before, after) for before, after in pairwise((features, *hidden))]
        for layer in layers:
            nn.init.xavier_uniform_(layer.weight)
        self.hidden = nn.ModuleList(layers)
        self.head = zero_linear(hidden[-1], outputs)

    def forward(self, inputs: Tensor) -> Tensor:
        """Features to logits."""
        for layer in self.hidden:
            inputs = layer(inputs).tanh()
        return as_logits(self.head(inputs))


def build(study: Study) -> MedicalModel:
    """The model of a study."""
    return Mlp(len(study.data.feature_names), study.model.hidden_units, output_count(study))
