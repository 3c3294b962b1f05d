# SPDX-License-Identifier: Apache-2.0
"""A built cohort as data of a study: pixels, labels, columns, split; and whatever was changed is refused."""

import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from common import study
from common.data.blocks import BLOCK_BYTES, LazyImages, blocks
from common.data.checks import checked
from common.data.cohort_file import CohortFile, ImagesEntry
from common.data.cohort_folder import CohortReader, typed
from common.data.resize import resize, to_bytes
from common.data.sources import RawTable, file_sha256
from common.data.store import materialise, stored_folder
from common.errors import DataError
from tests.common.data.tables import small_images

READER = CohortReader()
PATIENTS = ["wrp1-" + digit * 64 for digit in "aabbcddd"]


def settings(**changes: Any) -> study.Data:
    return study.Data.model_validate(
        {"source": "cohort", "image_size": 16, "min_patients": 2, "label_column": "ill", "labels": ("well", "ill"), **changes}
    )


def write_cohort(
    folder: Path, images: np.ndarray | None, cells: dict[str, list[str]], labels: tuple[str, ...] = ("ill",), **changes: Any
) -> Path:
    """A cohort by hand, as the format says."""
    folder.mkdir()
    rows = len(PATIENTS)
    header = ["patient", "image", *cells]
    numbers = [str(row) if images is not None else "" for row in range(rows)]
    lines = [header, *zip(PATIENTS, numbers, *cells.values(), strict=True)]
    (folder / "manifest.csv").write_text("".join(",".join(line) + "\n" for line in lines))
    entry = None
    if images is not None:
        np.save(folder / "images.npy", images)
        facts = {
            "size_pixels": images.shape[1],
            "channels": 3 if images.ndim == 4 else 1,
            "bits": 8 * images.itemsize,
            "count": len(images),
        }
        path = folder / "images.npy"
        entry = ImagesEntry.model_validate(facts | {"size_bytes": path.stat().st_size, "sha256": file_sha256(path)})
    listed = {name: "text" for name in cells if name not in (*labels, "split")}
    content = {
        "kind": "image" if images is not None else "tabular",
        "images": entry,
        "label_columns": labels,
        "columns": listed,
        "has_split": "split" in cells,
        "rows": rows,
        "patients": 4,
        "refused": 0,
        "manifest": "manifest.csv",
        "manifest_sha256": file_sha256(folder / "manifest.csv"),
    }
    (folder / "cohort.json").write_text(CohortFile.model_validate(content | changes).model_dump_json())
    return folder


CELLS = {
    "ill": list("00110011"),
    "split": ["train"] * 2 + ["test"] * 3 + ["validation"] * 3,
    "age": ["40", "?", "61.5", "40", "1", "2", "3", "4"],
}


def test_pixels_labels_columns_and_split_reach_the_data_set(tmp_path: Path) -> None:
    folder = write_cohort(tmp_path / "c", small_images(), CELLS)
    dataset = materialise(settings(), folder, tmp_path / "cache")
    np.testing.assert_array_equal(dataset.images[:, 0], small_images())
    assert dataset.labels.tolist() == [0, 0, 1, 1, 0, 0, 1, 1] and dataset.patients.tolist() == [0, 0, 1, 1, 2, 3, 3, 3]
    assert dataset.patient_ids == tuple(dict.fromkeys(PATIENTS))
    assert dataset.split is not None and dataset.split.tolist() == [0, 0, 2, 2, 2, 1, 1, 1]
    np.testing.assert_array_equal(dataset.columns["age"], [40, np.nan, 61.5, 40, 1, 2, 3, 4])


def test_sixteen_bits_become_eight_and_large_images_small(tmp_path: Path) -> None:
    images = np.random.default_rng(1).integers(0, 1 << 16, (8, 48, 48), dtype=np.uint16)
    dataset = materialise(settings(), write_cohort(tmp_path / "c", images, CELLS), tmp_path / "cache")
    expected = np.floor(images / 257 + 0.5).astype(np.uint8).reshape(8, 16, 3, 16, 3).mean(axis=(2, 4))
    np.testing.assert_array_equal(dataset.images[:, 0], np.floor(expected + 0.5))


def test_grey_and_colour_follow_the_study(tmp_path: Path) -> None:
    colour = np.random.default_rng(1).integers(0, 256, (8, 16, 16, 3), dtype=np.uint8)
    folder = write_cohort(tmp_path / "colour", colour, CELLS)
    np.testing.assert_array_equal(materialise(settings(channels=3), folder, tmp_path / "cache").images, colour.transpose(0, 3, 1, 2))
    with pytest.raises(DataError, match="8 images are in colour"):
        materialise(settings(), folder, tmp_path / "cache")
    grey = write_cohort(tmp_path / "grey", np.repeat(small_images()[..., None], 3, axis=3), CELLS)
    np.testing.assert_array_equal(materialise(settings(), grey, tmp_path / "cache").images[:, 0], small_images())
    plain = write_cohort(tmp_path / "plain", small_images(), CELLS)
    assert materialise(settings(channels=3), plain, tmp_path / "cache").images.shape == (8, 3, 16, 16)


def test_labels_by_name_and_rows_to_drop(tmp_path: Path) -> None:
    cells = CELLS | {"ill": ["well", "ill", "other", "well", "ill", "ill", "well", "well"]}
    folder = write_cohort(tmp_path / "c", small_images(), cells)
    with pytest.raises(DataError, match="label outside the list: other"):
        materialise(settings(), folder, tmp_path / "cache")
    dataset = materialise(settings(other_labels="drop"), folder, tmp_path / "cache")
    np.testing.assert_array_equal(dataset.images[:, 0], np.delete(small_images(), 2, axis=0))


