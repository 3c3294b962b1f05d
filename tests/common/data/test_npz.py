# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from common.data.cohort import Dataset
from common.data.npz import NpzReader
from common.errors import DataError
from tests.common.data.tables import small_data, write_npz


def test_reads_images_labels_ids_and_columns(tmp_path: Path) -> None:
    age, ward = np.arange(8) + 40, np.array(list("abcdefgh"))
    path = write_npz(tmp_path / "a.npz", age=age, ward=ward, constant=np.arange(3), matrix=np.ones((8, 2)))
    table = NpzReader().read(small_data(), path)
    assert table.where == "a.npz"
    assert table.images.shape == (8, 16, 16)
    assert set(table.columns) == {"age", "ward"}
    assert np.array_equal(table.columns["age"], age)
    assert not table.synthetic and table.natural_sites is None and table.split is None


def test_missing_arrays_are_named_together(tmp_path: Path) -> None:
    path = write_npz(tmp_path / "a.npz", images=None, patient_id=None)
    with pytest.raises(DataError) as caught:
        NpzReader().read(small_data(), path)
    assert len(caught.value.problems) == 2
    assert "image_key" in caught.value.problems[0] and "the file has: labels" in caught.value.problems[0]
    assert "one_image_one_patient: true" in caught.value.problems[1] and "k times less" in caught.value.problems[1]


def test_one_image_one_patient_has_to_be_declared_and_must_not_be_contradicted(tmp_path: Path) -> None:
    bare = write_npz(tmp_path / "bare.npz", patient_id=None)
    assert NpzReader().read(small_data(one_image_one_patient=True), bare).patient_ids is None
    with_ids = write_npz(tmp_path / "ids.npz")
    with pytest.raises(DataError, match="several images"):
        NpzReader().read(small_data(one_image_one_patient=True), with_ids)


@pytest.mark.parametrize("content", [b"", b"not a zip at all", None])
def test_damaged_file_is_one_clear_error(tmp_path: Path, content: bytes | None) -> None:
    path = write_npz(tmp_path / "a.npz")
    path.write_bytes(path.read_bytes()[:-600] if content is None else content)
    with pytest.raises(DataError, match=r"a\.npz: not an intact npz"):
        NpzReader().read(small_data(), path)


def test_flipped_byte_in_the_pixels_is_found(tmp_path: Path) -> None:
    path = write_npz(tmp_path / "a.npz")
    content = bytearray(path.read_bytes())
    content[1000] ^= 0xFF
    path.write_bytes(content)
    with pytest.raises(DataError, match="not an intact npz"):
        NpzReader().read(small_data(), path)


def test_pickled_arrays_are_never_loaded(tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[object, tuple[Path]]:
            return (Path.touch, (tmp_path / "exploded",))

    extra = np.array([Bomb()] * 8, dtype=object)
    path = write_npz(tmp_path / "a.npz", extra=extra)
    assert "extra" not in NpzReader().read(small_data(), path).columns
    path = write_npz(tmp_path / "b.npz", images=extra)
    with pytest.raises(DataError, match="no plain array 'images'"):
        NpzReader().read(small_data(), path)
    assert not (tmp_path / "exploded").exists()


def test_fingerprint_follows_the_content(tmp_path: Path) -> None:
    one, same = write_npz(tmp_path / "a.npz"), write_npz(tmp_path / "b.npz")
    other = write_npz(tmp_path / "c.npz", labels=np.array([1, 0, 1, 1, 0, 0, 1, 1]))
    prints = [NpzReader().fingerprint(small_data(), path) for path in (one, same, other)]
    assert prints[0] == prints[1] != prints[2]


def test_kermany(kermany: Dataset) -> None:
    assert kermany.images.shape == (5200, 1, 32, 32)
    assert len(kermany.patient_ids) == 2846
    assert np.bincount(kermany.labels).tolist() == [1340, 3860]
    assert np.bincount(kermany.patients).max() == 30
    assert set(kermany.columns) == {"kind", "filename"}
    assert not kermany.synthetic
