# SPDX-License-Identifier: Apache-2.0
"""The one source of randomness for noise and patient sampling.

A keyed stream (AES-256 in counter mode) whose key and counter come from the operating system and are kept nowhere else. There is no
seed, no state to save and nothing to restore: a stream that repeats would let whoever sees two releases subtract the noise. For the
same reason a generator belongs to the process that made it; a copy, a pickle or a fork would hand out the same words twice.
"""

from __future__ import annotations

import os
import threading
from typing import NoReturn

import numpy as np
import numpy.typing as npt
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from common.errors import WardroundError

WordArray = npt.NDArray[np.uint64]


class SystemGenerator:
    """Independent uniform 64-bit words; every instance is a fresh stream. Safe to use from several threads."""

    def __init__(self) -> None:
        self._stream = Cipher(algorithms.AES(os.urandom(32)), modes.CTR(os.urandom(16))).encryptor()
        self._process = os.getpid()
        self._lock = threading.Lock()

    def words(self, count: int) -> WordArray:
        """`count` uniform words, uint64 [count], never handed out before.

        Raises WardroundError in any process but the one that made the generator.
        """
        if os.getpid() != self._process:
            raise WardroundError("this random generator was made in another process and would repeat its stream; make a new one here")
        content = bytearray(8 * count)
        with self._lock:
            self._stream.update_into(bytes(8 * count), content)
        return np.frombuffer(content, dtype=np.uint64)

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise TypeError("a SystemGenerator cannot be pickled or copied: the copy would repeat its stream; make a new one instead")