def test_a_table_gives_features(tmp_path: Path) -> None:
    folder = write_cohort(tmp_path / "t", None, {"ill": list("00110011"), "age": CELLS["age"], "sex": list("fmfmfmfm")})
    columns = {
        "age": {"kind": "number", "centre": 50.0, "scale": 10.0, "missing": "indicator"},
        "sex": {"kind": "category", "values": ("f", "m")},
    }
    data = settings(kind="tabular", columns=columns)
    dataset = materialise(data, folder, tmp_path / "cache")
    assert dataset.features is not None and dataset.features.shape == (8, 4)
    np.testing.assert_allclose(dataset.features[:3], [[-1, 0, 1, 0], [0, 1, 0, 1], [1.15, 0, 1, 0]], rtol=1e-6)
    with pytest.raises(DataError, match="cohort of kind tabular"):
        READER.fingerprint(settings(), folder)


def test_what_was_changed_is_refused(tmp_path: Path) -> None:
    folder = write_cohort(tmp_path / "c", small_images(), CELLS)
    READER.read(settings(), folder)
    pixels = (folder / "images.npy").read_bytes()
    (folder / "images.npy").write_bytes(pixels[:-1] + bytes([pixels[-1] ^ 1]))
    with pytest.raises(DataError, match=r"is not what cohort\.json says"):
        READER.read(settings(), folder)
    (folder / "images.npy").write_bytes(pixels[:-16])
    with pytest.raises(DataError, match=r"images\.npy"):
        READER.fingerprint(settings(), folder)
    (folder / "images.npy").write_bytes(pixels)
    text = (folder / "manifest.csv").read_text()
    (folder / "manifest.csv").write_text(text.replace("61.5", "16.5"))
    for call in (READER.fingerprint, READER.read):
        with pytest.raises(DataError, match="was changed after the cohort was built"):
            call(settings(), folder)


def test_what_is_no_cohort_says_what_to_do(tmp_path: Path) -> None:
    folder = write_cohort(tmp_path / "c", small_images(), CELLS)
    with pytest.raises(DataError, match="the cohort has: ill"):
        READER.read(settings(label_column="finding"), folder)
    with pytest.raises(DataError, match="cohort build"):
        READER.fingerprint(settings(), tmp_path)
    with pytest.raises(DataError, match="is a file"):
        READER.fingerprint(settings(), folder / "cohort.json")
    (folder / "cohort.json").write_text("{}")
    with pytest.raises(DataError, match="not a cohort of this version"):
        READER.fingerprint(settings(), folder)


def test_the_ingest_folder_is_no_part_of_it(tmp_path: Path) -> None:
    folder = write_cohort(tmp_path / "c", small_images(), CELLS)
    before = READER.fingerprint(settings(), folder)
    (folder / "ingest").mkdir()
    (folder / "ingest" / "files.jsonl").write_text("anything")
    assert READER.fingerprint(settings(), folder) == before


def test_memory_does_not_grow_with_the_images(tmp_path: Path) -> None:
    count, side = 1000, 256
    source = np.lib.format.open_memmap(tmp_path / "large.npy", mode="w+", dtype=np.uint16, shape=(count, side, side))
    source[:, 0, 0] = 40_000
    table = RawTable("large", LazyImages(source, np.arange(count), (to_bytes,)), np.arange(count) % 2, np.arange(count) // 2)

    class Reader:
        def fingerprint(self, data: study.Data, path: Path | None) -> str:
            return "0" * 64

        def read(self, data: study.Data, path: Path | None) -> RawTable:
            return table

    from common.data import store

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(store, "reader_for", lambda source: Reader())
        tracemalloc.start()
        stored_folder(settings(image_size=128), tmp_path, tmp_path / "cache")
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < 16 * BLOCK_BYTES < count * side * side * 2, "a few blocks, not the data set"


def test_blocks_are_the_whole_in_turn() -> None:
    images = small_images(7)
    lazy = LazyImages(images, np.array([5, 0, 1, 2]))
    np.testing.assert_array_equal(np.concatenate(list(blocks(lazy))), images[[5, 0, 1, 2]])
    np.testing.assert_array_equal(lazy.take(np.array([True, False, True, False]))[:], images[[5, 1]])
    three = lazy.then(lambda block: np.repeat(block[..., None], 3, axis=3), 3)
    assert three.shape == (4, 16, 16, 3) and (three.ndim, three.size, len(three)) == (4, 3072, 4)
    np.testing.assert_array_equal(three[1:2][..., 2], images[:1])
    whole = checked(RawTable("x", lazy, np.array([0, 1, 0, 1]), np.arange(4)), settings(channels=3)).images
    np.testing.assert_array_equal(whole[:], three[:])


def test_numbers_and_text() -> None:
    assert typed(np.array(["1", "2.0"])).dtype == np.int64 and typed(np.array(["1", "?"])).dtype == np.float64
    assert typed(np.array(["1", "x"])).tolist() == ["1", "x"] and typed(np.array(["", "?"])).dtype.kind == "U"


def test_whole_factors_of_16_bits_do_not_overflow() -> None:
    white = np.full((1, 1024, 1024), 65535, np.uint16)
    assert (resize(white, 4) == 65535).all() and (to_bytes(white) == 255).all()
