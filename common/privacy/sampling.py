# SPDX-License-Identifier: Apache-2.0
"""Which patients are in a step, and which of their images.

Patients are drawn independently of each other (Poisson sampling), the assumption on which the accountant's amplification rests: not
shuffled, not in batches of a fixed size. A drawn patient shows K images. All randomness comes from the operating system's generator;
what is drawn here never leaves the site.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from common.data.cohort import IntArray
from common.errors import InputError
from common.privacy.generator import SystemGenerator, WordArray

HALF_WORD = np.uint64(32)
LOW_HALF = np.uint64(2**32 - 1)


def poisson_sample(patient_count: int, sampling_rate: float, generator: SystemGenerator) -> IntArray:
    """Draw each of the patients 0…patient_count-1 independently; int64, ascending, possibly empty.

    The probability is floor(q * 2^64) / 2^64, so never above the public rate q. Raises InputError for a rate outside (0, 1].
    """
    if not 0 < sampling_rate <= 1:
        raise InputError(f"sampling_rate: {sampling_rate} is not a probability; choose a number above 0 and at most 1")
    if sampling_rate == 1:
        return np.arange(patient_count, dtype=np.int64)
    threshold = np.uint64(int(math.ldexp(sampling_rate, 64)))
    return np.flatnonzero(generator.words(patient_count) < threshold).astype(np.int64)


def draw_views(images_of_patient: Sequence[IntArray], views: int, generator: SystemGenerator) -> IntArray:
    """For each patient `views` of their images, int64 [patients, views].

    Different images in random order first; a patient with fewer begins again with a new random order. Each draw among n images is
    uniform up to a bias of n * 2^-64. Raises InputError when a patient has no image.
    """
    counts = np.fromiter((len(images) for images in images_of_patient), dtype=np.int64, count=len(images_of_patient))
    if not counts.all():
        raise InputError(f"patient number {int(np.argmin(counts))} has no image to draw from; leave such patients out of the cohort")
    drawn = np.empty((len(counts), views), dtype=np.int64)
    if len(counts) == 0:
        return drawn
    pool = np.concatenate(images_of_patient).astype(np.int64)
    first = np.cumsum(counts) - counts
    words = generator.words(len(counts) * views).reshape(views, len(counts))
    for view in range(views):  # one step of a Fisher-Yates shuffle for all patients at once
        taken = view % counts
        here = first + taken
        there = here + _below(counts - taken, words[view])
        drawn[:, view] = pool[there]
        pool[there] = pool[here]
        pool[here] = drawn[:, view]
    return drawn


def _below(bounds: IntArray, words: WordArray) -> IntArray:
    """floor(word * bound / 2^64): the high half of a 64-bit product. Bounds are below 2^32."""
    bound = bounds.astype(np.uint64)
    carried = (words & LOW_HALF) * bound >> HALF_WORD
    return ((words >> HALF_WORD) * bound + carried >> HALF_WORD).astype(np.int64)
