"""Sketches against their plain twins and against datasketch, bit for bit."""

from __future__ import annotations

import re
import string
import sys
from collections.abc import Sequence
from typing import Literal

import datasketch
import numpy as np
import numpy.typing as npt
import pytest
import xxhash
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

import btlm_data
from btlm_data.dedupe import curve
from btlm_data.kernels import ascii_blocks, minhash, normalisation
from btlm_data.kernels.minhash import Scheme, ngram_hash32
from btlm_data.kernels.normalisation import Normalised
from tests.reference import minhash as reference
from tests.reference.shingles import features

# Characters whose lower case, width or class is unlike the rest: growing and shrinking, final sigma, every
# kind of white space.
ODD = "ȺȾİıΣσςẞßKÅÀ𐐀𞤀Ǆǅ\x00\x1c\x1f\x85\xa0\u1680\u2003\u2028\u202f\u3000\ufeff\u200b 's-_`~.\t\n\r\x0b\x0c漢字한é\u0301😀"
texts = st.lists(
    st.text(st.one_of(st.sampled_from(ODD), st.characters(exclude_categories=["Cs"])), max_size=60),
    max_size=8,
)


def buffers(documents: Sequence[str]) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
    encoded = [text.encode() for text in documents]
    lengths = np.array([len(e) for e in encoded], np.int64)
    return np.frombuffer(b"".join(encoded), np.uint8), np.concatenate(
        (np.zeros(1, np.int64), np.cumsum(lengths))
    )


def normalised(documents: Sequence[str]) -> Normalised:
    return normalisation.normalise(documents, *buffers(documents))


def split(n: Normalised) -> list[str]:
    return [n.utf8[n.offsets[i] : n.offsets[i + 1]].tobytes().decode() for i in range(len(n))]


# With the processor's instructions for 64 bytes at a time, and byte by byte.
ways = pytest.mark.parametrize(
    "in_blocks",
    [
        pytest.param(
            True,
            marks=pytest.mark.skipif(
                not ascii_blocks.has_instructions(), reason="this processor has no AVX-512 VBMI2"
            ),
        ),
        False,
    ],
)
# Long enough for several blocks, with ASCII and others side by side.
long_texts = st.lists(
    st.builds(
        "".join,
        st.lists(
            st.sampled_from([*string.printable, "\x00", "\x1c", "\x7f", *"éΣİ中𝒳", " - ", "word " * 14])
        ),
    ),
    max_size=5,
)


@ways
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(documents=texts | long_texts)
@example(documents=["ΑΣ", "ΑΣ Β", "Σ", "a", "ΟΔΟΣ. ΟΔΟΣ"])
@example(documents=["", " ", "...", " - a - b - "])
@example(
    documents=["a " * 32 + "- " * 64 + "b" + "." * 130 + " c", " " * 64, "." * 64 + " " + "." * 64 + " x"]
)
@example(documents=["A" * 63 + " ", " " * 63 + "é" + " " * 64 + "\t\x85 \x1f", "." * 63 + "\n", "Z"])
def test_normalise_is_pythons(in_blocks: bool, documents: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ascii_blocks, "has_instructions", lambda: in_blocks)
    n = normalised(documents)
    expected = [reference.normalise(text) for text in documents]
    assert split(n) == expected
    assert n.num_chars.tolist() == [len(text) for text in expected]
    assert split(normalisation.normalise(None, *buffers(documents))) == expected


