# SPDX-License-Identifier: Apache-2.0
"""The private evaluations of a run, each beside the exact figure that only a simulation may compute."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from client.scores import SiteScores, by_patient
from client.site import evaluation_path
from common.evaluation_plan import evaluation_plan
from server.runs import RunStore
from simulations.prepare import Prepared
from simulations.results import Measurement


def measurements(prepared: Prepared) -> list[Measurement]:
    """Every private evaluation that the server stored, in the order of the rounds; none for a study without one."""
    plan = evaluation_plan(prepared.study)
    store = prepared.layout.folder / "rounds.sqlite"
    if plan is None or not store.exists():
        return []
    folders = [prepared.layout.site(name) for name in prepared.cohorts]
    return [
        Measurement(
            round=stored.round,
            sites=stored.sites,
            auroc=stored.auroc,
            standard_error=stored.standard_error,
            exact=exact_auroc(folders, stored.round, plan.questions),
        )
        for stored in RunStore(store).measurements(prepared.run_id)
    ]


def exact_auroc(folders: Sequence[Path], after_round: int, questions: int) -> float | None:
    """AUROC by patient of the model after a round over the sites that scored it, with one score and one label for each patient.

    Macro mean over questions, as the private figure is. None where a question has patients of one label only.
    """
    from sklearn.metrics import roc_auc_score

    paths = [evaluation_path(folder, after_round) for folder in folders]
    sites = [by_patient(SiteScores.read(path), questions) for path in paths if path.exists()]
    if not sites:
        return None
    labels, scores = (np.concatenate(parts) for parts in ([site.labels for site in sites], [site.scores for site in sites]))
    if not all(0 < column.sum() < len(column) for column in labels.T):
        return None
    return float(np.mean([roc_auc_score(truth, score) for truth, score in zip(labels.T, scores.T, strict=True)]))
