# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from common.data.checks import checked
from common.data.folder import FolderReader
from common.data.store import materialise
from common.errors import DataError
from tests.common.data.tables import small_data, small_images

DATA = small_data(source="folder")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Four grey images of 32 pixels in two classes, with a table of three patients."""
    root = tmp_path / "films"
    for number, name in enumerate(("normal/a.png", "normal/b.png", "opacity/c.png", "opacity/d.png")):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(small_images(4, 32)[number]).save(root / name)
    header, *rows = "file,patient_id,age,weight,sex", "opacity/d.png,7,60,,f", "normal/a.png,007,50,70.5,m"
    rows += ["normal/b.png,x,40,60,m", "opacity/c.png,x,41,61,f"]
    (root / "patients.csv").write_text("\n".join([header, *rows]), encoding="utf-8")
    return root


def test_reads_labels_patients_columns_and_reduces(root: Path) -> None:
    table = FolderReader().read(DATA, root)
    assert table.labels.tolist() == ["normal", "normal", "opacity", "opacity"]
    assert table.patient_ids is not None and table.patient_ids.tolist() == ["007", "x", "x", "7"]
    assert table.columns["age"].tolist() == [50, 40, 41, 60] and table.columns["age"].dtype == np.int64
    assert np.isnan(table.columns["weight"][3]) and table.columns["weight"][0] == 70.5
    assert table.columns["sex"].tolist() == ["m", "m", "f", "f"]
    original = small_images(4, 32).astype(float).reshape(4, 16, 2, 16, 2).mean((2, 4))
    assert np.abs(table.images - original).max() <= 0.5
    assert checked(table, DATA).labels.tolist() == [0, 0, 1, 1]


def test_a_sub_folder_that_is_no_label_is_refused_or_dropped(root: Path) -> None:
    data = DATA.model_copy(update={"labels": ("normal", "effusion"), "one_image_one_patient": True})
    (root / "patients.csv").unlink()
    with pytest.raises(DataError, match=r"2 images \(rows 2, 3\).*opacity.*data.labels"):
        checked(FolderReader().read(data, root), data)
    dropping = data.model_copy(update={"other_labels": "drop"})
    assert len(checked(FolderReader().read(dropping, root), dropping).images) == 2


def test_missing_table_is_explained(root: Path) -> None:
    (root / "patients.csv").unlink()
    with pytest.raises(DataError, match="one_image_one_patient: true"):
        FolderReader().read(DATA, root)


def test_unreadable_mixed_and_deep_files_are_named_together(root: Path) -> None:
    (root / "normal/a.png").write_bytes(b"\x89PNG nonsense")
    Image.fromarray(small_images(1, 20)[0]).save(root / "normal/b.png")
    Image.fromarray(small_images(1, 32)[0].astype(np.uint16) * 100).save(root / "opacity/c.png")
    (root / "patients.csv").write_text("file,patient_id\nnormal/a.png,1\nnormal/a.png,1\nnormal/z.png,2\n", encoding="utf-8")
    with pytest.raises(DataError) as caught:
        FolderReader().read(DATA, root)
    text = str(caught.value)
    for part in ("damaged: normal/a.png", "mixed sizes (20 x 20, 32 x 32", "8 bits for each pixel: opacity/c.png"):
        assert part in text
    for part in ("not there: normal/z.png", "names a file twice", "no row for normal/b.png, opacity/c.png, opacity/d.png"):
        assert part in text


def test_truncated_file_is_found(root: Path) -> None:
    path = root / "opacity/c.png"
    path.write_bytes(path.read_bytes()[:-300])
    with pytest.raises(DataError, match=r"cannot be decoded: opacity/c\.png"):
        FolderReader().read(DATA, root)


def test_colour_files_of_grey_content_become_grey(root: Path) -> None:
    path = root / "opacity/c.png"
    grey = np.asarray(Image.open(path))
    before = materialise(DATA, root, root.parent / "one").images[2].copy()
    Image.fromarray(np.stack([grey] * 3, axis=2)).save(path)
    after = materialise(DATA, root, root.parent / "two").images
    assert after.shape == (4, 1, 16, 16) and np.array_equal(after[2], before)


def test_fingerprint_sees_names_contents_and_table(root: Path) -> None:
    def fingerprint() -> str:
        return FolderReader().fingerprint(DATA, root)

    seen = {fingerprint()}
    (root / "patients.csv").write_text((root / "patients.csv").read_text().replace("60", "61"))
    seen.add(fingerprint())
    (root / "opacity/c.png").rename(root / "opacity/e.png")
    seen.add(fingerprint())
    Image.fromarray(small_images(1, 32)[0]).save(root / "opacity/e.png")
    seen.add(fingerprint())
    assert len(seen) == 4
