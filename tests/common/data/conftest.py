# SPDX-License-Identifier: Apache-2.0
"""Real data sets, materialised once for a test session."""

from __future__ import annotations

import pytest

from common import study
from common.data.cohort import Dataset
from common.data.store import materialise
from tests.common.data.tables import KERMANY


@pytest.fixture(scope="session")
def kermany(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """5,200 chest radiographs of 2,846 patients, averaged to 32 pixels."""
    data = study.Data(source="npz", label_key="pneumonia", labels=("normal", "pneumonia"))
    return materialise(data, KERMANY, tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session")
def phantom(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """The built-in data set with its default settings."""
    return materialise(study.Data(), None, tmp_path_factory.mktemp("cache"))
