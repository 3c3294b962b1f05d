# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest

from common import study
from common.data.sources import READERS, reader_for
from common.errors import DataError


def test_every_source_of_a_study_has_a_reader() -> None:
    assert set(READERS) == set(get_args(study.Data.model_fields["source"].annotation))
    for source in READERS:
        reader = reader_for(source)
        assert callable(reader.read) and callable(reader.fingerprint)


def test_unknown_source_lists_the_known_ones() -> None:
    with pytest.raises(DataError, match=r"dicom.*folder, medmnist, npz, phantom"):
        reader_for("dicom")


@pytest.mark.parametrize("source", ["npz", "medmnist", "folder"])
def test_path_is_needed_and_must_exist(source: str, tmp_path: Path) -> None:
    data = study.Data.model_validate({"source": source})
    with pytest.raises(DataError, match="--data PATH"):
        reader_for(source).read(data, None)
    with pytest.raises(DataError, match="no such file"):
        reader_for(source).read(data, tmp_path / "absent.npz")


@pytest.mark.parametrize("source", ["npz", "medmnist"])
def test_a_folder_where_a_file_is_read(source: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=f"is a folder, the study says data.source: {source}; set data.source: folder"):
        reader_for(source).fingerprint(study.Data.model_validate({"source": source}), tmp_path)


def test_data_modules_import_neither_torch_nor_pillow() -> None:
    code = (
        "import sys, common.data.store, common.data.splits, common.data.sources as s\n"
        "[s.reader_for(name) for name in s.READERS]\n"
        "sys.exit(', '.join({'torch', 'PIL', 'sklearn', 'matplotlib'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stderr.strip() == ""
