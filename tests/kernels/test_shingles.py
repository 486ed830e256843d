"""Counts of shared features against sets of strings in plain Python."""

from __future__ import annotations

import random
from typing import Literal

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from btlm_data.errors import DataError
from btlm_data.kernels import feature_tables, minhash, normalisation, shingles
from btlm_data.kernels.minhash import Shingle
from tests.reference.shingles import features


def normalised(texts: list[str]) -> normalisation.Normalised:
    encoded = [text.encode() for text in texts]
    offsets = np.cumsum([0, *map(len, encoded)], dtype=np.int64)
    return normalisation.normalise(texts, np.frombuffer(b"".join(encoded), np.uint8), offsets)


def compared(
    texts: list[str], pairs: list[tuple[int, int]], shingle: Shingle = minhash.SLIMPAJAMA
) -> list[tuple[int, int, int]]:
    """(shared, of the first, of the other) of each pair, by the kernel."""
    n = normalised(texts)
    found = []
    for a, b in pairs:
        counts = shingles.count([n.utf8[n.offsets[i] : n.offsets[i + 1]] for i in (a, b)], shingle)
        found.append((counts.shared, counts.first, counts.second))
    return found


def decided(
    texts: list[str],
    candidates: list[list[int]],
    rules: list[shingles.Rule],
    shingle: Shingle = minhash.SLIMPAJAMA,
) -> shingles.Decisions:
    """By the kernel."""
    n = normalised(texts)
    bounds = np.cumsum([0, *map(len, candidates)], dtype=np.int64)
    flat = np.array([c for some in candidates for c in some], np.int64)
    offsets = shingles.offsets_of(np.diff(n.offsets), shingle)
    utf8 = np.empty(offsets[-1], np.uint8)
    for i in range(len(texts)):
        text = n.utf8[n.offsets[i] : n.offsets[i + 1]]
        utf8[offsets[i] : offsets[i] + len(text)] = text
    shingles.end_words(utf8, offsets, shingle)
    return shingles.decide(utf8, offsets, flat, bounds, rules, shingle)


def expected_decisions(
    texts: list[str],
    candidates: list[list[int]],
    kind: int,
    threshold: float,
    unit: str = "chars",
    size: int = 13,
) -> tuple[list[int], list[int]]:
    """The same with sets of strings."""
    sets = [features(text, unit, size) for text in texts]
    anchors, shared = [-1] * len(texts), [0] * len(texts)
    for i, some in enumerate(candidates):
        for candidate in some:
            other = anchors[candidate] if anchors[candidate] >= 0 else candidate
            both = len(sets[i] & sets[other])
            total = len(sets[i]) if kind == shingles.CONTAINMENT else len(sets[i] | sets[other])
            if both / total >= threshold:
                anchors[i], shared[i] = other, both
                break
    return anchors, shared


def expected(
    texts: list[str], pairs: list[tuple[int, int]], unit: str = "chars", size: int = 13
) -> list[tuple[int, int, int]]:
    sets = [features(text, unit, size) for text in texts]
    return [(len(sets[a] & sets[b]), len(sets[a]), len(sets[b])) for a, b in pairs]


UNITS: list[tuple[Literal["chars", "words"], int]] = [
    ("chars", 13),
    ("chars", 24),
    ("chars", 3),
    ("words", 5),
    ("words", 1),
]
PIECES = [
    "the quick brown fox ",
    "jumped over the lazy dog. ",
    "Καλημέρα ΚΟΣΜΕ Σ ",
    "早上好世界",
    "😀😁",
    "İß",
    "\u2003\t",
    ".",
]


@settings(deadline=None)
@given(
    st.lists(
        st.one_of(st.text(max_size=60), st.lists(st.sampled_from(PIECES), max_size=40).map("".join)),
        min_size=1,
        max_size=6,
    )
)
def test_counts_are_those_of_sets_of_strings(texts: list[str]) -> None:
    pairs = [(a, b) for b in range(len(texts)) for a in range(len(texts))]
    for unit, size in UNITS:
        assert compared(texts, pairs, Shingle.of(unit, size)) == expected(texts, pairs, unit, size)


@settings(deadline=None)
@given(st.text("ab ", max_size=120), st.text("ab ", max_size=120))
def test_counts_of_texts_that_repeat_themselves(one: str, other: str) -> None:
    texts = [one, other, one + other, other * 3 + one]
    pairs = [(a, b) for b in range(4) for a in range(4)]
    for unit, size in UNITS:
        assert compared(texts, pairs, Shingle.of(unit, size)) == expected(texts, pairs, unit, size)


def edited(text: str, rng: random.Random, share: float) -> str:
    """`text` with a share of its characters replaced by any others."""
    return "".join(
        chr(rng.choice((rng.randrange(32, 127), rng.randrange(160, 0x2FFF)))) if rng.random() < share else c
        for c in text
    )


