# SPDX-License-Identifier: Apache-2.0
"""`logistic`: one linear layer on the features of a table, from zero. Logistic regression, trained like every other model.

With few patients under privacy nothing larger pays: the noise grows with the number of trained weights, and a convex model forgives it.
"""

from __future__ import annotations

from torch import Tensor

from common.models.base import MedicalModel
from common.models.layers import as_logits, output_count, zero_linear
from common.study import Study


class Logistic(MedicalModel):
    """Features [B, F] of a table to logits."""

    def __init__(self, features: int, outputs: int) -> None:
        super().__init__()
        self.head = zero_linear(features, outputs)

    def forward(self, inputs: Tensor) -> Tensor:
        """Features to logits."""
        return as_logits(self.head(inputs))


def build(study: Study) -> MedicalModel:
    """The model of a study."""
    return Logistic(len(study.data.feature_names), output_count(study))
