# SPDX-License-Identifier: Apache-2.0
"""From a study and a data set to a run directory: sites, their patients, their splits, and features that are computed once."""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict

from client.site import Site, SiteFile, write_site
from common.child import Progress, run_in_child
from common.crypto.secrets import Secret
from common.data.checks import cohort_problems, cohort_warnings
from common.data.cohort import Cohort, Dataset, Split
from common.data.splits import PUBLIC_KEY, split_patients
from common.data.store import materialise, open_dataset, stored_folder
from common.errors import DataError, InputError
from common.files import cache_folder, write_atomic
from common.study import Study
from server.app import RunFile
from simulations.baselines import POOLED
from simulations.layout import RunLayout, account_delta, write_table
from simulations.options import RunOptions
from simulations.partition import Partition, cohort_for, default_partition, parse_partition


class Request(BaseModel):
    """`request.json`: how a run was asked for, so that `--resume DIR` needs nothing else."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    partition: str
    source: str
    workers: int
    threads: int | None
    engine: Literal["local", "ray"]
    device: str
    command: str
    baselines: bool
    nominal_patients: int
    dataset: str


@dataclass(frozen=True)
class Prepared:
    """A run directory that is ready to run."""

    layout: RunLayout
    study: Study
    request: Request
    run_id: str
    cohorts: Mapping[str, Cohort]

    @property
    def dataset(self) -> Dataset:
        """The data set that all sites take their rows from."""
        return next(iter(self.cohorts.values())).dataset

    @property
    def warnings(self) -> list[str]:
        """What is odd about the data, then about each site's, with the site's name."""
        return [*self.dataset.remarks] + [f"{name}: {text}" for name, cohort in self.cohorts.items() for text in cohort_warnings(cohort)]


def prepare(study: Study, options: RunOptions, layout: RunLayout) -> Prepared:
    """Write a fresh run directory. Raises DataError with every problem of the data at any site."""
    dataset = materialise(study.data, options.data, cache_folder())
    cohorts = _cohorts(study, dataset, options)
    nominal = max(1, round(sum(cohort.patient_count(Split.TRAIN) for cohort in cohorts.values()) / len(cohorts)))
    request = Request(
        partition=str(_partition(options, dataset)),
        source=options.data.name if options.data else study.data.source,
        workers=options.workers,
        threads=options.threads,
        engine=options.engine,
        device=options.device,
        command=options.command,
        baselines=options.baselines,
        nominal_patients=nominal,
        dataset=str(stored_folder(study.data, options.data, cache_folder()).absolute()),
    )
    run = RunFile(run_id=secrets.token_hex(16), sites=tuple(cohorts))
    _write_sites(layout, study, cohorts, request)
    layout.write_study(study)
    write_atomic(layout.server, run.model_dump_json(indent=1))
    write_atomic(layout.request, request.model_dump_json(indent=1))
    return Prepared(layout, study, request, run.run_id, cohorts)


def reopen(layout: RunLayout) -> Prepared:
    """Open a run directory that `prepare` wrote. Raises InputError, DataError."""
    study = layout.read_study()
    request = Request.model_validate_json(layout.request.read_text(encoding="utf-8"))
    run = RunFile.model_validate_json(layout.server.read_text(encoding="utf-8"))
    cohorts = {name: Site.open(layout.site(name)).cohort for name in run.sites}
    return Prepared(layout, study, request, run.run_id, cohorts)


def ensure_features(prepared: Prepared, progress: Progress | None) -> None:
    """Compute and store the model's frozen features, if it has any and they are not stored yet."""
    request = {"study": prepared.study.canonical_json, "dataset": prepared.request.dataset, "device": prepared.request.device}
    run_in_child("simulations.prepare:compute_features", json.dumps(request).encode(), progress)


def check_device(device: str) -> None:
    """Raises InputError when a GPU is asked for that torch does not see."""
    if device.startswith("cuda"):
        run_in_child("simulations.prepare:find_device", device.encode())


def find_device(device: bytes, _: Progress) -> bytes:
    """The child's part of `check_device`."""
    import torch

    if int(device.decode().removeprefix("cuda:")) >= torch.cuda.device_count():
        raise InputError(f"--device {device.decode()}: torch sees {torch.cuda.device_count()} GPUs here; give auto or cpu")
    return b""


def compute_features(request: bytes, progress: Progress) -> bytes:
    """The child's part of `ensure_features`."""
    from client.workbench import choose_device
    from common.data import features
    from common.models.registry import build_model

    facts = json.loads(request)
    model = build_model(Study.from_canonical_json(facts["study"]))
    if model.feature_digest is not None:
        features.ensure_features(
            open_dataset(Path(facts["dataset"])), model, cache_folder(), progress=progress, device=str(choose_device(facts["device"]))
        )
    return b""


def _partition(options: RunOptions, dataset: Dataset) -> Partition:
    return parse_partition(options.partition) if options.partition else default_partition(dataset)


def _cohorts(study: Study, dataset: Dataset, options: RunOptions) -> dict[str, Cohort]:
    """Each site's cohort by name. Raises DataError naming every site that cannot take part."""
    split = split_patients(dataset, PUBLIC_KEY, study.data)
    partition = _partition(options, dataset)
    parts = partition.assign(dataset, options.sites, study.seed)
    names = partition.site_names(dataset, options.sites)
    cohorts = {name: cohort_for(dataset, rows, split) for name, rows in zip(names, parts, strict=True)}
    problems = [text for name, cohort in cohorts.items() for text in cohort_problems(cohort, study.data, name)]
    if len(cohorts) < study.federation.min_sites:
        problems.append(f"{len(cohorts)} sites, but federation.min_sites is {study.federation.min_sites}; give --sites or lower it")
    if POOLED in cohorts:
        problems.append(f"a site cannot be called {POOLED}: that is the baseline with all data in one place; rename it in the data")
    if problems:
        raise DataError(problems)
    return cohorts


def _write_sites(layout: RunLayout, study: Study, cohorts: Mapping[str, Cohort], request: Request) -> None:
    """The simulation plays every hospital's IT: it allows this study by id even if it has no privacy, at the study's δ."""
    allowed = () if study.is_private else (study.id,)
    coordinator_key = Secret.ensure(layout.coordinator_key).signer.public_key
    for name, cohort in cohorts.items():
        facts = SiteFile(
            name=name,
            dataset=request.dataset,
            nominal_patients=request.nominal_patients,
            unprotected_studies=allowed,
            delta=account_delta(study),
            coordinator_key=coordinator_key,
        )
        write_site(layout.site(name), facts, cohort)
    write_table(layout.site_table, [layout.site(name) for name in cohorts])
