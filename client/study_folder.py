# SPDX-License-Identifier: Apache-2.0
"""The folder of an approved study, `studies/<study id>`: what the worker opens.

    prepare    reads the cohort's data as the study wants it, splits its patients' pseudonyms with the site's key; writes nothing but the
               cache of images
    write      the folder, at approval
    refresh    `site.json` again, when the policy has changed or another run has begun

The images lie in `cache/` of the site's home, made again whenever they are missing at an approval; they need no backup.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from client.cohorts.layout import check_seal
from client.offers import Offer
from client.pseudonyms import Pseudonyms
from client.site import SITE_FILE, SiteFile
from client.site_config import SiteConfig
from client.site_home import SiteHome
from common.crypto.secrets import Secret
from common.data.cohort import Cohort, Dataset
from common.data.splits import split_patients
from common.data.store import materialise, stored_folder
from common.errors import InputError
from common.files import atomic_file, write_atomic

SPLIT_PURPOSE: Final = "patient split"
_TO_HOME: Final = "../.."


@dataclass(frozen=True)
class Prepared:
    """A study's cohort at this site, and what its `site.json` will say."""

    settings: SiteFile
    cohort: Cohort


def prepare(home: SiteHome, config: SiteConfig, offer: Offer, cohort: str) -> Prepared:
    """Read the cohort of that name for an offer. Raises InputError for an unknown cohort, DataError, StorageError for its data."""
    if cohort not in config.cohorts:
        raise InputError(f"{home.config}: cohorts does not have {cohort}; name one of {', '.join(config.cohorts) or '(none yet)'}")
    path = config.cohorts[cohort].path
    secret = Secret.read(home.key)
    if offer.study.data.source == "cohort":
        check_seal(path, secret)
    dataset = with_pseudonyms(materialise(offer.study.data, path, _cache(home)), secret)
    split = split_patients(dataset, secret.derive(SPLIT_PURPOSE), offer.study.data)
    settings = SiteFile(
        name=config.name,
        dataset=str(_TO_HOME / stored_folder(offer.study.data, path, _cache(home)).relative_to(home.folder)),
        nominal_patients=config.cohorts[cohort].nominal_patients,
        delta=config.limits.delta,
        coordinator_key=offer.start.receipt_key,
        home=_TO_HOME,
        study_id=offer.study.id,
        initial_weights_sha256=offer.start.initial_weights_sha256,
        joint=dataset.split is not None,
    )
    return Prepared(with_policy(settings, config, ()), Cohort(dataset, np.arange(len(dataset)), split))


def with_pseudonyms(dataset: Dataset, secret: Secret) -> Dataset:
    """The data set with the site's pseudonyms for ids, whatever it was read from: one person has one split and one account everywhere."""
    return replace(dataset, patient_ids=Pseudonyms(secret).of_all(dataset.patient_ids))


def _cache(home: SiteHome) -> Path:
    return home.folder / "cache"


def with_policy(settings: SiteFile, config: SiteConfig, run_ids: tuple[str, ...]) -> SiteFile:
    """The settings with what the policy says now, for these runs. What was fixed at approval (δ, nominal size) stays."""
    allowed = tuple(one for one in config.allow.unprotected_studies if one == settings.study_id)
    changes = {
        "run_ids": run_ids,
        "unprotected_studies": allowed,
        "epsilon_cap": config.limits.epsilon_per_account,
        "train_after_unprotected": config.allow.train_after_unprotected,
        "rounds_a_day": config.limits.rounds_a_day,
        "survey_epsilon": config.limits.survey_epsilon,
    }
    return settings.model_copy(update=changes)


def write(home: SiteHome, prepared: Prepared, run_ids: tuple[str, ...]) -> None:
    """Write the folder, each file in one step. Raises StorageError."""
    settings = prepared.settings.model_copy(update={"run_ids": run_ids})
    folder = home.study(str(settings.study_id))
    arrays: dict[str, npt.NDArray[np.generic]] = {settings.rows: prepared.cohort.rows, settings.split: prepared.cohort.split}
    for name, array in arrays.items():
        with atomic_file(folder / name) as file:
            np.save(file, array, allow_pickle=False)
    write_atomic(folder / SITE_FILE, settings.model_dump_json(indent=1))


def refresh(home: SiteHome, config: SiteConfig, study_id: str, run_ids: tuple[str, ...]) -> None:
    """Bring `site.json` up to date; the worker opens it anew when it has changed. Raises DataError, StorageError."""
    folder = home.study(study_id)
    known = SiteFile.read(folder)
    current = with_policy(known, config, run_ids)
    if current != known:
        write_atomic(folder / SITE_FILE, current.model_dump_json(indent=1))
