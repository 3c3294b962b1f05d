# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from common.errors import DataError
from common.study_file import parse_study
from simulations.commands.describe import describe_data, print_description


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def test_data_is_never_ignored_for_the_phantom(tmp_path: Path) -> None:
    study = parse_study("name: a\nprivacy: none\ndata: {phantom: {patients: 20, scanners: 2}}\n", "s.yaml")
    with pytest.raises(DataError, match=r"phantom generates its images.*set data\.source: npz"):
        describe_data(str(tmp_path / "scans.npz"), study, None)
    facts = describe_data("phantom", study, None)
    assert facts["patients"] == 20 and facts["warnings"] == []


def test_images_that_were_turned_grey_are_a_warning(tmp_path: Path) -> None:
    grey = np.random.default_rng(0).integers(0, 256, (10, 32, 32, 1), dtype=np.uint8)
    np.savez(tmp_path / "scans.npz", images=np.repeat(grey, 3, axis=3), labels=np.arange(10) % 2, patient_id=np.arange(10))
    facts = describe_data(str(tmp_path / "scans.npz"), parse_study("name: a\nprivacy: none\ndata: {source: npz}\n", "s.yaml"), None)
    (warning,) = facts["warnings"]
    assert "10 images are stored with three colour channels" in warning and "remarks" not in facts


def test_warnings_and_sizes_in_words(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (5, 32, 32), dtype=np.uint8)
    np.savez(tmp_path / "scans.npz", images=images, labels=np.zeros(5, dtype=np.int64), patients=np.arange(5))
    text = "name: a\nprivacy: none\ndata: {source: npz, image_key: images, label_key: labels, patient_key: patients, image_size: 32}\n"
    facts = describe_data(str(tmp_path / "scans.npz"), parse_study(text, "s.yaml"), None)
    one_class, few = facts["warnings"]
    assert "one class" in one_class and "5 patients are fewer than data.min_patients: 8" in few
    output = io.StringIO()
    print_description(facts, Console(file=output, width=200))
    assert "32 x 32" in output.getvalue() and few in output.getvalue()
