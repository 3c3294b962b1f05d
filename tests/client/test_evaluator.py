# SPDX-License-Identifier: Apache-2.0
"""Where the bins of the private evaluation lie: public, spread around what the model says, and fine enough for the AUROC."""

import numpy as np
import pytest
import torch

from client.evaluator import BinPlacer
from client.measuring import count_patients
from client.scores import HeldOutPatients, log_odds
from common.models.base import MedicalModel
from common.models.registry import build_model
from common.private_metrics import private_auroc
from common.study import Study
from tests.support.studies import PRIVATE, small

CPU = torch.device("cpu")


def edges(study: Study, shift: float = 0.0, factor: float = 1.0, bins: int = 16) -> np.ndarray:
    """For a model whose head is random times `factor`, with `shift` as its bias."""
    model = build_model(study)
    generator = torch.Generator().manual_seed(0)
    *_, weight, bias = model.parameters()
    with torch.no_grad():
        weight.copy_(torch.randn(weight.shape, generator=generator) * factor)
        bias.fill_(shift)
    return BinPlacer(study, CPU).edges(model, bins)


@pytest.mark.parametrize("name", ["cnn", "scattering"])
def test_edges_are_the_same_at_every_site_and_rise(name: str) -> None:
    study = small(PRIVATE, **{"model.name": name})
    first, second = edges(study), edges(study)
    assert first.shape == (1, 15)
    assert np.array_equal(first, second)
    assert (np.diff(first, axis=1) > 0).all()


def test_edges_follow_the_model() -> None:
    """A model that says 20 times less, and of another mean, gets bins 20 times finer around that mean."""
    study = small(PRIVATE)
    wide, narrow = edges(study, factor=0.5), edges(study, shift=-3.0, factor=0.025)
    assert np.ptp(wide) / np.ptp(narrow) == pytest.approx(20, rel=0.3)
    assert narrow[0, 7] == pytest.approx(-3, abs=0.5)


def test_a_model_that_says_the_same_to_everything_has_edges_all_the_same() -> None:
    found = BinPlacer(small(PRIVATE), CPU).edges(build_model(small(PRIVATE)), 32)
    assert found.shape == (1, 31)
    assert (np.diff(found) > 0).all()
    assert np.abs(found).max() < 0.01


def test_several_classes_have_edges_each() -> None:
    found = edges(small(PRIVATE, **{"task": "multiclass", "data.labels": ["a", "b", "c"]}))
    assert found.shape == (3, 15)
    assert not np.allclose(found[0], found[1])


class Colours(MedicalModel):
    """Says the mean of each image."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        assert images.shape[1:] == (3, 32, 32)
        return images.mean(dim=(1, 2, 3))


def test_colour_images_get_reference_images_of_three_channels() -> None:
    study = small(PRIVATE, **{"data.channels": 3, "data.source": "npz", "model.name": "resnet18"})
    assert BinPlacer(study, CPU).edges(Colours(), 8).shape == (1, 7)


@pytest.mark.parametrize("spread", [0.7, 1.0, 4.0])
@pytest.mark.parametrize("centre", [-1.0, 0.0, 1.0])
def test_binning_costs_little_where_patients_score_unlike_the_reference_images(spread: float, centre: float) -> None:
    """Patients' scores with 0.7 to 4 times the spread of the reference, off by one of its standard deviations either way."""
    study = small(PRIVATE)
    placed = edges(study, factor=0.3)
    unit = (placed[0, -1] - placed[0, 0]) / 10  # the outermost edges are 5 standard deviations from the mean
    generator = np.random.default_rng(0)
    labels = np.arange(4000) % 2
    scores = placed[0, 7] + unit * (centre + spread * generator.normal(labels * 1.8 - 0.9, 1))
    exact = _auroc(labels, scores)
    binned = private_auroc(count_patients(HeldOutPatients(labels[:, None] == 1, scores[:, None]), placed), 40.0, 1)
    assert 0 <= exact - binned.value < 0.012


def _auroc(labels: np.ndarray, scores: np.ndarray) -> float:
    from sklearn.metrics import roc_auc_score

    return float(roc_auc_score(labels, scores))


def test_log_odds() -> None:
    found = log_odds(np.array([0.0, 0.2, 0.5, 1.0]))
    assert found == pytest.approx([-20.0, np.log(0.25), 0.0, 20.0], abs=0.05)
