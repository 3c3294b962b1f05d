# SPDX-License-Identifier: Apache-2.0
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.crypto.words import same_words, to_words
from common.errors import InputError

DIGEST = bytes.fromhex("7f" * 16)


@pytest.mark.parametrize(
    ("digest", "words"),
    [
        ("00" * 16, "abandon abandon abandon abandon abandon abandon abandon abandon abandon abandon abandon about"),
        ("7f" * 16, "legal winner thank year wave sausage worth useful legal winner thank yellow"),
        ("ff" * 16, "zoo zoo zoo zoo zoo zoo zoo zoo zoo zoo zoo wrong"),
        ("9e885d952ad362caeb4efe34a8e91bd2", "ozone drill grab fiber curtain grace pudding thank cruise elder eight picnic"),
    ],
)
def test_the_words_are_those_of_bip_39(digest: str, words: str) -> None:
    assert to_words(bytes.fromhex(digest)) == words


@given(st.binary(min_size=16, max_size=16), st.binary(min_size=16, max_size=16))
def test_words_belong_to_one_digest(one: bytes, other: bytes) -> None:
    assert same_words(to_words(one), one)
    assert same_words(to_words(one), other) == (one == other)


@pytest.mark.parametrize(
    "how", [str.upper, lambda text: "  " + text.replace(" ", ",\n  "), lambda text: "1. " + text.replace(" ", "  2. ")]
)
def test_how_they_are_written_does_not_matter(how: Callable[[str], str]) -> None:
    assert same_words(how(to_words(DIGEST)), DIGEST)


def test_two_words_swapped_are_other_words() -> None:
    assert not same_words("winner legal thank year wave sausage worth useful legal winner thank yellow", DIGEST)


def test_a_typing_error_is_named_with_the_word_that_was_meant() -> None:
    with pytest.raises(InputError, match="`winnner` is no word of the code; is it `winner`"):
        same_words(to_words(DIGEST).replace("winner", "winnner", 1), DIGEST)


@pytest.mark.parametrize(("given", "count"), [("", 0), ("legal winner", 2), (to_words(DIGEST) + " zoo", 13)])
def test_too_few_or_too_many_words(given: str, count: int) -> None:
    with pytest.raises(InputError, match=f"12 words, not {count}"):
        same_words(given, DIGEST)


def test_a_digest_of_another_length_has_no_words() -> None:
    with pytest.raises(ValueError, match="16 bytes"):
        to_words(b"short")