def test_five_thousand_pairs_of_random_unicode() -> None:
    rng = random.Random(1)
    texts: list[str] = []
    for _ in range(500):
        letters = rng.choice(("abcdefgh ", "abcdefghéüñ ,.", "абвгд ежз", "的一是在不了有和", "a😀ß "))
        text = "".join(rng.choice(letters) for _ in range(rng.randrange(0, 400)))
        texts += [text, edited(text, rng, rng.choice((0, 0.003, 0.01, 0.05)))]
    pairs = sorted(
        ((rng.randrange(1000), rng.randrange(1000)) for _ in range(4500)), key=lambda pair: pair[1]
    ) + [(2 * k, 2 * k + 1) for k in range(500)]
    found = compared(texts, pairs)
    assert found == expected(texts, pairs)
    assert sum(shared > 0 for shared, _, _ in found) > 480


def test_a_document_larger_than_a_table_is_counted_in_passes() -> None:
    rng = random.Random(2)
    long = "".join(rng.choice("abcdefghij ") for _ in range(feature_tables.TABLE_BYTES + 50_000))
    texts = [long, long[:500_000] + "and another end", "short"]
    pairs = [(1, 0), (2, 0), (0, 1)]
    assert compared(texts, pairs) == expected(texts, pairs)


@given(st.integers(0, 2**32 - 1), st.integers(1, 512))
@example(2**32 - 1, 511)
def test_a_feature_belongs_to_one_pass_and_passes_have_equal_shares(h: int, passes: int) -> None:
    parts = [part for part in range(passes) if feature_tables._is_in(np.uint32(h), part, passes)]
    assert parts == [h * passes // 2**32]


@settings(deadline=None)
@given(st.data())
def test_decisions_are_those_of_sets_of_strings(data: st.DataObject) -> None:
    base = data.draw(st.lists(st.sampled_from(PIECES[:5]), min_size=5, max_size=30).map("".join))
    rng = random.Random(data.draw(st.integers(0, 1000)))
    count = data.draw(st.integers(1, 8))
    texts = [edited(base, rng, rng.choice((0, 0.005, 0.02, 0.2))) for _ in range(count)]
    candidates = [
        rng.sample(range(i), rng.randrange(i + 1)) + rng.sample(range(i), rng.randrange(i + 1))
        for i in range(count)
    ]
    kinds = st.sampled_from([shingles.JACCARD, shingles.CONTAINMENT])
    thresholds = st.sampled_from([0.01, 0.3, 0.5, 0.8, 0.9, 1.0])
    rules = data.draw(st.lists(st.builds(shingles.Rule, kinds, thresholds), min_size=1, max_size=4))
    unit, size = data.draw(st.sampled_from(UNITS))
    found = decided(texts, candidates, rules, Shingle.of(unit, size))
    sets = [features(text, unit, size) for text in texts]
    for number, (kind, threshold) in enumerate(rules):
        anchors, shared = expected_decisions(texts, candidates, kind, threshold, unit, size)
        goes = np.array(anchors) >= 0
        assert found.anchor[number].tolist() == anchors
        assert found.shared[number][goes].tolist() == np.array(shared)[goes].tolist()
        assert found.similar[number] == goes.sum()
        assert found.closest[number][goes].tolist() == found.anchor[number][goes].tolist()
        for i, closest in enumerate(found.closest[number].tolist()):
            if closest >= 0:
                assert found.shared[number][i] == len(sets[i] & sets[closest])
                assert (found.sizes[i], found.sizes[closest]) == (len(sets[i]), len(sets[closest]))
                assert closest not in np.flatnonzero(goes), "only what stays is compared with"


def test_a_chain_does_not_join_what_is_unlike() -> None:
    """B is like A, C is like B and not like A: C stays, whether or not it was nominated with A."""
    words = [f"word{i:04d} " for i in range(400)]
    a, b, c = ("".join(words[k : k + 300]) for k in (0, 30, 60))
    for candidates in ([[], [0], [1]], [[], [0], [1, 0]]):
        found = decided([a, b, c], candidates, [shingles.Rule(shingles.JACCARD, 0.75)])
        assert found.anchor.tolist() == [[-1, 0, -1]]
        assert (found.compared.tolist(), found.similar.tolist()) == ([2], [1]), "C with A in place of B, once"


def test_texts_and_candidates_that_there_are_not_are_refused() -> None:
    utf8, offsets = np.frombuffer(b"some text", np.uint8), np.array([0, 4, 9])
    none = np.zeros(0, np.int64)
    good = (np.array([0]), np.array([0, 0, 1]))
    rules = [shingles.Rule(shingles.JACCARD, 0.5)]
    assert shingles.decide(utf8, offsets, *good, rules).anchor.tolist() == [[-1, -1]]
    for candidates in ([1], [2], [-1]):
        with pytest.raises(DataError, match="candidate"):
            shingles.decide(utf8, offsets, np.array(candidates), good[1], rules)
    with pytest.raises(DataError, match="offsets"):
        shingles.decide(utf8, np.array([0, 4, 10]), *good, rules)
    with pytest.raises(DataError, match="bounds"):
        shingles.decide(utf8, offsets, none, good[1], rules)
