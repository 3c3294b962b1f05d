# SPDX-License-Identifier: Apache-2.0
"""From each layout of an export to a cohort: right pixels, right labels, no identity; what is wrong is named."""

import json
import os
import stat
from pathlib import Path

import numpy as np
import pytest

from client.cohorts.build import BuildReport, build
from client.cohorts.layout import CohortFile, files_path, open_images, read_manifest, refused_path, seal_problem
from client.cohorts.pixels import stored_pixels
from client.cohorts.tables import Listed
from client.pseudonyms import Pseudonyms
from common.crypto.secrets import Secret
from common.data.decode import Window
from common.errors import DataError, StorageError
from tests.client.cohorts.exports import SECRET, all_bytes, image, manifest_rows, options, write_dicom, write_png, write_table

NAMES = Pseudonyms(SECRET)
LISTED = Listed("pid", None, ("finding",), None, ("sex",))


def stored(folder: Path) -> np.ndarray:
    return np.asarray(open_images(folder, CohortFile.read(folder)))


def refused(report: BuildReport) -> dict[str, str]:
    return dict(report.refused)


def test_a_folder_for_each_patient_with_labels_by_patient(tmp_path: Path) -> None:
    export = tmp_path / "export"
    for seed, name in enumerate(("P1/a.png", "P1/deeper/b.png", "P2/a.png", "P3/a.png", "outside.png")):
        write_png(export / name, image(seed))
    table = write_table(
        tmp_path / "labels.csv", ("pid", "finding", "sex", "remark"), [("P1", 1, "f", "x"), ("P2", 0, "m", ""), ("P9", 1, "f", "")]
    )
    report = build(options(export, tmp_path / "out", table, LISTED), SECRET)
    rows = manifest_rows(tmp_path / "out")
    assert [(row["patient"], row["finding"], row["sex"]) for row in rows] == [
        (NAMES.of("P1"), "1", "f"),
        (NAMES.of("P1"), "1", "f"),
        (NAMES.of("P2"), "0", "m"),
    ]
    assert list(rows[0]) == ["patient", "image", "finding", "sex"] and [row["image"] for row in rows] == ["0", "1", "2"]
    for row, seed in enumerate((0, 1, 2)):
        np.testing.assert_array_equal(stored(tmp_path / "out")[row], stored_pixels(image(seed), 16, 8))
    assert report.layout == "patient-folders" and report.cohort.patients == 2
    assert {name: reason.split(";")[0] for name, reason in report.refused} == {
        "P3/a.png": "the table has no line for it or its patient",
        "outside.png": "lies outside the patients' folders",
        "labels.csv:4": "there is no file that can be used for this line",
    }


def test_every_file_is_a_patient_of_a_flat_folder_by_its_table(tmp_path: Path) -> None:
    export = tmp_path / "flat"
    for seed, name in enumerate(("a.png", "b.png", "c.png")):
        write_png(export / name, image(seed))
    rows = [("x", "C:\\export\\flat\\b.png", "ill", "train"), ("y", "a.png", "well", "Test"), ("x", "./c.png", "", "train")]
    table = write_table(export / "labels.csv", ("pid", "file", "finding", "part"), rows, delimiter=";")
    report = build(options(export, tmp_path / "out", table, Listed("pid", "file", ("finding",), "part")), SECRET)
    assert [(row["patient"], row["finding"], row["split"]) for row in manifest_rows(tmp_path / "out")] == [
        (NAMES.of("y"), "well", "test"),
        (NAMES.of("x"), "ill", "train"),
    ]
    assert report.layout == "table" and list(refused(report)) == ["c.png"] and "label is empty" in refused(report)["c.png"]
    assert report.cohort.has_split


