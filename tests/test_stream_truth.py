"""The promise behind all others: the shards hold exactly the corpus, token for token, as Hugging Face `tokenizers` sees it.

Nothing of our reading, cleaning, tokenizing or packing is used for the expected side: json, unicodedata, re and `tokenizers` only.
"""

from __future__ import annotations

import json
import re
import string
import unicodedata
from collections.abc import Iterable
from functools import cache
from pathlib import Path

import h5py
import numpy as np
import numpy.typing as npt
import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from btlm_data.pipeline import prepare
from btlm_data.progress import Lines
from btlm_data.recipe.load import load

DATA = Path(__file__).resolve().parent.parent / "btlm_data" / "data"
EOS = 50256


@cache
def hugging_face() -> Tokenizer:
    model = models.BPE.from_file(str(DATA / "gpt2" / "vocab.json"), str(DATA / "gpt2" / "merges.txt"))
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def expected_stream(texts: Iterable[str]) -> npt.NDArray[np.int64]:
    ids: list[int] = []
    for text in texts:
        ids += hugging_face().encode(text, add_special_tokens=False).ids
        ids.append(EOS)
    return np.array(ids, np.int64)


def cleaned(lines: Iterable[bytes], min_chars: int) -> list[str]:
    """SlimPajama's rules in plain Python: readable records, NFC, at least min_chars after normalisation."""
    kept = []
    for line in lines:
        try:
            record = json.loads(line.decode("utf-8"))
            text = record["text"]
            text.encode()
        except (ValueError, KeyError, TypeError, AttributeError):
            continue
        text = unicodedata.normalize("NFC", text)
        normal = re.sub(
            r"\s+", " ", text.lower().translate(str.maketrans("", "", string.punctuation)).strip()
        )
        if len(normal) >= min_chars:
            kept.append(text)
    return kept


def run(source: Path, out: Path, **options: object) -> None:
    values = {
        "source.name": str(source),
        "run.out": str(out),
        "run.workers": 1,
        "dedupe.method": "none",
        "shuffle": "none",
        **options,
    }
    with Lines() as events:
        assert prepare(load(None, {key: (value, key) for key, value in values.items()}), events).complete


def stream_of_samples(folder: Path) -> npt.NDArray[np.int64]:
    """Inputs of all samples in order, and the last real label: the stream, read with nothing but h5py."""
    inputs: list[npt.NDArray[np.int64]] = []
    last = np.empty(0, np.int64)
    for path in sorted(folder.glob("*.h5")):
        with h5py.File(path) as file:
            data = file["data"][:]
        real = data[:, 1] == 1
        for row, mask in zip(data, real, strict=True):
            assert (row[:, ~mask] == 0).all()
            assert (row[2][mask][:-1] == row[0][mask][1:]).all()
            if len(last):
                assert last[0] == row[0][0], (
                    "the label of a sample's last position must be the next sample's first input"
                )
            inputs.append(row[0][mask].astype(np.int64))
            last = row[2][mask][-1:].astype(np.int64)
    return np.concatenate([*inputs, last])


@pytest.mark.parametrize("seq_len", [2048, 333])
def test_the_sample_corpus_is_in_the_shards_token_for_token(seq_len: int, tmp_path: Path) -> None:
    run(
        DATA / "sample",
        tmp_path / "out",
        **{"seq_len": seq_len, "shards.samples_per_file": 100, "dedupe.method": "none"},
    )
    for split in ("train", "validation", "test"):
        lines: list[bytes] = []
        for path in sorted(
            (DATA / "sample" / split).rglob("*.zst"), key=lambda p: p.relative_to(DATA / "sample").as_posix()
        ):
            lines += zstandard.ZstdDecompressor().decompress(path.read_bytes()).split(b"\n")
        texts = cleaned((line for line in lines if line.strip()), 200)
        if split == "train":  # section 4: no train document may equal a holdout document
            held = {t for s in ("validation", "test") for t in _texts(DATA / "sample" / s)}
            texts = [text for text in texts if text not in held]
        np.testing.assert_array_equal(stream_of_samples(tmp_path / "out" / split), expected_stream(texts))


def _texts(folder: Path) -> list[str]:
    lines: list[bytes] = []
    for path in sorted(folder.rglob("*.zst")):
        lines += zstandard.ZstdDecompressor().decompress(path.read_bytes()).split(b"\n")
    return cleaned((line for line in lines if line.strip()), 200)


TEXTS = st.text(st.characters(codec="utf-8"), max_size=60) | st.sampled_from(
    ["", " ", "<|endoftext|>", "don't 'S 'ſ", "\u200b" * 50, "e\u0301" * 9]
)


@settings(
    max_examples=12,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(
    texts=st.lists(TEXTS, min_size=1, max_size=30),
    seq_len=st.integers(1, 40),
    form=st.sampled_from(["sample", "corpus"]),
    per_file=st.integers(1, 9),
)
def test_random_unicode_documents_are_in_the_shards_token_for_token(
    texts: list[str], seq_len: int, form: str, per_file: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("random")
    lines = [json.dumps({"text": text}).encode() for text in texts]
    (folder / "corpus.jsonl").write_bytes(b"\n".join(lines))
    run(
        folder / "corpus.jsonl",
        folder / "out",
        seq_len=seq_len,
        format=form,
        **{"clean.min_chars": 0, "shards.samples_per_file": per_file},
    )
    expected = expected_stream(cleaned(lines, 0))
    if form == "corpus" and len(expected) > 1:
        parts = []
        for path in sorted((folder / "out" / "train").glob("*.h5")):
            with h5py.File(path) as file:
                parts.append(file["data"][:].astype(np.int64))
        np.testing.assert_array_equal(np.concatenate(parts), expected)
    elif len(expected) > 1:
        np.testing.assert_array_equal(stream_of_samples(folder / "out" / "train"), expected)
