# SPDX-License-Identifier: Apache-2.0
"""Sixteen bytes as twelve English words, to be read out by phone (the word list and the four check bits are those of BIP-39)."""

from __future__ import annotations

import hmac
import re
from difflib import get_close_matches
from functools import cache

from mnemonic import Mnemonic

from common.errors import InputError

WORDS = 12
DIGEST_BYTES = 16


def to_words(digest: bytes) -> str:
    """The twelve words of `digest` (16 bytes), separated by one space."""
    if len(digest) != DIGEST_BYTES:
        raise ValueError(f"a digest of {DIGEST_BYTES} bytes has {WORDS} words, this one has {len(digest)} bytes")
    return _english().to_mnemonic(digest)


def same_words(given: str, digest: bytes) -> bool:
    """Whether `given` are the words of `digest`. Case, numbering, commas and spaces do not matter; the time taken tells nothing.

    Raises InputError for a word that is not in the list, or when there are not twelve.
    """
    words = re.findall(r"[^\W\d_]+", given.lower())
    problems = [_unknown(word) for word in words if word not in _known()]
    if len(words) != WORDS:
        problems.append(f"the code has {WORDS} words, not {len(words)}; read it again from the other end's screen")
    if problems:
        raise InputError(problems)
    return hmac.compare_digest(" ".join(words).encode(), to_words(digest).encode())


def _unknown(word: str) -> str:
    close = get_close_matches(word, _english().wordlist, 1, 0.6)
    return f"`{word[:40]}` is no word of the code" + (f"; is it `{close[0]}`?" if close else "")


@cache
def _english() -> Mnemonic:
    return Mnemonic("english")


@cache
def _known() -> frozenset[str]:
    return frozenset(_english().wordlist)
