# SPDX-License-Identifier: Apache-2.0
"""Fingerprints and the search for near duplicates, against hand-made arrays, brute force, and real chest X-rays."""

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from client.cohorts import duplicates
from client.cohorts.duplicates import example_pairs, near_duplicates, same_pixels, torn_groups
from client.cohorts.fingerprints import FINGERPRINT, averaged, fingerprints, normalised
from tests.client.cohorts.checked import scans

XRAYS = Path(__file__).resolve().parents[3].parent / "shared" / "data" / "kermany_cxr" / "kermany_cxr_64.npz"
ALIKE = np.tile(np.arange(256, dtype=np.uint8).reshape(1, 16, 16), (400, 1, 1))  # thumbnails that all correlate fully


@pytest.fixture(scope="module")
def xrays() -> np.ndarray:
    with np.load(XRAYS) as stored:
        images: np.ndarray = stored["images"][:1500]
    return images


def pairs_of(images: np.ndarray) -> set[tuple[int, int]]:
    prints = fingerprints(images)
    found = near_duplicates(prints["appearance"], prints["thumbnail"], np.arange(len(images)), np.ones(len(images), np.bool_))
    assert not found.cut
    return {(int(a), int(b)) for a, b in found.pairs}


def test_means_over_the_cells_of_a_grid() -> None:
    image = np.array([[[0, 2, 10, 20, 5], [4, 6, 30, 40, 5], [1, 1, 9, 9, 9]]], dtype=np.uint8)  # [1, 3, 5]
    assert averaged(image, 2) == pytest.approx(np.array([[[1.0, 35 / 3], [3.0, 17.0]]]))
    colour = np.stack([image, image, image + 3], axis=3)
    assert averaged(colour, 2) == pytest.approx(averaged(image, 2) + 1, abs=1e-5)
    assert averaged(np.array([[[7]]], dtype=np.uint8), 2).tolist() == [[[7, 7], [7, 7]]], "a smaller image repeats its pixels"


def test_a_fingerprint_has_the_digest_and_the_range_of_its_image() -> None:
    images = scans(3)
    images[1] = 9
    prints = fingerprints(images)
    assert prints.dtype == FINGERPRINT
    assert (prints["low"][1], prints["high"][1]) == (9, 9)
    assert (prints["low"] < prints["high"]).tolist() == [True, False, True]
    assert len({row.tobytes() for row in prints["sha256"]}) == 3
    assert len(fingerprints(images[:0])) == 0
    wide = fingerprints(images.astype(np.uint16) * 257)
    assert np.array_equal(wide["appearance"][[0, 2]], prints["appearance"][[0, 2]]), "16 bits look the same"
    assert not np.array_equal(wide["sha256"], prints["sha256"])


def test_thumbnails_correlate_with_themselves_and_not_with_their_negative() -> None:
    thumbnails = fingerprints(np.stack([scans(1)[0], 255 - scans(1)[0], np.full((64, 64), 3, np.uint8)]))["thumbnail"]
    vectors = normalised(thumbnails)
    assert vectors @ vectors[0] == pytest.approx([1, -1, 0], abs=0.01)


def test_equal_images_are_a_group_and_a_group_may_be_torn() -> None:
    images = scans(3)[[0, 1, 0, 2, 1, 0]]
    groups = same_pixels(fingerprints(images)["sha256"])
    assert [np.flatnonzero(groups == group).tolist() for group in dict.fromkeys(groups.tolist())] == [[0, 2, 5], [1, 4], [3]]
    patients = np.array([7, 8, 7, 9, 9, 7])
    assert torn_groups(groups, patients).tolist() == [False, True, False, False, True, False]
    assert example_pairs(groups, patients, 5) == [(1, 4)]
    assert same_pixels(np.zeros((0, 32), np.uint8)).tolist() == torn_groups(np.zeros(0, np.int64), patients[:0]).tolist() == []


@pytest.mark.parametrize("seed", range(5))
def test_the_banded_search_finds_what_brute_force_finds(seed: int) -> None:
    """Clusters of hashes that differ in 0 to 7 bits, so pairs lie on both sides of the limit."""
    random = np.random.default_rng(seed)
    hashes = np.repeat(random.integers(0, 2**63, 40, dtype=np.uint64), 10)
    for _ in range(4):
        hashes ^= np.where(random.random(400) < 0.6, np.uint64(1) << random.integers(0, 64, 400, dtype=np.uint64), np.uint64(0))
    patients = random.integers(0, 120, 400)
    usable = random.random(400) < 0.95
    distance = np.bitwise_count(hashes[:, None] ^ hashes[None])
    wanted = (distance <= 4) & (patients[:, None] != patients[None]) & usable[:, None] & usable[None]
    expected = {(int(a), int(b)) for a, b in np.argwhere(np.triu(wanted))}
    found = near_duplicates(hashes, ALIKE, patients, usable)
    assert len(expected) > 100
    assert {(int(a), int(b)) for a, b in found.pairs} == expected
    assert not found.cut


def test_too_many_alike_are_cut_and_said(monkeypatch: pytest.MonkeyPatch) -> None:
    same, patients, usable = np.zeros(400, np.uint64), np.arange(400), np.ones(400, np.bool_)
    assert len(near_duplicates(same, ALIKE, patients, usable).pairs) == 400 * 399 // 2
    monkeypatch.setattr(duplicates, "MOST_PAIRS", 1000)
    found = near_duplicates(same, ALIKE, patients, usable)
    assert (len(found.pairs), found.cut) == (1000, True)
    monkeypatch.setattr(duplicates, "LONGEST_RUN", 3)
    assert near_duplicates(same[:9], ALIKE[:9], patients[:9], usable[:9]).cut


def test_different_x_rays_are_no_duplicates(xrays: np.ndarray) -> None:
    assert pairs_of(xrays) == set()


def _jpeg(image: np.ndarray) -> np.ndarray:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=50)
    return np.asarray(Image.open(buffer))


@pytest.mark.parametrize(
    "change",
    [
        _jpeg,
        lambda image: np.asarray(Image.fromarray(image).resize((40, 40), Image.Resampling.BOX).resize((64, 64), Image.Resampling.BICUBIC)),
        lambda image: (0.85 * image + 20).astype(np.uint8),
        lambda image: (255 * (image / 255) ** 0.9).astype(np.uint8),
    ],
    ids=["compressed", "scaled", "brightened", "gamma"],
)
def test_a_changed_copy_is_found(change: Callable[[np.ndarray], np.ndarray], xrays: np.ndarray) -> None:
    copies = np.stack([change(image) for image in xrays[:100]])
    found = pairs_of(np.concatenate([xrays[:500], copies]))
    assert found <= {(number, 500 + number) for number in range(100)}, "nothing else"
    assert len(found) >= 97
