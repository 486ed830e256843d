"""A model in fastText's format, written out of numbers that a test knows.

Layout, little-endian, of fastText's version 12 (src/fasttext.cc, args.cc, dictionary.cc, densematrix.cc): magic and version;
12 int32 arguments and a double; the dictionary (sizes, then each entry: text, NUL, count, kind); the two matrices, each with
a byte for "quantised" before it, its shape as int64 and its float32 rows.
"""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import numpy.typing as npt

_MAGIC, _VERSION = 793712314, 12
_SOFTMAX, _SUPERVISED = 3, 3


def write(path: Path, words: dict[str, list[float]], labels: dict[str, list[float]]) -> None:
    """words, labels: the vector of each, all of one length. The first word must be `</s>`, which ends every text."""
    width = len(next(iter(words.values())))
    out = struct.pack("<2i", _MAGIC, _VERSION)
    # dim, ws, epoch, minCount, neg, wordNgrams, loss, model, bucket, minn, maxn, lrUpdateRate; t
    out += struct.pack("<12id", width, 5, 5, 1, 5, 1, _SOFTMAX, _SUPERVISED, 0, 0, 0, 100, 1e-4)
    out += struct.pack("<3i2q", len(words) + len(labels), len(words), len(labels), 100, -1)
    for kind, names in enumerate((words, labels)):
        for name in names:
            out += name.encode() + b"\0" + struct.pack("<qb", 10, kind)
    for rows in (words, labels):
        matrix = np.array(list(rows.values()), "<f4")
        out += struct.pack("<b2q", 0, *matrix.shape) + matrix.tobytes()
    path.write_bytes(out)


def shares(
    text: str, words: dict[str, list[float]], labels: dict[str, list[float]]
) -> npt.NDArray[np.float64]:
    """The probability of each label for a text: softmax of the labels' products with the mean of the words' vectors."""
    known = [words[word] for word in [*text.split(), "</s>"] if word in words]
    logits = np.array(list(labels.values())) @ np.mean(known, axis=0)
    raised = np.exp(logits - logits.max())
    return np.asarray(raised / raised.sum(), np.float64)
