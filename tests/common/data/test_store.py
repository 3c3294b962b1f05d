# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from common.data import store
from common.data.store import materialise, open_dataset, stored_folder
from common.errors import DataError, StorageError
from tests.common.data.tables import small_data, small_images, write_npz


def test_what_is_stored_is_what_was_read(tmp_path: Path) -> None:
    source = write_npz(
        tmp_path / "a.npz", age=np.arange(8), **{"../ward": np.array(list("abcdefgh"))}, patient_id=np.array(list("bbaaddcc"))
    )
    dataset = materialise(small_data(), source, tmp_path / "cache")
    assert isinstance(dataset.images, np.memmap) and not dataset.images.flags.writeable
    assert np.array_equal(dataset.images[:, 0], small_images())
    assert dataset.patient_ids == ("a", "b", "c", "d") and dataset.patients.tolist() == [1, 1, 0, 0, 3, 3, 2, 2]
    assert dataset.columns["../ward"].tolist() == list("abcdefgh")
    assert dataset.labels.dtype == np.int64 and dataset.split is None and dataset.label_names == ("normal", "opacity")


def test_second_call_only_opens(tmp_path: Path) -> None:
    source, cache = write_npz(tmp_path / "a.npz"), tmp_path / "cache"
    folder = stored_folder(small_data(), source, cache)
    before = {file: file.stat().st_mtime_ns for file in folder.iterdir()}
    assert stored_folder(small_data(test_fraction=0.4, min_patients=3), source, cache) == folder
    assert {file: file.stat().st_mtime_ns for file in folder.iterdir()} == before
    with pytest.raises(DataError, match="min_patients is 5"):
        materialise(small_data(min_patients=5), source, cache)


def test_key_and_digest_follow_content_not_names(tmp_path: Path) -> None:
    source, cache = write_npz(tmp_path / "a.npz"), tmp_path / "cache"
    copy = tmp_path / "elsewhere.npz"
    copy.write_bytes(source.read_bytes())
    assert stored_folder(small_data(), copy, cache) == stored_folder(small_data(), source, cache)
    digest = materialise(small_data(), source, cache).digest
    assert materialise(small_data(), source, tmp_path / "other").digest == digest
    others = [
        materialise(small_data(), write_npz(tmp_path / "b.npz", labels=np.array([1, 0, 1, 1, 0, 0, 1, 1])), cache),
        materialise(small_data(), write_npz(tmp_path / "c.npz", patient_id=np.array(list("aabbccde"))), cache),
        materialise(small_data(), write_npz(tmp_path / "d.npz", age=np.arange(8)), cache),
        materialise(small_data(labels=("opacity", "normal")), source, cache),
    ]
    assert len({digest, *(other.digest for other in others)}) == 5


def test_manifest_holds_no_path_of_the_machine(tmp_path: Path) -> None:
    folder = stored_folder(small_data(), write_npz(tmp_path / "a.npz"), tmp_path / "cache")
    for name in ("dataset.json", "patient_ids.json"):
        assert str(tmp_path) not in (folder / name).read_text() and "/" not in (folder / name).read_text()
    assert json.loads((folder / "dataset.json").read_text())["source_size_pixels"] == 16


def test_refused_data_leaves_nothing_behind(tmp_path: Path) -> None:
    with pytest.raises(DataError):
        materialise(small_data(), write_npz(tmp_path / "a.npz", labels=np.full(8, 7)), tmp_path / "cache")
    assert [file.suffix for file in (tmp_path / "cache" / "datasets").iterdir()] == [".lock"]


def test_crash_while_writing_leaves_no_folder_and_the_next_call_cleans_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, cache = write_npz(tmp_path / "a.npz"), tmp_path / "cache"
    folder = stored_folder(small_data(), source, tmp_path / "elsewhere")
    left_over = cache / "datasets" / f".{folder.name}.0123.part"
    left_over.mkdir(parents=True)
    (left_over / "images.npy").write_bytes(b"half")

    def disk_full(path: Path, array: np.ndarray) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(store, "_write_array", disk_full)
        with pytest.raises(StorageError, match="No space left"):
            materialise(small_data(), source, cache)
    assert not left_over.exists() and not list((cache / "datasets").glob("*/"))
    assert len(materialise(small_data(), source, cache)) == 8


