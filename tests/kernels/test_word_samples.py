"""The sample of word n-grams: as its plain twin, and never without one of 13 words in common."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from btlm_data.errors import DataError
from btlm_data.kernels.word_samples import GRAMS, SERVED_WORDS, WORDS, word_samples
from tests.reference import word_samples as plain

WORD = st.sampled_from([b"a", b"b", b"the", b"\xc3\xa4", b"c3"])
TEXT = st.lists(WORD, max_size=40)


def of(texts: list[bytes]) -> list[list[int]]:
    offsets = np.cumsum([0, *map(len, texts)], dtype=np.int64)
    hashes, numbers = word_samples(np.frombuffer(b"".join(texts), np.uint8), offsets[:-1], offsets[1:])
    return [hashes[numbers == k].tolist() for k in range(len(texts))]


@settings(deadline=None)
@given(st.lists(TEXT, max_size=4))
def test_the_sample_is_that_of_the_twin(texts: list[list[bytes]]) -> None:
    joined = [b" ".join(words) for words in texts]
    assert of(joined) == [plain.word_samples(text, WORDS, GRAMS) for text in joined]


@settings(deadline=None)
@given(TEXT, TEXT, TEXT, TEXT, st.lists(WORD, min_size=SERVED_WORDS, max_size=20))
def test_thirteen_words_in_common_have_all_of_their_sample_in_common(
    a: list[bytes], b: list[bytes], c: list[bytes], d: list[bytes], shared: list[bytes]
) -> None:
    own, one, other = of([b" ".join(shared), b" ".join(a + shared + b), b" ".join(c + shared + d)])
    assert own
    assert set(own) <= set(one) & set(other)


def test_fewer_words_have_none() -> None:
    assert of([b" ".join([b"x"] * (SERVED_WORDS - 1)), b""]) == [[], []]
    with pytest.raises(DataError, match="Text: stop 0 is 9"):
        word_samples(np.zeros(3, np.uint8), np.array([0]), np.array([9]))
