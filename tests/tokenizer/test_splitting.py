"""Long texts, cut into pieces, have the ids of the whole."""

from __future__ import annotations

import resource
import time

import pytest
import tokenizers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from btlm_data.tokenizer import Tokenizer, splitting
from tests.tokenizer.makers import (
    WORDS,
    as_lists,
    expected,
)

# Runs of one class (long words to the splitter), and what stands between them.
LONG_TEXTS = st.lists(
    st.one_of(
        st.sampled_from([*WORDS, " a", "b ", "x y z ", "foo bar ", "，", "。字", "字，", "a'", "'"]),
        st.builds(
            lambda unit, n: unit * n,
            st.sampled_from(["a", "ab", "1", " ", "\n", "!", "'", "\u200b", "中", "é", "the", "<|", "😀"]),
            st.integers(1, 60),
        ),
    ),
    min_size=1,
    max_size=12,
).map("".join)


@pytest.fixture(params=[5, 16, 50])
def small_pieces(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """Make every text of more than a few characters a long one."""
    monkeypatch.setattr(splitting, "MAX_PIECE_CHARS", request.param)
    monkeypatch.setattr(splitting, "_OVERLAP_BYTES", max(1, request.param // 4))
    return int(request.param)


@settings(
    max_examples=200,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
@given(st.lists(LONG_TEXTS, min_size=3, max_size=3))
def test_pieces_do_not_change_the_result(
    gpt2: Tokenizer, truth: tokenizers.Tokenizer, small_pieces: int, texts: list[str]
) -> None:
    assert as_lists(gpt2.encode_batch(texts)) == expected(truth, texts)
    for text in texts:
        pieces = [piece for piece, _ in gpt2._splitter.pieces(text, lambda: gpt2._reference)]
        assert "".join(pieces) == text
        assert all(
            len(piece) <= small_pieces or is_word
            for piece, is_word in gpt2._splitter.pieces(text, lambda: gpt2._reference)
        )


@pytest.mark.stress
@settings(
    max_examples=10_000,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
@given(st.lists(LONG_TEXTS, min_size=3, max_size=3))
def test_pieces_do_not_change_the_result_often(
    gpt2: Tokenizer, truth: tokenizers.Tokenizer, small_pieces: int, texts: list[str]
) -> None:
    assert as_lists(gpt2.encode_batch(texts)) == expected(truth, texts)


@settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
@given(st.lists(LONG_TEXTS, min_size=3, max_size=3))
def test_pieces_do_not_change_other_tokenizers(
    other: tuple[Tokenizer, tokenizers.Tokenizer], small_pieces: int, texts: list[str]
) -> None:
    ours, theirs = other
    assert as_lists(ours.encode_batch(texts)) == expected(theirs, texts)


def test_known_patterns_are_cut_and_unknown_ones_are_not(
    other: tuple[Tokenizer, tokenizers.Tokenizer], small_pieces: int
) -> None:
    ours, theirs = other
    pieces = list(ours._splitter.pieces("some words of text " * 20, lambda: ours._reference))
    assert (len(pieces) > 1) == ("WordLevel" not in theirs.to_str())


@pytest.mark.parametrize("run", ["a", "1", " ", "\n", "!", "\u200b", "中", "e\u0301", "ACGT", "😀"])
def test_long_runs_equal_the_truth(gpt2: Tokenizer, truth: tokenizers.Tokenizer, run: str) -> None:
    text = f"Start {run * (600_000 // len(run))} end"
    assert as_lists(gpt2.encode_batch([text, "after"])) == expected(truth, [text, "after"])


@pytest.mark.stress
def test_a_300_mb_document_takes_seconds_and_bounded_memory(gpt2: Tokenizer) -> None:
    for unit in ["The quick brown fox doesn't jump over 12 dogs.\n", "a", "中文字，"]:
        text = unit * (300_000_000 // len(unit.encode()))
        before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter()
        ids, _ = gpt2.encode_batch([text])
        seconds, grown = (
            time.perf_counter() - start,
            resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before,
        )
        assert seconds < 60
        # The ids themselves, twice (pieces and the whole), and a piece's work.
        assert grown * 1024 < 2 * ids.nbytes + 300_000_000