def test_two_processes_at_once_make_it_once(tmp_path: Path) -> None:
    source = write_npz(tmp_path / "a.npz")
    code = (
        "import sys; from pathlib import Path; from common.data.store import materialise; from tests.common.data.tables import small_data\n"
        "print(materialise(small_data(), Path(sys.argv[1]), Path(sys.argv[2])).digest)"
    )
    root = Path(__file__).resolve().parents[3]
    command = [sys.executable, "-c", code, str(source), str(tmp_path / "cache")]
    environment = os.environ | {"PYTHONPATH": str(root)}
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) for _ in range(3)]
    digests = {process.communicate()[0] for process in running}
    assert [process.returncode for process in running] == [0, 0, 0] and len(digests) == 1
    assert len(list((tmp_path / "cache" / "datasets").glob("*/"))) == 1


DAMAGES = ["truncated", "longer", "pixel", "header", "label", "absent", "reshaped", "manifest", "names", "ids", "outside"]


def do_damage(folder: Path, damage: str) -> None:
    images, manifest = folder / "images.npy", folder / "dataset.json"
    content = images.read_bytes()
    match damage:
        case "longer":
            images.write_bytes(content + b"0")
        case "pixel":
            images.write_bytes(content[:-5] + bytes([content[-5] ^ 1]) + content[-4:])
        case "header":
            images.write_bytes(content.replace(b"'fortran_order': False", b"'fortran_order': True ", 1))
        case "label":
            np.save(folder / "labels.npy", 1 - np.load(folder / "labels.npy"))
        case "names":
            manifest.write_text(manifest.read_text().replace('"normal"', '"opacity2"'))
        case "truncated":
            images.write_bytes(images.read_bytes()[:-1])
        case "absent":
            (folder / "labels.npy").unlink()
        case "reshaped":
            np.save(folder / "labels.npy", np.zeros(7, np.int64))
        case "manifest":
            manifest.write_text(manifest.read_text()[:-9])
        case "ids":
            (folder / "patient_ids.json").write_text('["a"]')
        case "outside":
            manifest.write_text(manifest.read_text().replace("labels.npy", "../labels.npy"))


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_folder_is_refused_and_made_again_where_the_source_is(
    tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    source, cache = write_npz(tmp_path / "a.npz"), tmp_path / "cache"
    folder = stored_folder(small_data(), source, cache)
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    do_damage(folder, damage)
    with pytest.raises(StorageError, match=r"damaged.*delete this folder"):
        open_dataset(folder)
    with caplog.at_level(logging.WARNING):
        assert len(materialise(small_data(), source, cache)) == 8
    assert "making it again" in caplog.text
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before


def test_of_large_images_only_size_and_header_are_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = stored_folder(small_data(), write_npz(tmp_path / "a.npz"), tmp_path / "cache")
    monkeypatch.setattr(store, "MAX_HASHED_BYTES", 1000)
    do_damage(folder, "pixel")
    assert len(open_dataset(folder)) == 8
    for damage in ("header", "label"):
        do_damage(folder, damage)
        with pytest.raises(StorageError, match="damaged"):
            open_dataset(folder)
    do_damage(folder, "truncated")
    with pytest.raises(StorageError, match="bytes"):
        open_dataset(folder)


def test_enlarging_is_said(tmp_path: Path) -> None:
    source = write_npz(tmp_path / "a.npz")
    dataset = materialise(small_data(image_size=32), source, tmp_path / "cache")
    assert dataset.images.shape == (8, 1, 32, 32) and "16 pixels are enlarged to data.image_size 32" in dataset.remarks[0]
    assert materialise(small_data(image_size=32), source, tmp_path / "cache").remarks == dataset.remarks, "also when it is only opened"
    assert materialise(small_data(), source, tmp_path / "cache").remarks == ()
    with pytest.raises(DataError, match="image_size: 16"):
        materialise(small_data(image_size=33), source, tmp_path / "cache")
