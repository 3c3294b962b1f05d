# SPDX-License-Identifier: Apache-2.0
"""Tables in CSV files: one or one for each site, what enters, what is refused, and the four real hospitals."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from common.data.checks import checked
from common.data.cohort import Split
from common.data.csv_table import CsvReader, differing_parts, split_of
from common.data.sources import RawTable
from common.data.store import materialise, stored_folder
from common.errors import DataError, StorageError
from common.study import Data
from common.study_file import load_study
from simulations.options import find_study
from tests.support.tables import COLUMNS, HEART, LINES, table_data, write_table


def data(**changes: Any) -> Data:
    return Data.model_validate(table_data(**changes))


def read(path: Path, **changes: Any) -> RawTable:
    return CsvReader().read(data(**changes), path)


def problems(path: Path, **changes: Any) -> str:
    with pytest.raises(DataError) as caught:
        checked(read(path, **changes), data(**changes))
    return "\n".join(caught.value.problems)


def test_a_file_by_hand(tmp_path: Path) -> None:
    table = checked(read(write_table(tmp_path / "ward.csv")), data())
    assert table.features is not None
    assert table.features.tolist() == [[1, 0.5, 1, 0, 0], [-0.5, -0.5, 0, 1, 0], [2, 0.5, 0, 0, 1], [-2, -0.5, 1, 0, 0]]
    assert (
        table.labels.tolist() == [1, 0, 1, 0] and table.patient_ids is not None and table.patient_ids.tolist() == ["p1", "p2", "p3", "p4"]
    )
    assert (len(table.images), table.images.size, table.natural_sites, table.where) == (4, 0, None, "ward.csv")


def test_a_column_that_the_study_does_not_name_never_enters(tmp_path: Path) -> None:
    assert set(read(write_table(tmp_path / "ward.csv")).columns) == set(COLUMNS)


def test_columns_stay_as_they_were_with_nan_where_missing(tmp_path: Path) -> None:
    settings = {name: {**settings, "missing": "indicator"} for name, settings in COLUMNS.items()}
    table = read(write_table(tmp_path / "a.csv", (LINES[0], "p1,?,1,a,x,1", "p2,44.5,,?,x,0")), columns=settings)
    assert np.array_equal(table.columns["age"], [np.nan, 44.5], equal_nan=True)
    assert np.array_equal(table.columns["sex"], [1, np.nan], equal_nan=True)
    assert table.columns["ward"].tolist() == ["a", ""]


def test_other_separators_and_files_without_a_line_of_names(tmp_path: Path) -> None:
    plain = read(write_table(tmp_path / "a.csv"))
    names = LINES[0].split(",")
    for separator, letter in (("semicolon", ";"), ("tab", "\t")):
        other = write_table(tmp_path / f"{separator}.csv", tuple(line.replace(",", letter) for line in LINES[1:]))
        assert np.array_equal(read(other, separator=separator, column_names=names).features, plain.features)
    quoted = write_table(tmp_path / "q.csv", (LINES[0], '"p1",60,1,a,"x, y",1', "", *LINES[2:]))
    quoted.write_bytes(b"\xef\xbb\xbf" + quoted.read_bytes().replace(b"\n", b"\r\n"))
    assert np.array_equal(read(quoted).features, plain.features)


def test_each_file_of_a_folder_is_a_site(tmp_path: Path) -> None:
    write_table(tmp_path / "study.north.csv", LINES[:3])
    write_table(tmp_path / "study.south.csv", (LINES[0], *LINES[3:]))
    (tmp_path / "README.md").write_text("no table")
    table = read(tmp_path)
    assert table.natural_sites == "site" and table.columns["site"].tolist() == ["north", "north", "south", "south"]
    assert np.array_equal(table.features, read(write_table(tmp_path.parent / "one.csv")).features)
    with pytest.raises(DataError, match="site is a column of the study and what the files of a folder stand for"):
        read(tmp_path, label_column="site")


def test_names_are_cut_to_where_they_differ() -> None:
    assert differing_parts(["processed.cleveland", "processed.hungarian", "processed.va"]) == ["cleveland", "hungarian", "va"]
    assert differing_parts(["north-1", "north-12"]) == ["1", "12"]
    assert differing_parts(["alpha", "alpine"]) == ["alpha", "alpine"]
    assert differing_parts(["only.one"]) == ["only.one"]


def test_rows_that_are_patients_of_their_own_keep_their_ids_when_others_are_left_out(tmp_path: Path) -> None:
    settings = {**COLUMNS, "age": {**COLUMNS["age"], "missing": "drop"}}
    lines = (LINES[0], "p1,?,1,a,x,1", *LINES[2:])
    table = checked(read(write_table(tmp_path / "w.csv", lines), columns=settings, one_image_one_patient=True), data(columns=settings))
    assert table.patient_ids is not None and table.patient_ids.tolist() == ["row-00000001", "row-00000002", "row-00000003"]
    assert table.labels.tolist() == [0, 1, 0] and table.features is not None and np.isfinite(table.features).all()
    assert table.remarks == ("1 of 4 rows miss a value whose column says missing: drop, and are left out",)


def test_a_renamed_file_has_the_same_patients(tmp_path: Path) -> None:
    """Accounts hang on the ids: a new name must not be a new budget."""
    first, second = (read(write_table(tmp_path / name), one_image_one_patient=True) for name in ("a.csv", "b.csv"))
    assert np.array_equal(first.patient_ids, second.patient_ids)


def test_several_numbers_may_mean_one_class(tmp_path: Path) -> None:
    lines = (LINES[0], "p1,60,1,a,x,0", "p2,60,1,a,x,3.0", "p3,60,1,a,x,1", "p4,60,1,a,x,2")
    path = write_table(tmp_path / "a.csv", lines)
    groups = {"label_groups": [[0], [1, 2, 3]]}
    assert checked(read(path, **groups), data(**groups)).labels.tolist() == [0, 1, 1, 1]
    assert "outside the list: 3, where 0, 1, 2 are listed" in problems(path, label_groups=[[0], [1, 2]])
    swapped = {"label_groups": [[2, 1, 3], [0]]}
    assert checked(read(path, **swapped), data(**swapped)).labels.tolist() == [1, 0, 0, 0]


def test_labels_may_be_words(tmp_path: Path) -> None:
    path = write_table(tmp_path / "a.csv", (LINES[0], "p1,60,1,a,x,yes", "p2,60,1,a,x,no"))
    assert checked(read(path), data()).labels.tolist() == [1, 0]


def test_an_official_split(tmp_path: Path) -> None:
    lines = ("patient_id,age,sex,ward,part,label", "p1,60,1,a,train,1", "p2,60,1,a,Test,0", "p3,60,1,a,validation,0", "p1,60,1,a,train,1")
    path = write_table(tmp_path / "a.csv", lines)
    table = read(path, split_column="part")
    assert table.split is not None and table.split.tolist() == [Split.TRAIN, Split.TEST, Split.VALIDATION, Split.TRAIN]
    torn = write_table(tmp_path / "b.csv", (*lines[:4], "p1,60,1,a,test,1"))
    assert "1 patients have rows in two parts" in problems(torn, split_column="part")
    with pytest.raises(DataError, match="the split column says 'fold 1'; write train"):
        split_of(np.array(["train", "fold 1"]))


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        ((), "has no rows"),
        (LINES[:1], "has no rows"),
        (("age,age", "1,2"), "a column name stands twice ('age')"),
        ((*LINES, "p5,1,1,a"), "1 lines (6, without empty ones) do not have 6 values"),
        (("age,sex,ward,label", "1,1,a,0"), "no column 'patient_id' (data.patient_key)"),
        (("patient_id,age", "p,1"), "no column 'label' (data.label_column); the file has: patient_id, age"),
        ((LINES[0], "p1,60,1,a,x,?", *LINES[2:]), "1 rows have no label (rows 0)"),
        ((LINES[0], "p1,60,1,a,x,9", *LINES[2:]), "1 rows (row 0) have a label outside the list: 9"),
        ((LINES[0], ",60,1,a,x,1", *LINES[2:]), "empty patient id (row 0)"),
        (LINES[:2], "1 patients, but data.min_patients is 2"),
        ((LINES[0], 'p1,6"0,1,a,x,1'), "column 'age'"),
    ],
)
def test_what_is_wrong_is_said(tmp_path: Path, lines: tuple[str, ...], words: str) -> None:
    assert words in problems(write_table(tmp_path / "a.csv", lines))


def test_files_that_are_no_text(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes("patient_id,müde".encode("latin-1"))
    assert "a.csv: is not UTF-8 text (byte 12); save it as CSV UTF-8" in problems(tmp_path / "a.csv")
    empty = tmp_path / "empty"
    empty.mkdir()
    assert "empty: no table in this folder" in problems(empty)


def test_a_study_for_tables_refuses_images_and_the_features_of_another() -> None:
    images = RawTable("a.npz", np.zeros((4, 16, 16), np.uint8), np.array([0, 1, 0, 1]), np.array(list("abcd")))
    with pytest.raises(DataError, match="these are images"):
        checked(images, data())


def test_the_store_keeps_features_and_finds_damage(tmp_path: Path) -> None:
    path, cache = write_table(tmp_path / "a.csv"), tmp_path / "cache"
    dataset = materialise(data(), path, cache)
    assert dataset.features is not None and dataset.features.dtype == np.float32
    assert np.array_equal(dataset.features, read(path).features)
    assert len(dataset) == 4 and dataset.images.shape == (4, 0, 0, 0) and not dataset.features.flags.writeable
    other = materialise(data(columns={**COLUMNS, "age": {**COLUMNS["age"], "centre": 51}}), path, cache)
    assert other.digest != dataset.digest and other.features is not None and other.features[1, 0] == pytest.approx(-0.6)
    stored = stored_folder(data(), path, cache) / "features.npy"
    content = bytearray(stored.read_bytes())
    content[-1] ^= 1
    stored.write_bytes(bytes(content))
    from common.data.store import open_dataset

    with pytest.raises(StorageError, match=r"features\.npy is not what was written"):
        open_dataset(stored.parent)


def test_the_four_real_hospitals() -> None:
    """FLamby's 740 rows: 303, 261, 46 and 130, of which 139, 98, 45 and 101 have the disease."""
    study = load_study(find_study("heart-disease"))
    table = checked(CsvReader().read(study.data, HEART), study.data)
    sites = table.columns["site"]
    assert {site: int((sites == site).sum()) for site in np.unique(sites)} == {
        "cleveland": 303,
        "hungarian": 261,
        "switzerland": 46,
        "va": 130,
    }
    assert [int(table.labels[sites == site].sum()) for site in np.unique(sites)] == [139, 98, 45, 101]
    first = dict(zip(study.data.feature_names, table.features[0].tolist(), strict=True)) if table.features is not None else {}
    by_hand = {
        "age": 0.8,
        "sex": 0.5,
        "cp=1": 1,
        "cp=4": 0,
        "trestbps": 0.75,
        "chol": 13 / 80,
        "fbs": 0.5,
        "restecg=2": 1,
        "thalach": 0.4,
        "exang": -0.5,
    }
    assert {name: first[name] for name in by_hand} == pytest.approx(by_hand)
