# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import base64
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from common import study
from common.data.cohort import Dataset
from common.data.splits import PUBLIC_KEY, split_patients
from common.data.store import materialise
from simulations.describe import describe, example_rows, thumbnail, write_page


@pytest.fixture(scope="module")
def phantom(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return materialise(study.Data(phantom=study.Phantom(patients=60, scanners=3)), None, tmp_path_factory.mktemp("cache"))


def tiny(name: str = "opacity", synthetic: bool = False) -> Dataset:
    """Five images of three patients (3, 1, 1); patient 0 has both classes."""
    images = np.random.default_rng(0).integers(0, 256, (5, 1, 4, 4), dtype=np.uint8)
    columns = {"age": np.array([50.0, 50.0, 50.0, 61.0, np.nan]), "<b>ward": np.array(list("aabbb"))}
    owner, labels, split = np.array([0, 0, 0, 1, 2]), np.array([0, 1, 1, 0, 0]), np.array([0, 0, 0, 0, 2], dtype=np.uint8)
    return Dataset(images, labels, owner, ("secret-x", "secret-y", "secret-z"), ("normal", name), columns, split, None, synthetic, "d" * 64)


def test_facts_by_hand() -> None:
    facts = describe(tiny())
    json.dumps(facts, allow_nan=False)
    assert (facts["patients"], facts["images"], facts["image_size"], facts["channels"]) == (3, 5, [4, 4], 1)
    assert facts["images_per_patient"] == {"1": 2, "2": 0, "3": 1}
    assert facts["classes"] == {"normal": {"patients": 3, "images": 3}, "opacity": {"patients": 1, "images": 2}}
    assert facts["splits"]["test"] == {
        "patients": 1,
        "images": 1,
        "classes": {"normal": {"patients": 1, "images": 1}, "opacity": {"patients": 0, "images": 0}},
    }
    assert facts["columns"]["<b>ward"] == {"kind": "category", "counts": {"a": 2, "b": 3}}


def test_facts_of_the_phantom(phantom: Dataset) -> None:
    split = split_patients(phantom, PUBLIC_KEY, study.Data())
    facts = describe(phantom, split)
    assert facts["synthetic"] and facts["splits"]["train"]["patients"] + facts["splits"]["test"]["patients"] == 60
    assert sum(facts["images_per_patient"].values()) == 60
    age = phantom.columns["age"]
    assert facts["columns"]["age"] == {"kind": "number", "lowest": age.min(), "median": np.median(age), "highest": age.max(), "missing": 0}
    assert describe(phantom)["splits"] is None


class References(HTMLParser):
    """Everything a browser would fetch, and the number of images."""

    def __init__(self) -> None:
        super().__init__()
        self.outside: list[str] = []
        self.pictures: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name in ("src", "href", "srcset", "action") and value:
                (self.pictures if value.startswith("data:image/png;base64,") else self.outside).append(value)
        if tag in ("script", "link", "iframe"):
            self.outside.append(tag)


def test_page_is_self_contained_and_says_synthetic(phantom: Dataset, tmp_path: Path) -> None:
    write_page(phantom, tmp_path / "page.html", title="Phantom")
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    found = References()
    found.feed(text)
    assert found.outside == [] and len(found.pictures) == 24 and "url(" not in text
    with Image.open(io.BytesIO(base64.b64decode(found.pictures[0].partition(",")[2]))) as picture:
        assert picture.size == (128, 128)
    assert "Synthetic images" in text and 'name="viewport"' in text and text.count("<svg") == 3
    assert not re.search("phantom-0", text)  # no patient ids


def test_page_escapes_names_and_shows_no_patient_id(tmp_path: Path) -> None:
    write_page(tiny(name="<script>alert(1)</script>"), tmp_path / "page.html", title="<i>")
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "<script" not in text and "<b>ward" not in text and "<i>" not in text and "&lt;i&gt;" in text
    assert "secret" not in text and "Synthetic" not in text and "(synthetic)" not in text


def test_thumbnails_keep_pixels_and_reduce_large_images() -> None:
    image = np.array([[[0, 255], [255, 0]]], dtype=np.uint8)
    with Image.open(io.BytesIO(base64.b64decode(thumbnail(image, 8)))) as picture:
        assert np.array_equal(np.asarray(picture), np.kron(image[0], np.ones((4, 4), np.uint8)))
    with Image.open(io.BytesIO(base64.b64decode(thumbnail(np.zeros((3, 300, 300), np.uint8))))) as picture:
        assert picture.size == (128, 128) and picture.mode == "RGB"


def test_examples_are_of_the_class_and_of_different_patients(phantom: Dataset) -> None:
    rows = example_rows(phantom, 1)
    assert set(phantom.labels[rows]) == {1} and len(set(phantom.patients[rows])) == len(rows) == 12
    assert example_rows(tiny(), 1).tolist() == [1] and len(example_rows(phantom, 5)) == 0
