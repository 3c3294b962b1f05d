# SPDX-License-Identifier: Apache-2.0
"""A small real run for tests of the report: federated averaging of logistic models on chest X-rays, every figure computed."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image
from sklearn.linear_model import SGDClassifier
from sklearn.metrics import log_loss

from common.data.cohort import Dataset, Split
from common.metrics import metrics_of
from common.study import Study
from simulations.results import Example, ModelResult, PrivacyResult, RoundPoint, RunResult, Scores, SiteResult
from simulations.trivial import coarse_pixels, trivial_baselines

DATA = Path(__file__).resolve().parents[2].parent / "shared" / "data"
SITES = ("north", "east", "south", "west")
LABELS = ("normal", "pneumonia")
PRIVACY = {"epsilon": 3.0, "delta": 1e-5, "clipping_norm": 0.5, "views_per_patient": 2}
Array = npt.NDArray[np.float64]


@cache
def dataset() -> Dataset:
    """1,200 training and 300 test images of PneumoniaMNIST (no patient ids there: two images in a row are called one patient)."""
    with np.load(DATA / "medmnist" / "pneumoniamnist.npz") as file:
        images = np.concatenate([file["train_images"][:1200], file["test_images"][:300]])[:, None]
        labels = np.concatenate([file["train_labels"][:1200], file["test_labels"][:300]])[:, 0].astype(np.int64)
    patients = np.arange(1500) // 2
    split = np.where(np.arange(1500) < 1200, Split.TRAIN, Split.TEST).astype(np.uint8)
    ids = tuple(f"p{number}" for number in range(750))
    return Dataset(images, labels, patients, ids, LABELS, {}, split, None, False, "d" * 64)


@cache
def trivial() -> dict[str, float | None]:
    data = dataset()
    assert data.split is not None
    return trivial_baselines(data, data.split)


class Federation:
    """Logistic regression on 8x8 pixels, averaged over sites after each round; a true, if tiny, federated run."""

    def __init__(self, seed: int) -> None:
        data = dataset()
        assert data.split is not None
        self.x = coarse_pixels(data.images).astype(np.float64) - 0.5
        self.y = data.labels
        self.home = np.random.default_rng(seed).integers(0, len(SITES), 750)[data.patients]
        self.train, self.test = (np.flatnonzero(data.split == split) for split in (Split.TRAIN, Split.TEST))

    def rows(self, site: int | None) -> npt.NDArray[np.int64]:
        return self.train if site is None else self.train[self.home[self.train] == site]

    def fit(self, sites: Sequence[int | None], rounds: int, seed: int) -> tuple[list[Array], list[dict[str, float]]]:
        """Test scores after each round, and each site's training loss."""
        weights, scores, losses = np.zeros((1, self.x.shape[1] + 1)), [], []
        for number in range(rounds):
            models = [self._local(weights, site, seed + number) for site in sites]
            weights = np.mean([np.concatenate([m.coef_, m.intercept_[:, None]], axis=1) for m in models], axis=0)
            scores.append(self._predict(weights, self.test))
            losses.append({SITES[s or 0]: float(log_loss(self.y[self.rows(s)], self._predict(weights, self.rows(s)))) for s in sites})
        return scores, losses

    def _local(self, weights: Array, site: int | None, seed: int) -> SGDClassifier:
        model = SGDClassifier(loss="log_loss", learning_rate="constant", eta0=0.02, random_state=seed)
        model.classes_, model.coef_, model.intercept_ = np.array([0, 1]), weights[:, :-1].copy(), weights[:, -1].copy()
        rows = self.rows(site)
        return model.partial_fit(self.x[rows], self.y[rows], classes=np.array([0, 1]))

    def _predict(self, weights: Array, rows: npt.NDArray[np.int64]) -> Array:
        return np.asarray(1 / (1 + np.exp(-(self.x[rows] @ weights[0, :-1] + weights[0, -1]))))

    def model_result(self, scores: Array) -> ModelResult:
        labels, home = self.y[self.test], self.home[self.test]
        test = Scores(
            labels=labels.tolist(),
            scores=scores.tolist(),
            patients=dataset().patients[self.test].tolist(),
            rows=self.test.tolist(),
        )
        per_site = {name: metrics_of(labels[home == s], scores[home == s]) for s, name in enumerate(SITES)}
        return ModelResult(metrics=metrics_of(labels, scores), per_site=per_site, test=test)


