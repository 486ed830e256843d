"""Text out of tokens, against joining bytes and normalising; and what a damaged file of tokens is answered with."""

from __future__ import annotations

from functools import cache
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from btlm_data.errors import DataError
from btlm_data.kernels import token_text
from btlm_data.kernels.token_text import Table, TokenBytes
from btlm_data.tokenizer import Tokenizer, load_tokenizer
from tests import strategies
from tests.reference.minhash import normalise

Int64Array = npt.NDArray[np.int64]


def table_of(pieces: list[bytes]) -> TokenBytes:
    offsets = np.cumsum([0, *map(len, pieces)], dtype=np.int64)
    return TokenBytes(np.frombuffer(b"".join(pieces), np.uint8), offsets)


def decoded(documents: list[list[int]], table: Table, most: list[int]) -> list[bytes]:
    tokens = np.array([token for document in documents for token in document], np.uint16)
    lengths = np.array([len(document) for document in documents], np.int64)
    starts = np.cumsum(lengths) - lengths
    utf8, offsets = token_text.decode(tokens, starts, lengths, table, np.array(most, np.int64))
    return [utf8[a:b].tobytes() for a, b in pairwise(offsets)]


@settings(deadline=None)
@given(st.data())
def test_documents_are_their_tokens_bytes(data: st.DataObject) -> None:
    pieces = data.draw(st.lists(st.binary(max_size=40), min_size=1, max_size=20))
    documents = data.draw(st.lists(st.lists(st.integers(0, len(pieces) - 1), max_size=30), max_size=8))
    joined = [b"".join(pieces[token] for token in document) for document in documents]
    most = [len(text) + data.draw(st.integers(-1, 20)) for text in joined]
    most = [max(0, limit) for limit in most]
    expected = [text if len(text) <= limit else b"" for text, limit in zip(joined, most, strict=True)]
    assert decoded(documents, Table.of(table_of(pieces)), most) == expected


whole_characters = st.text(st.sampled_from("aB.,- \t\n\x00\x1c-Zé—\u2003Ω日"), max_size=20).map(str.encode)


@settings(deadline=None)
@given(st.data())
def test_tokens_of_whole_characters_are_normalised_one_by_one(data: st.DataObject) -> None:
    pieces = data.draw(st.lists(whole_characters, min_size=1, max_size=20))
    documents = data.draw(st.lists(st.lists(st.integers(0, len(pieces) - 1), max_size=30), max_size=8))
    table = Table.of(token_text.normalised(table_of(pieces)), collapses=True)
    expected = [normalise(b"".join(pieces[token] for token in d).decode()).encode() for d in documents]
    most = [sum(len(pieces[token]) for token in document) for document in documents]
    assert decoded(documents, table, [2 * limit for limit in most]) == expected


@cache
def gpt2() -> tuple[Tokenizer, Table, Table]:
    """GPT-2's tokenizer, its tokens' bytes, and those normalised token by token."""
    tokenizer = load_tokenizer("gpt2")
    assert tokenizer.token_bytes is not None
    tokens = TokenBytes(*tokenizer.token_bytes)
    return tokenizer, Table.of(tokens), Table.of(token_text.normalised(tokens), collapses=True)


@settings(deadline=None)
@given(
    st.lists(
        st.one_of(strategies.texts, st.text("ab\x85A. \u201c\u3000é\u0130\u03a3", max_size=30)), max_size=8
    )
)
def test_gpt2_tokens_give_their_text_back(texts: list[str]) -> None:
    """Normalised token by token, a text is right or another one, and right wherever there is nothing but ASCII."""
    tokenizer, table, normalised = gpt2()
    ids, bounds = tokenizer.encode_batch(texts)
    documents = [ids[a:b].tolist() for a, b in pairwise(bounds)]
    most = [2 * len(text.encode()) for text in texts]
    assert [text.decode() for text in decoded(documents, table, most)] == texts
    for text, found in zip(texts, decoded(documents, normalised, most), strict=True):
        if text.isascii():
            assert found.decode() == normalise(text)


def test_tokens_that_there_are_not_are_refused() -> None:
    tokens = TokenBytes(np.frombuffer(b"ab", np.uint8), np.array([0, 1, 2]))
    table = Table.of(tokens)
    ids, start, length, most = np.array([0, 1, 2], np.uint16), np.array([0]), np.array([3]), np.array([9])
    with pytest.raises(DataError, match="id of a token is 2, outside the range from 0 to 1"):
        token_text.decode(ids, start, length, table, most)
    with pytest.raises(DataError, match="tokens of document"):
        token_text.decode(ids, start, np.array([4]), table, most)
    with pytest.raises(DataError, match="most bytes of document"):
        token_text.decode(ids[:2], start, np.array([2]), table, np.array([-1]))
    with pytest.raises(DataError, match="not as many each"):
        token_text.decode(ids[:2], start, np.array([2]), table, np.array([9, 9]))
    with pytest.raises(DataError, match="offsets of tokens"):
        Table.of(tokens._replace(offsets=np.array([0, 1, 3])))
