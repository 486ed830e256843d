"""From documents to a token stream and samples, as plainly as can be: the twin of the stages from clean to shard."""

from __future__ import annotations

import hashlib
import re
import string
import unicodedata
from collections.abc import Iterable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

EOS = 50256
_GPT2 = Path(__file__).resolve().parents[2] / "btlm_data/data/gpt2"


@lru_cache(maxsize=1)
def tokenizer() -> Any:
    """GPT-2's byte-level BPE out of `tokenizers`, straight from vocabulary and merges; it knows no special token."""
    from tokenizers import ByteLevelBPETokenizer

    return ByteLevelBPETokenizer(str(_GPT2 / "vocab.json"), str(_GPT2 / "merges.txt"))


def cleaned(texts: Iterable[str], min_chars: int = 200) -> list[str]:
    """NFC, then without those that have too few characters once lower-cased, without punctuation and with single spaces."""
    normal = [unicodedata.normalize("NFC", text) for text in texts]
    return [text for text in normal if _num_chars(text) >= min_chars]


def _num_chars(text: str) -> int:
    plain = text.lower().translate(str.maketrans("", "", string.punctuation))
    return len(re.sub(r"\s+", " ", plain.strip()))


def without(texts: Iterable[str], holdout: Iterable[str]) -> list[str]:
    """Those that equal no holdout text."""
    held = {hashlib.sha256(text.encode()).digest() for text in holdout}
    return [text for text in texts if hashlib.sha256(text.encode()).digest() not in held]


def token_stream(texts: Sequence[str]) -> npt.NDArray[np.int64]:
    """doc_1 EOS doc_2 EOS ..."""
    ids: list[int] = []
    for encoding in tokenizer().encode_batch(list(texts)):
        ids += [*encoding.ids, EOS]
    return np.array(ids, np.int64)


def samples(stream: npt.NDArray[np.int64], length: int, tail: str = "pad") -> npt.NDArray[np.int32]:
    """Sample i is stream[i*L : (i+1)*L + 1]: its inputs, mask and labels, (n, 3, L)."""
    rows = []
    for start in range(0, len(stream) - 1, length):
        piece = stream[start : start + length + 1]
        real = len(piece) - 1
        if real < length and tail == "drop":
            break
        row = np.zeros((3, length), np.int32)
        row[0, :real], row[1, :real], row[2, :real] = piece[:-1], 1, piece[1:]
        rows.append(row)
    return np.array(rows, np.int32).reshape(-1, 3, length)