@ways
def test_normalise_every_code_point(in_blocks: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each alone, and each between letters; this Python's Unicode tables are the truth."""
    monkeypatch.setattr(ascii_blocks, "has_instructions", lambda: in_blocks)
    points = [chr(c) for c in range(sys.maxunicode + 1) if not 0xD800 <= c < 0xE000]
    for documents in (
        ["".join(points[i : i + 4096]) for i in range(0, len(points), 4096)],
        [f"aA{c}Bb" for c in points[:0x20000]],
    ):
        assert split(normalised(documents)) == [reference.normalise(text) for text in documents]
    assert not re.search(r"\s", "".join(points[normalisation._CASE_LIMIT - 0x800 :]))


@ways
def test_normalise_of_a_long_document_beside_short_ones(
    in_blocks: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ascii_blocks, "has_instructions", lambda: in_blocks)
    documents = ["a", "The  QUICK, brown\tfox. " * 50_000 + "漢字 " * 50_000, "", "Ⱥ" * 100_000]
    assert split(normalised(documents)) == [reference.normalise(text) for text in documents]


@settings(deadline=None)  # the first example may compile
@given(st.binary(max_size=70))
@example(b"")
def test_ngram_hash32_is_what_its_docstring_says(data: bytes) -> None:
    words = [data[i : i + 8] for i in range(0, len(data), 8) if i + 8 < len(data)] + [data[-8:]]
    h = len(data) * 0x9E3779B97F4A7C15 % 2**64
    for word in words:
        h = (h ^ sum(byte << 8 * k for k, byte in enumerate(word))) * 0x9E3779B97F4A7C15 % 2**64
        h ^= h >> 32
    assert ngram_hash32(data) == h % 2**32
    assert btlm_data.ngram_hash32 is ngram_hash32


def test_ngram_hash32_never_changes() -> None:
    """Indexes of earlier releases depend on it."""
    known = {
        b"": 0,
        b"a": 0x9F363D7D,
        b"hello world": 0xD68E40FF,
        b"thirteen char": 0xE7787111,
        "漢字かな交じり文の十三文字".encode(): 0xE2FE42DA,
    }
    assert {data: ngram_hash32(data) for data in known} == known


def test_ngram_hash32_spreads() -> None:
    """Over 200,000 n-grams of counting text, as many collisions as a random function has (4.7 expected); as
    mixed, each bit half the time.
    """
    hashes = [ngram_hash32(b"line %08d" % i) for i in range(200_000)]
    assert len(hashes) - len(set(hashes)) <= 16
    mixed = np.array([reference.fmix32(h) for h in hashes], np.uint32)
    ones = np.unpackbits(mixed.view(np.uint8)).reshape(-1, 32).mean(axis=0)
    assert np.all(np.abs(ones - 0.5) < 0.01)


SCHEMES: tuple[Scheme, ...] = ("affine32", "legacy")


@settings(deadline=None, max_examples=40)
@given(
    documents=texts,
    scheme=st.sampled_from(SCHEMES),
    num_perm=st.sampled_from([1, 8, 128]),
    seed=st.integers(0, 3),
)
def test_signatures_are_the_plain_twins(
    documents: list[str], scheme: Scheme, num_perm: int, seed: int
) -> None:
    found = minhash.signatures(normalised(documents), num_perm, seed, scheme)
    a, b = (array.tolist() for array in minhash.permutations(num_perm, seed, scheme))
    for signature, text in zip(found.tolist(), documents, strict=True):
        grams = reference.features(text)
        if scheme == "affine32":
            assert signature == reference.affine32([ngram_hash32(g) for g in grams], a, b)
        else:
            assert signature == reference.legacy([reference.sha1_hash32(g) for g in grams], a, b)


def random_documents(count: int, seed: int = 0) -> list[str]:
    """Documents of many scripts, lengths and mixtures, ASCII ones too."""
    rng = np.random.default_rng(seed)
    alphabets = [
        np.arange(0x20, 0x7F),
        np.arange(0x20, 0x250),
        np.arange(0x370, 0x530),
        np.arange(0x4E00, 0x9FFF),
        np.setdiff1d(np.arange(1, 0x110000), np.arange(0xD800, 0xE000)),
        np.concatenate([np.arange(0x61, 0x7B)] * 20 + [np.array([0x20, 0x2019, 0xE9, 0x1F600])]),
    ]
    documents = []
    for i in range(count):
        points = rng.choice(alphabets[i % len(alphabets)], int(rng.integers(0, 120)))
        documents.append(points.astype("<u4").tobytes().decode("utf-32-le"))
    return documents


@pytest.mark.parametrize("scheme", SCHEMES)
def test_signatures_are_datasketchs_on_two_thousand_documents(scheme: Scheme) -> None:
    documents = random_documents(2000)
    found = minhash.signatures(normalised(documents), scheme=scheme)
    hashing = {"hashfunc": ngram_hash32} if scheme == "affine32" else {}
    expected = datasketch.MinHash.bulk(
        [reference.features(text) for text in documents], num_perm=128, scheme=scheme, **hashing
    )
    for signature, theirs in zip(found, expected, strict=True):
        np.testing.assert_array_equal(signature, theirs.hashvalues)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_signatures_convert_to_lean_minhash_and_back(scheme: Scheme) -> None:
    documents = [
        "A document of some words, to be signed twice.",
        "A document of some words, to be signed thrice.",
    ]
    found = minhash.signatures(normalised(documents), scheme=scheme)
    lean = [minhash.to_lean_minhash(signature, scheme=scheme) for signature in found]
    assert lean[0].jaccard(lean[1]) == minhash.similarity(found[0], found[1])
    hashing = {"hashfunc": ngram_hash32} if scheme == "affine32" else {}
    for signature, one, text in zip(found, lean, documents, strict=True):
        theirs = datasketch.MinHash(128, scheme=scheme, **hashing)
        theirs.update_batch(reference.features(text))
        assert one == datasketch.LeanMinHash(theirs)
        np.testing.assert_array_equal(minhash.from_lean_minhash(one), signature)
    with pytest.raises(ValueError, match="does not fit in 32 bits"):
        minhash.from_lean_minhash(datasketch.LeanMinHash(datasketch.MinHash(8, scheme="affine64")))


def test_band_keys_are_equal_where_the_rows_are() -> None:
    rng = np.random.default_rng(0)
    signatures = rng.integers(0, 2, (300, 12), dtype=np.uint32)
    keys = minhash.band_keys(signatures, 3, 4)
    for band in range(3):
        rows = signatures[:, 4 * band : 4 * band + 4]
        same_rows = (rows[:, None] == rows[None]).all(axis=2)
        assert np.array_equal(keys[:, None, band] == keys[None, :, band], same_rows)
    same = minhash.band_keys(np.zeros((1, 12), np.uint32), 3, 4)[0]
    assert len(set(same.tolist())) == 3, "equal rows of different bands are different keys"
    with pytest.raises(ValueError, match="need 15 permutations, the signatures have 12"):
        minhash.band_keys(signatures, 3, 5)


def test_band_keys_fill_the_range() -> None:
    """Keys are partitioned by their highest bits: 64 partitions of 36,000 keys are even."""
    signatures = np.random.default_rng(0).integers(0, 2**32, (4000, 117), dtype=np.uint32)
    counts = np.bincount(
        (minhash.band_keys(signatures, 9, 13) >> np.uint64(58)).ravel().astype(np.int64), minlength=64
    )
    assert abs(counts - 36_000 / 64).max() < 6 * (36_000 / 64) ** 0.5


@settings(deadline=None)  # the first example may compile
@given(texts)
def test_exact_hashes_are_xxh3_of_the_normalised_text(documents: list[str]) -> None:
    n = normalised(documents)
    found = minhash.exact_hashes(n.utf8, n.offsets)
    expected = [xxhash.xxh3_128_intdigest(reference.normalise(text).encode()) for text in documents]
    assert [int(high) << 64 | int(low) for high, low in found] == expected


@pytest.mark.parametrize(
    ("similarity", "expected"),
    [(0.6, 0.012), (0.7, 0.084), (0.8, 0.399), (0.85, 0.686), (0.9, 0.929), (0.95, 0.998)],
)
def test_pairs_are_caught_as_often_as_the_curve_says(similarity: float, expected: float) -> None:
    """8,000 pairs of documents of a known Jaccard similarity, of 100 features each pair.

    In running text neighbouring features overlap, so exact similarities are built from the features
    themselves: 13-grams of digits, each signed by the kernel as a document of its own; a document's signature
    is the minimum over its features'.
    """
    pairs, features = 8000, 100
    shared = round(similarity * features)
    lonely = (features - shared) // 2  # of one document; the rest is the other's, and J = shared / features
    rng = np.random.default_rng(round(similarity * 100))
    caught, estimates = 0, []
    for _ in range(8):
        count = pairs // 8 * features
        grams = Normalised(
            rng.integers(0x30, 0x3A, 13 * count, np.uint8), np.arange(count + 1) * 13, np.full(count, 13)
        )
        each = minhash.signatures(grams).reshape(pairs // 8, features, 128)
        in_both = each[:, :shared].min(axis=1)
        one = np.minimum(in_both, each[:, shared : shared + lonely].min(axis=1))
        other = np.minimum(in_both, each[:, shared + lonely :].min(axis=1))
        caught += int((minhash.band_keys(one, 9, 13) == minhash.band_keys(other, 9, 13)).any(axis=1).sum())
        estimates.append(minhash.similarity(one, other).mean())
    assert abs(reference.catch_probability(similarity, 9, 13) - expected) < 0.0006
    assert abs(float(curve.probability(similarity, 9, 13)) - expected) < 0.0006
    assert abs(caught / pairs - expected) < 0.02
    assert abs(float(np.mean(estimates)) - similarity) < 0.005


@pytest.mark.parametrize("threshold", [0.5, 0.7, 0.8, 0.9])
def test_proposed_banding_is_datasketchs(threshold: float) -> None:
    lsh = datasketch.MinHashLSH(threshold=threshold, num_perm=128)
    assert curve.propose(threshold)[:2] == (lsh.b, lsh.r)


def test_curve_tables_show_the_figures() -> None:
    assert "0.80   0.399" in curve.table(9, 13)
    assert "--bands 9 --rows 13  (num_perm used 117; 0.399 found at 0.8)" in curve.proposals(0.8)


@pytest.mark.parametrize(("unit", "size"), [("chars", 24), ("chars", 1), ("words", 5), ("words", 1)])
def test_signatures_of_other_features_are_datasketchs(unit: Literal["chars", "words"], size: int) -> None:
    texts = [
        "",
        "a b",
        "one two three four five",
        "one, two; three four five six SEVEN " * 3,
        "x" * 60,
        "Καλημέρα κόσμε και άλλα πολλά πράγματα",
        "早上好世界 " * 9,
    ]
    utf8, offsets = _laid_down(texts)
    n = normalisation.normalise(texts, utf8, offsets)
    found = minhash.signatures(n, 32, shingle=minhash.Shingle.of(unit, size))
    for text, signature in zip(texts, found, strict=True):
        sketch = datasketch.MinHash(num_perm=32, scheme="affine32", hashfunc=minhash.ngram_hash32)
        for feature in features(text, unit, size):
            sketch.update(feature.encode())
        assert (sketch.hashvalues == signature).all(), text
    with pytest.raises(ValueError, match="legacy"):
        minhash.signatures(n, 32, scheme="legacy", shingle=minhash.Shingle.of(unit, size))


def _laid_down(texts: list[str]) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
    encoded = [text.encode() for text in texts]
    return np.frombuffer(b"".join(encoded), np.uint8), np.cumsum([0, *map(len, encoded)], dtype=np.int64)
