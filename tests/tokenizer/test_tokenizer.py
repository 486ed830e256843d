"""Encoding and decoding against Hugging Face `tokenizers`, used directly."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import tokenizers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from btlm_data.tokenizer import Tokenizer, splitting
from btlm_data.tokenizer import tokenizer as module
from tests.tokenizer.makers import (
    CORPUS,
    TEXTS,
    as_lists,
    expected,
)

# Changes only with the vocabulary, the merges or the rules themselves.
GPT2_FINGERPRINT = "7bb6c2d311d1a2f4599b90686e2f095394fe5e6c4509924c54a0a5c19c7a96d2"


def test_gpt2_is_known(gpt2: Tokenizer) -> None:
    assert (gpt2.name, gpt2.eos_id, gpt2.vocab_size, gpt2.backend) == ("gpt2", 50256, 50257, "fastokens")
    assert gpt2.fingerprint == GPT2_FINGERPRINT
    ids, offsets = gpt2.encode_batch(["Hello world", "", "Hello"])
    assert ids.tolist() == [15496, 995, 15496]
    assert offsets.tolist() == [0, 2, 2, 3]
    assert ids.dtype == gpt2.dtype == np.uint16
    assert offsets.dtype == np.int64


def test_no_texts_give_no_ids(gpt2: Tokenizer) -> None:
    ids, offsets = gpt2.encode_batch([])
    assert ids.tolist() == []
    assert ids.dtype == np.uint16
    assert offsets.tolist() == [0]


def test_special_tokens_in_text_are_text(gpt2: Tokenizer, truth: tokenizers.Tokenizer) -> None:
    texts = ["<|endoftext|>", "a<|endoftext|>b", "<|endoftext|><|endoftext|>", " <|endoftext|>\n"]
    got = as_lists(gpt2.encode_batch(texts))
    assert got == expected(truth, texts)
    assert all(gpt2.eos_id not in ids for ids in got)
    assert [gpt2.decode(ids) for ids in got] == texts


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(TEXTS, min_size=10, max_size=10))
def test_equals_the_truth(gpt2: Tokenizer, truth: tokenizers.Tokenizer, texts: list[str]) -> None:
    assert as_lists(gpt2.encode_batch(texts)) == expected(truth, texts)


@pytest.mark.stress
@settings(max_examples=5000, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(TEXTS, min_size=10, max_size=10))
def test_equals_the_truth_on_50_000_strings(
    gpt2: Tokenizer, truth: tokenizers.Tokenizer, texts: list[str]
) -> None:
    assert as_lists(gpt2.encode_batch(texts)) == expected(truth, texts)


def in_context(points: Sequence[int], context: Callable[[str], str]) -> list[str]:
    """Texts of 64 code points each, surrogates left out."""
    return [
        "".join(context(chr(p)) for p in points[i : i + 64] if not 0xD800 <= p < 0xE000)
        for i in range(0, len(points), 64)
    ]


def test_every_code_point_of_the_first_two_planes_before_a_contraction(
    gpt2: Tokenizer, truth: tokenizers.Tokenizer
) -> None:
    texts = in_context(range(0x20000), lambda c: f"{c}'s")
    assert as_lists(gpt2.encode_batch(texts)) == expected(truth, texts)


@pytest.mark.stress
@pytest.mark.parametrize("context", ["{}'s", "a{}b", "1{}1", " {} ", "'{}", "\n{}\n", "!{}?"])
def test_every_code_point_in_context(gpt2: Tokenizer, truth: tokenizers.Tokenizer, context: str) -> None:
    texts = in_context(range(0x110000), context.format)
    assert as_lists(gpt2.encode_batch(texts)) == expected(truth, texts)


def test_the_text_of_every_token_is_what_the_reference_decodes(gpt2: Tokenizer) -> None:
    ids = range(gpt2.vocab_size)
    assert [gpt2.token_text(number) for number in ids] == [gpt2.decode([number]) for number in ids]
    with pytest.raises(ValueError, match="has no token 50257"):
        gpt2.token_text(50257)


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_ids_are_decoded_as_by_the_reference(gpt2: Tokenizer, data: st.DataObject) -> None:
    """Also where they break characters apart: the first 256 ids are single bytes."""
    one = st.integers(0, 255) | st.integers(0, gpt2.vocab_size - 1)
    ids = data.draw(st.lists(one, max_size=20))
    assert gpt2._decoded_bytes is not None
    assert gpt2.decode(ids) == gpt2._reference.decode(ids)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.data())
def test_ids_of_other_tokenizers_too(
    other: tuple[Tokenizer, tokenizers.Tokenizer], data: st.DataObject
) -> None:
    tokenizer, _ = other
    ids = data.draw(st.lists(st.integers(0, tokenizer.vocab_size - 1), max_size=20))
    assert tokenizer.decode(ids) == tokenizer._reference.decode(ids)


def test_decode_gives_the_text_back(gpt2: Tokenizer) -> None:
    text = "naïve 中文 😀 <|endoftext|>\n\n  x = 1"
    ids, _ = gpt2.encode_batch([text])
    assert gpt2.decode(ids) == text
    assert gpt2.token_text(50256) == "<|endoftext|>"
    assert gpt2.token_text(262) == " the"
    with pytest.raises(ValueError, match="no token 50257"):
        gpt2.token_text(50257)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(TEXTS, min_size=5, max_size=5))
def test_other_tokenizers_equal_the_truth(
    other: tuple[Tokenizer, tokenizers.Tokenizer], texts: list[str]
) -> None:
    ours, theirs = other
    texts = [*texts, *CORPUS, "<|endoftext|></s>"]
    assert as_lists(ours.encode_batch(texts)) == expected(theirs, texts)


def test_calls_are_bounded_and_cover_all_texts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(splitting, "MAX_PIECE_CHARS", 10)
    monkeypatch.setattr(module, "MAX_CALL_CHARS", 25)
    monkeypatch.setattr(module, "MAX_CALL_TEXTS", 4)
    texts = ["x" * n for n in (11, 3, 10, 10, 10, 0, 0, 0, 0, 0, 12, 30, 1)]
    calls = list(module._calls(texts))
    assert [i for first, last in calls for i in range(first, last)] == list(range(len(texts)))
    for first, last in calls:
        assert last - first <= 4
        assert sum(map(len, texts[first:last])) <= 25 or last - first == 1
        assert last - first == 1 or max(map(len, texts[first:last])) <= 10


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/self/status")
def test_memory_stays_flat_over_many_different_words(gpt2: Tokenizer) -> None:
    generator = np.random.default_rng(0)

    def resident_kb() -> int:
        return next(
            int(line.split()[1])
            for line in Path("/proc/self/status").read_text().splitlines()
            if line.startswith("VmRSS")
        )

    def some_mb() -> None:
        letters = generator.integers(97, 123, 4_000_000, np.uint8)
        letters[generator.integers(0, len(letters), len(letters) // 7)] = 32
        gpt2.encode_batch([letters.tobytes().decode()])

    for _ in range(5):
        some_mb()
    before = resident_kb()
    for _ in range(15):
        some_mb()
    assert resident_kb() - before < 40_000
