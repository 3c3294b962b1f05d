# SPDX-License-Identifier: Apache-2.0
import copy
import os
import pickle

import numpy as np
import pytest

from common.errors import WardroundError
from common.privacy.generator import SystemGenerator


def test_two_generators_give_different_streams() -> None:
    first, second = SystemGenerator().words(1000), SystemGenerator().words(1000)
    assert len(np.intersect1d(first, second)) == 0


def test_a_generator_never_repeats_itself() -> None:
    generator = SystemGenerator()
    words = np.concatenate([generator.words(count) for count in (0, 1, 7, 5000)])
    assert words.dtype == np.uint64
    assert len(np.unique(words)) == 5008


def test_every_bit_is_fair() -> None:
    words = SystemGenerator().words(1 << 16)
    bits = np.unpackbits(words.view(np.uint8)).reshape(-1, 64).mean(axis=0)
    assert np.abs(bits - 0.5).max() < 6 * 0.5 / np.sqrt(1 << 16)


@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy, pickle.dumps])
def test_it_cannot_be_copied(duplicate) -> None:
    with pytest.raises(TypeError, match="make a new one"):
        duplicate(SystemGenerator())


def test_it_takes_no_seed() -> None:
    with pytest.raises(TypeError):
        SystemGenerator(1)  # type: ignore[call-arg]


def test_a_forked_process_is_refused(monkeypatch) -> None:
    generator = SystemGenerator()
    monkeypatch.setattr(os, "getpid", lambda: -1)
    with pytest.raises(WardroundError, match="another process"):
        generator.words(1)


def test_a_real_fork_is_refused() -> None:
    generator = SystemGenerator()
    child = os.fork()
    if child == 0:
        try:
            generator.words(1)
        except WardroundError:
            os._exit(17)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 17
