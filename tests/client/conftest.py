# SPDX-License-Identifier: Apache-2.0
"""One hospital's folder with real (synthetic) images, and instructions for it."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from client.site import SiteFile, write_site
from common.data.cohort import Cohort
from common.data.splits import PUBLIC_KEY, split_patients
from common.data.store import open_dataset, stored_folder
from common.files import cache_folder
from common.models.registry import initial_state
from common.protocol import Instruction
from common.study import Study
from tests.support.studies import small

MakeSite = Callable[..., Path]


@pytest.fixture
def make_site(tmp_path: Path) -> MakeSite:
    def make(study: Study, name: str = "north", patients: int | None = None, allow: bool = True) -> Path:
        folder = stored_folder(study.data, None, cache_folder())
        dataset = open_dataset(folder)
        rows = np.flatnonzero(dataset.patients < (patients or len(dataset.patient_ids)))
        cohort = Cohort(dataset, rows, split_patients(dataset, PUBLIC_KEY, study.data)[rows])
        allowed = (study.id,) if allow else ()
        site = SiteFile(name=name, dataset=str(folder), nominal_patients=60, unprotected_studies=allowed, delta=1e-5)
        write_site(tmp_path / name, site, cohort)
        return tmp_path / name

    return make


@pytest.fixture(scope="session")
def start_model() -> dict[str, np.ndarray]:
    return initial_state(small())


@pytest.fixture
def instruct(start_model: dict[str, np.ndarray]) -> Callable[..., Instruction]:
    def make(study: Study, round_number: int = 1, run_id: str = "run-1", train: bool = True, evaluate: bool = False, shift: float = 0.0):
        model = {name: value + np.float32(shift) for name, value in start_model.items()}
        return Instruction(run_id, study.canonical_json, round_number, train, evaluate, model)

    return make
