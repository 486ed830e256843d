"""Text out of tokens, against joining bytes; and what a damaged file of tokens is answered with."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from btlm_data.errors import DataError
from btlm_data.kernels import token_text
from btlm_data.tokenizer import load_tokenizer


@settings(deadline=None)
@given(st.data())
def test_documents_are_their_tokens_bytes(data: st.DataObject) -> None:
    pieces = data.draw(st.lists(st.binary(max_size=40), min_size=1, max_size=20))
    documents = data.draw(st.lists(st.lists(st.integers(0, len(pieces) - 1), max_size=30), max_size=8))
    table = token_text.TokenBytes(
        np.frombuffer(b"".join(pieces), np.uint8), np.cumsum([0, *map(len, pieces)], dtype=np.int64)
    )
    tokens = np.array([token for document in documents for token in document], np.uint16)
    lengths = np.array([len(document) for document in documents], np.int64)
    utf8, offsets = token_text.decode(tokens, np.cumsum(lengths) - lengths, lengths, table)
    found = [utf8[a:b].tobytes() for a, b in pairwise(offsets)]
    assert found == [b"".join(pieces[token] for token in document) for document in documents]


def test_gpt2_tokens_give_their_text_back() -> None:
    tokenizer = load_tokenizer("gpt2")
    texts = ["Plain text, twice.", "早上好 😀 \ufeff\u2028 <|endoftext|> naïve", "", "x" * 500]
    ids, bounds = tokenizer.encode_batch(texts)
    table = tokenizer.token_bytes
    assert table is not None
    utf8, offsets = token_text.decode(ids, bounds[:-1], np.diff(bounds), token_text.TokenBytes(*table))
    assert [utf8[a:b].tobytes().decode() for a, b in pairwise(offsets)] == texts


def test_tokens_that_there_are_not_are_refused() -> None:
    table = token_text.TokenBytes(np.frombuffer(b"ab", np.uint8), np.array([0, 1, 2]))
    tokens, start, length = np.array([0, 1, 2], np.uint16), np.array([0]), np.array([3])
    with pytest.raises(DataError, match="largest id of token 0 is 2"):
        token_text.decode(tokens, start, length, table)
    with pytest.raises(DataError, match="tokens of document"):
        token_text.decode(tokens, start, np.array([4]), table)
    with pytest.raises(DataError, match="offsets of tokens"):
        token_text.decode(tokens[:2], start, np.array([2]), table._replace(offsets=np.array([0, 1, 3])))