def test_dicom_takes_the_patient_from_the_header_and_the_label_from_the_table(tmp_path: Path) -> None:
    export = tmp_path / "tree"
    write_dicom(export / "1" / "x" / "IM0", image(1), "MRN-77001")
    write_dicom(export / "2" / "y" / "IM0", image(2), "MRN-77002 ")
    write_dicom(export / "2" / "y" / "IM1", image(3), "")
    table = write_table(tmp_path / "t.csv", ("pid", "finding", "sex"), [("MRN-77001", 0, "f"), (" MRN-77002", 1, "m")])
    report = build(options(export, tmp_path / "out", table, LISTED), SECRET)
    assert [(row["patient"], row["finding"]) for row in manifest_rows(tmp_path / "out")] == [
        (NAMES.of("MRN-77001"), "0"),
        (NAMES.of("MRN-77002"), "1"),
    ]
    assert report.layout == "dicom" and "header has no patient id" in refused(report)["2/y/IM1"]
    content = all_bytes(tmp_path / "out")
    assert b"MRN-" not in content and b"Doe" not in content and b"19610412" not in content, "no identity, no date"
    assert b"PatientBirthDate" in content, "the check is told that the tag was there"
    np.testing.assert_array_equal(stored(tmp_path / "out")[1], stored_pixels(image(2), 16, 8))


def test_a_volume_becomes_slices_of_its_patient(tmp_path: Path) -> None:
    import nibabel

    volume = np.random.default_rng(0).integers(0, 200, (16, 16, 4)).astype(np.int16)
    (tmp_path / "n" / "P1").mkdir(parents=True)
    nibabel.save(nibabel.Nifti1Image(volume, np.eye(4)), tmp_path / "n" / "P1" / "scan.nii.gz")
    nibabel.save(nibabel.Nifti1Image(volume, np.eye(4)), tmp_path / "n" / "loose.nii")
    report = build(options(tmp_path / "n", tmp_path / "out", pixels={"window": Window(100, 200)}), SECRET)
    assert report.layout == "nifti" and report.cohort.rows == 4 and report.cohort.patients == 1
    assert {one.split(" ")[0] for one in refused(report)} == {"loose.nii"}


def test_npz_brings_ids_labels_and_columns(tmp_path: Path) -> None:
    images = np.stack([image(0), image(1), np.full((24, 24), 9, np.uint8)])
    np.savez(tmp_path / "d.npz", images=images, patient_id=[7, 8, 9], finding=[1, 0, 1], sex=["f", "m", "f"], secret=[1, 2, 3])
    report = build(options(tmp_path / "d.npz", tmp_path / "out", listed=Listed(None, None, ("finding",), None, ("sex",))), SECRET)
    assert [tuple(row.values()) for row in manifest_rows(tmp_path / "out")] == [
        (NAMES.of("7"), "0", "1", "f"),
        (NAMES.of("8"), "1", "0", "m"),
    ]
    assert list(refused(report)) == ["d.npz[2]"] and "one value" in refused(report)["d.npz[2]"]


def test_features_make_a_table_without_images(tmp_path: Path) -> None:
    rows = [("a", 63, "?", 1), ("b", 41.5, "2", 0), ("", 50, "1", 0), ("c", 50, "1", "")]
    table = write_table(tmp_path / "heart.csv", ("pid", "age", "ca", "ill"), rows)
    report = build(options(table, tmp_path / "out", listed=Listed("pid", None, ("ill",), None, ("age", "ca"))), SECRET)
    cohort = CohortFile.read(tmp_path / "out")
    assert (cohort.kind, cohort.images, cohort.columns) == ("tabular", None, {"age": "number", "ca": "number"})
    assert [row["age"] for row in manifest_rows(tmp_path / "out")] == ["63", "41.5"] and not (tmp_path / "out" / "images.npy").exists()
    assert set(refused(report)) == {"heart.csv:4", "heart.csv:5"}


def test_parquet_says_the_same(tmp_path: Path) -> None:
    write_png(tmp_path / "e" / "P1" / "a.png", image(0))
    build(options(tmp_path / "e", tmp_path / "csv"), SECRET)
    build(options(tmp_path / "e", tmp_path / "parquet", parquet=True), SECRET)
    one, other = (read_manifest(tmp_path / name, CohortFile.read(tmp_path / name)) for name in ("csv", "parquet"))
    assert one.patients == other.patients and one.cells == other.cells and list(one.images or ()) == list(other.images or ())


