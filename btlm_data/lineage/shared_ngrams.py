"""Documents that have 13 words in a row in common with a file: the rule of `holdout.decontaminate`, after the fact.

The text index proposes documents, and their texts are compared as cleaning/evaluation_ngrams.py does.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from btlm_data.cleaning.evaluation_ngrams import EvalNgrams
from btlm_data.cleaning.evaluation_sets import evaluation_files
from btlm_data.errors import BtlmError, InputError
from btlm_data.kernels.token_text import TokenBytes
from btlm_data.lineage.datasets import SetView
from btlm_data.lineage.split_view import Extent
from btlm_data.lineage.text_index import TextIndex, raw_text_of, sample_of, with_whole_characters

OPTION = "--ngrams-of"


class Sharing(NamedTuple):
    """A document that has n-grams in common with the file. row: in the table of its split; ngrams: how many of its
    n-grams are in the file; words: the first of them, and which record has it.
    """

    row: int
    ngrams: int
    words: str


def read_file(path: Path) -> EvalNgrams:
    """The n-grams of a file (or of those in a folder): JSON Lines, JSON or parquet. Raises InputError if it cannot be read, or
    no text in it has 13 words.
    """
    if not path.exists():
        raise InputError(f"There is no {path}. Check the path given to {OPTION}.")
    try:
        return EvalNgrams.read(evaluation_files([str(path)]))
    except BtlmError as error:
        raise InputError(str(error).replace("holdout.decontaminate", OPTION)) from None


def sharing(of_set: SetView, splits: Sequence[str], ngrams: EvalNgrams) -> dict[str, list[Sharing]]:
    """The documents of a set that share an n-gram, by split, in the order of its table.

    Raises InputError if the set has no text index of its dataset.json, DataError if files are damaged.
    """
    index = TextIndex.of(of_set)
    if index is None:
        raise InputError(
            f"{of_set.root} has no text index, or one of another dataset.json. Make it: btlm-data index {of_set.root}."
        )
    arrays = ngrams.arrays
    proposed = index.with_any(sample_of(arrays["utf8"], arrays["start"], arrays["stop"]))
    tokens = TokenBytes(*of_set.token_bytes)
    by_split: dict[str, list[Sharing]] = {}
    for name in splits:
        view = of_set.splits[name]
        by_split[name] = [
            each
            for extent in view.extents(proposed[name].tolist())
            if (each := _compared(extent, view.document_tokens(extent), tokens, ngrams)) is not None
        ]
    return by_split


def _compared(
    extent: Extent,
    ids: npt.NDArray[np.int64],
    tokens: TokenBytes,
    ngrams: EvalNgrams,
) -> Sharing | None:
    """A document and the file; None if they have nothing in common."""
    start, length = np.zeros(1, np.int64), np.array([len(ids)], np.int64)
    utf8, offsets = with_whole_characters(*raw_text_of(ids, start, length, tokens))
    hits = ngrams.hits(utf8, offsets, np.zeros(1, np.int64))
    count = int(hits["hits"][0])
    if not count:
        return None
    file, record, words = ngrams.describe(int(hits["ngram"][0]))
    return Sharing(extent.row, count, f"{words} (record {record + 1:,} of {file})")
