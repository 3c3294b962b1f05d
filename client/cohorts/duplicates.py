# SPDX-License-Identifier: Apache-2.0
"""Images that are there twice: the very same pixels, or so alike that one is probably a copy of the other.

Near duplicates differ in at most `MOST_BITS` of the 64 bits of `fingerprints.appearance`. Not every image is held against every other: the
bits are cut into six bands, and at most four bits that differ leave at least two bands the same, so only images that share one of the 15
pairs of bands are compared. Images of one body part look alike, so a pair counts only when its thumbnails correlate as well
(`LEAST_CORRELATION`): among 3,000 chest X-rays of different patients 114 pairs passed the bits and none passed both, while a copy that was
scaled, compressed or brightened passed both in 98 % of cases or more. Not found: crops, mirrored, turned and shifted copies.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from client.cohorts.fingerprints import FloatArray, HashArray, normalised
from common.data.cohort import IntArray

MOST_BITS: Final = 4
LEAST_CORRELATION: Final = 0.98
MOST_PAIRS: Final = 100_000
"""More near duplicates than that are not listed."""
LONGEST_RUN: Final = 1_000
"""So many neighbours of an image in one bucket are looked at."""
_BANDS: Final = (11, 11, 11, 11, 10, 10)
BoolArray = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Near:
    """Pairs of near duplicates, int64 [M, 2], each once. `cut`: there were too many to look at all."""

    pairs: IntArray
    cut: bool


def same_pixels(digests: npt.NDArray[np.uint8]) -> IntArray:
    """The number of the group of equal images that each image belongs to, int64 [N], from SHA-256 uint8 [N, 32]."""
    if not len(digests):
        return np.zeros(0, np.int64)
    whole = np.ascontiguousarray(digests).view("V32")[:, 0]
    groups: IntArray = np.unique(whole, return_inverse=True)[1].astype(np.int64)
    return groups


def torn_groups(groups: IntArray, of_image: npt.NDArray[Any]) -> BoolArray:
    """Whether each image's group has images with more than one value of `of_image` (patient, split, label), bool [N]."""
    if not len(groups):
        return np.zeros(0, np.bool_)
    values = np.unique(of_image, return_inverse=True)[1]
    pairs = np.unique(np.stack([groups, values]), axis=1)
    torn: BoolArray = (np.bincount(pairs[0], minlength=int(groups.max()) + 1) > 1)[groups]
    return torn


def example_pairs(groups: IntArray, of_image: npt.NDArray[Any], most: int) -> list[tuple[int, int]]:
    """Two images with different values of `of_image` from each torn group, of `most` groups at most."""
    torn = np.flatnonzero(torn_groups(groups, of_image))
    found: list[tuple[int, int]] = []
    for group in np.unique(groups[torn])[:most]:
        members = torn[groups[torn] == group]
        other = members[of_image[members] != of_image[members[0]]][0]
        found.append((int(members[0]), int(other)))
    return found


def near_duplicates(appearances: HashArray, thumbnails: npt.NDArray[np.uint8], patients: IntArray, usable: BoolArray) -> Near:
    """Near duplicates among the `usable` images [N] that belong to different patients."""
    rows = np.flatnonzero(usable)
    hashes, owners, vectors = appearances[rows], patients[rows], normalised(thumbnails[rows])
    found, count, masks = [np.zeros((0, 2), np.int64)], 0, _masks()
    for number, mask in enumerate(masks):
        for pairs in _neighbours(hashes & mask):
            few_bits = pairs[_few_bits(hashes, pairs, masks[:number])]
            found.append(few_bits[_alike(vectors, owners, few_bits)])
            count += len(found[-1])
            if count > MOST_PAIRS:
                return Near(_in_order(rows, found)[:MOST_PAIRS], True)
    cut = any(_longest_run(hashes & mask) > LONGEST_RUN for mask in masks)
    return Near(_in_order(rows, found), cut)


def _in_order(rows: IntArray, found: list[IntArray]) -> IntArray:
    """All pairs as rows, the smaller first, sorted."""
    pairs = np.sort(rows[np.concatenate(found)], axis=1)
    ordered: IntArray = pairs[np.lexsort((pairs[:, 1], pairs[:, 0]))]
    return ordered


def _masks() -> list[np.uint64]:
    """For each pair of bands the bits of both."""
    bands, start = [], 0
    for width in _BANDS:
        bands.append(((1 << width) - 1) << start)
        start += width
    return [np.uint64(first | second) for first, second in combinations(bands, 2)]


def _neighbours(keys: HashArray) -> Iterator[IntArray]:
    """All pairs [n, 2] of places with equal keys, in portions: each with its next in the order of keys, then with its next but one, …"""
    order = np.argsort(keys, kind="stable").astype(np.int64)
    in_order = keys[order]
    first = np.arange(len(keys), dtype=np.int64)
    for step in range(1, LONGEST_RUN + 1):
        first = first[first + step < len(keys)]
        first = first[in_order[first] == in_order[first + step]]
        if not len(first):
            return
        yield np.stack([order[first], order[first + step]], axis=1)


def _longest_run(keys: HashArray) -> int:
    return int(np.unique(keys, return_counts=True)[1].max()) if len(keys) else 0


def _few_bits(hashes: HashArray, pairs: IntArray, earlier: list[np.uint64]) -> BoolArray:
    """Which pairs differ in few bits, and did not come up with an earlier pair of bands."""
    differing = hashes[pairs[:, 0]] ^ hashes[pairs[:, 1]]
    chosen: BoolArray = np.bitwise_count(differing) <= MOST_BITS
    for mask in earlier:
        chosen &= (differing & mask) != 0
    return chosen


def _alike(vectors: FloatArray, owners: IntArray, pairs: IntArray) -> BoolArray:
    """Which pairs belong to different patients and have thumbnails that correlate."""
    chosen: BoolArray = owners[pairs[:, 0]] != owners[pairs[:, 1]]
    own = pairs[chosen]
    chosen[chosen] = np.einsum("ij,ij->i", vectors[own[:, 0]], vectors[own[:, 1]]) >= LEAST_CORRELATION
    return chosen