def test_files_that_are_no_images_are_named(tmp_path: Path) -> None:
    export = tmp_path / "e"
    good = write_png(export / "P1" / "good.png", image(0))
    write_png(export / "P1" / "black.png", np.zeros((24, 24), np.uint8))
    (export / "P2").mkdir()
    (export / "P2" / "torn.png").write_bytes(good.read_bytes()[:200])
    (export / "P2" / "empty.dcm").touch()
    (export / "P2" / "notes.txt").write_text("hello")
    os.mkfifo(export / "P2" / "pipe.png")
    (export / "P2" / b"\xff\xfe.png".decode("utf-8", "surrogateescape")).write_bytes(b"x")
    report = build(options(export, tmp_path / "out"), SECRET)
    assert report.cohort.rows == 1 and report.cohort.refused == 6
    assert set(refused(report)) == {"P1/black.png", "P2/torn.png", "P2/empty.dcm", "P2/notes.txt", "P2/pipe.png", "P2/\\xff\\xfe.png"}
    assert refused_path(tmp_path / "out").read_text().count("\n") == 7
    records = [json.loads(line) for line in files_path(tmp_path / "out").read_text().splitlines()]
    assert [record["source"] for record in records if "image" in record] == ["P1/good.png"] and len(records) == 7


def test_sizes_bits_and_colour_come_to_one_shape(tmp_path: Path) -> None:
    export, colour = tmp_path / "e", np.stack([image(3, 40), image(4, 40), image(5, 40)], axis=2)
    write_png(export / "P1" / "1.png", image(0, 40, 30))
    write_png(export / "P1" / "2.png", np.stack([image(1, 20)] * 3, axis=2))
    write_png(export / "P1" / "3.png", colour)
    write_png(export / "P1" / "4.png", image(2, 19))
    report = build(options(export, tmp_path / "out", pixels={"size_pixels": 256, "bits": 16}), SECRET)
    images = stored(tmp_path / "out")
    assert images.shape == (3, 40, 40, 3) and images.dtype == np.uint16
    np.testing.assert_array_equal(images[0, :, 5:35, 0], image(0, 40, 30).astype(np.uint16) * 257)
    assert not images[0, :, :5].any() and not images[0, :, 35:].any(), "padded with black"
    np.testing.assert_array_equal(images[2], colour.astype(np.uint16) * 257)
    assert (images[1, ..., 0] == images[1, ..., 2]).all()
    assert "19 pixels wide, less than half of the others' 40; build with --size 19" in refused(report)["P1/4.png"]


def test_the_folder_is_private_and_sealed(tmp_path: Path) -> None:
    write_png(tmp_path / "e" / "P1" / "a.png", image(0))
    build(options(tmp_path / "e", tmp_path / "out"), SECRET)
    assert stat.S_IMODE((tmp_path / "out").stat().st_mode) == 0o700
    cohort = CohortFile.read(tmp_path / "out")
    assert seal_problem(cohort, SECRET) is None
    assert "another site" in str(seal_problem(cohort, Secret(b"x" * 32)))
    assert "was changed" in str(seal_problem(cohort.model_copy(update={"label_columns": ("finding",)}), SECRET))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["e", "out"]


def test_wrong_calls_say_what_to_do(tmp_path: Path) -> None:
    write_png(tmp_path / "e" / "a.png", image(0))
    with pytest.raises(DataError, match="flat folder does not say whose"):
        build(options(tmp_path / "e", tmp_path / "out"), SECRET)
    with pytest.raises(DataError, match="no such file or folder"):
        build(options(tmp_path / "absent", tmp_path / "out"), SECRET)
    with pytest.raises(DataError, match="columns are named and there is no table"):
        build(options(tmp_path / "e", tmp_path / "out", listed=LISTED), SECRET)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").touch()
    with pytest.raises(DataError, match="is there already"):
        build(options(tmp_path / "e", tmp_path / "full"), SECRET)
    with pytest.raises(DataError, match="nothing in it can be used"):
        build(options(tmp_path / "e", tmp_path / "out", layout="patient-folders"), SECRET)
    with pytest.raises(StorageError, match="cannot write"):
        build(options(tmp_path / "e", tmp_path / "e" / "a.png" / "out", layout="patient-folders"), SECRET)