@cache
def sample_run(seed: int = 0, private: bool = True, rounds: int = 8, description: str = "Pneumonia or normal.") -> RunResult:
    """A run of `Federation`; the privacy numbers are those of a fitting plan, no noise was added."""
    privacy = {"unit": "patient", **PRIVACY} if private else {"unit": "none"}
    study = Study.model_validate(
        {
            "name": "sample",
            "description": description,
            "data": {"source": "medmnist", "image_size": 28, "labels": LABELS},
            "federation": {"rounds": rounds},
            "privacy": privacy,
            "seed": seed,
        }
    )
    federation = Federation(seed)
    scores, losses = federation.fit([0, 1, 2, 3], rounds, seed)
    pooled = federation.fit([None], rounds, seed)[0][-1]
    alone = {name: federation.model_result(federation.fit([site], rounds, seed)[0][-1]) for site, name in enumerate(SITES)}
    found = [federation.model_result(each) for each in scores]
    return RunResult(
        study_id=study.id,
        study=study.model_dump(mode="json"),
        run_id=f"sample-{seed}{'' if private else '-open'}",
        seed=seed,
        source="pneumoniamnist.npz",
        synthetic=False,
        partition="iid",
        command=f"wardround-sim run sample.yaml --sites 4 --seeds {seed}",
        versions={"wardround": "0.1.0", "torch": "2.14.1"},
        device="cpu",
        seconds=75.0,
        rounds=rounds,
        sites=[_site(federation, site, name, private) for site, name in enumerate(SITES)],
        privacy=_privacy() if private else None,
        federated=found[-1],
        pooled=federation.model_result(pooled),
        alone=alone,
        curve=[_point(index, each, losses[index], private) for index, each in enumerate(found)],
        trivial=trivial(),
        examples=_examples(federation, scores[-1]),
        data_digest=dataset().digest,
    )


def _privacy() -> PrivacyResult:
    return PrivacyResult(
        unit="one patient with all their images",
        neighbouring="add or remove one patient",
        accountant="pessimistic PLD (dp-accounting)",
        epsilon_target=3.0,
        delta=1e-5,
        noise_multiplier=1.68,
        sampling_rate=0.1,
        steps=100,
        clipping_norm=0.5,
        views_per_patient=2,
    )


def _site(federation: Federation, site: int, name: str, private: bool) -> SiteResult:
    rows, held_out = federation.rows(site), federation.test[federation.home[federation.test] == site]
    patients = dataset().patients
    return SiteResult(
        name=name,
        patients={"train": len(np.unique(patients[rows])), "validation": 0, "test": len(np.unique(patients[held_out]))},
        images={"train": len(rows), "validation": 0, "test": len(held_out)},
        class_counts={label: int((federation.y[rows] == number).sum()) for number, label in enumerate(LABELS)},
        nominal_patients=150,
        epsilon=2.9947 if private else None,
        charged_steps=100 if private else 0,
        updates=8,
        refusals={},
        warnings=[],
        mean_step_seconds=0.021,
    )


def _point(index: int, found: ModelResult, losses: dict[str, float], private: bool) -> RoundPoint:
    spent = 3.31 * ((index + 1) / 8) ** 0.55
    return RoundPoint(
        round=index + 1,
        seconds=2.5 * (index + 1),
        auroc=found.metrics["auroc"],
        loss=losses,
        site_auroc={name: metrics["auroc"] for name, metrics in found.per_site.items()},
        epsilon=dict.fromkeys(SITES, spent) if private else {},
    )


def _examples(federation: Federation, scores: Array) -> list[Example]:
    return [_example(int(federation.test[index]), float(scores[index])) for index in range(12)]


def _example(row: int, score: float) -> Example:
    png = io.BytesIO()
    Image.fromarray(dataset().images[row, 0]).save(png, "png")
    predicted = int(score >= 0.5)
    return Example(
        png=base64.b64encode(png.getvalue()).decode(),
        label=LABELS[dataset().labels[row]],
        prediction=LABELS[predicted],
        probability=max(score, 1 - score),
    )
