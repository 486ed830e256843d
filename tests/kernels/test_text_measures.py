"""Gopher's measures against plain Python, and against the filters that use them."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from btlm_data.cleaning.rules.gopher import GopherQuality, GopherRepetition
from btlm_data.kernels import text_measures
from tests.reference import text_measures as reference

PARTS = st.sampled_from(
    ["the", "The,", "(of)", "HAVE", "with\u0130", "a", "bb", "#", "...", "…", "....", "•", "- x", "\n", "\n\n", "\r\n", " ", "\t",
     "\u2028", "\x85", "\x1f", "\u3000", "日本", "42", "1st", "K", "é", "\U0001d518", "word", "same line\n", "same line again\n\n", "·", "\x00"]
)  # fmt: skip
TEXTS = (
    st.lists(PARTS, max_size=40).map(" ".join)
    | st.lists(PARTS, max_size=40).map("".join)
    | st.text(max_size=80)
)


@pytest.fixture(autouse=True, scope="module")
def compiled() -> None:
    text_measures.quality(["a"])
    text_measures.repetition(["a"])


@given(st.lists(TEXTS, max_size=5))
@example(["", "a", "\n", "a b a b a b a b a b a b a b a b a b a b a b a b"])
@example(["the\x00", "\x00the", "of\x00\x00"])
@example(["x\n\n\nx\n\nx\n\n\n\nx", "x\n\n", "\n\nx"])
def test_measures_are_those_of_plain_python(texts: list[str]) -> None:
    for measured, plain in (
        (text_measures.quality(texts), reference.quality),
        (text_measures.repetition(texts), reference.repetition),
    ):
        assert len(measured) == len(texts)
        for row, text in zip(measured.tolist(), texts, strict=True):
            assert row == pytest.approx(plain(text), abs=1e-12), text


@given(TEXTS)
@example("a - x")
def test_thresholds_on_measures_decide_as_the_filters(text: str) -> None:
    quality = dict(zip(text_measures.QUALITY, text_measures.quality([text])[0].tolist(), strict=True))
    kept = (
        2 <= quality["words"] <= 100_000
        and 3 <= quality["mean_word_length"] <= 10
        and max(quality["hash_ratio"], quality["ellipsis_ratio"]) <= 0.1
        and quality["bullet_lines"] <= 0.9
        and quality["ellipsis_lines"] <= 0.3
        and quality["alphabetic_words"] >= 0.8
        and quality["stop_words"] >= 2
    )
    fault, _ = GopherQuality(min_words=2).rule(None)(text, "")
    assert kept == (fault is None)
    measured = dict(zip(text_measures.REPETITION, text_measures.repetition([text])[0].tolist(), strict=True))
    limits = {
        "duplicate_lines": 0.3,
        "duplicate_paragraphs": 0.3,
        "duplicate_line_chars": 0.2,
        "duplicate_paragraph_chars": 0.2,
    }
    limits |= {"top_2_gram": 0.2, "top_3_gram": 0.18, "top_4_gram": 0.16}
    limits |= {f"duplicate_{n}_grams": 0.20 - n / 100 for n in range(5, 11)}
    kept = all(measured[name] <= limit + 1e-12 for name, limit in limits.items())
    fault, _ = GopherRepetition().rule(None)(text, "")
    assert kept == (fault is None), (fault, measured)


def test_long_texts_and_many() -> None:
    long = "the quick brown fox jumps over it. " * 3000
    texts = [long, "", long.replace(" ", "\n"), "x" * 100_000]
    assert text_measures.repetition(texts)[0][4:7].min() > 0.2
    assert text_measures.quality(texts)[3].tolist()[:2] == [1.0, 100_000.0]
    assert text_measures.quality([]).shape == (0, 8)
    assert text_measures.repetition([]).shape == (0, 13)
