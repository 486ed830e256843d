"""Find documents that share a 13-word n-gram with an evaluation set.

The rule is that of GPT-3's filtering of training data (Brown et al. 2020, "Language Models are Few-Shot
Learners", appendix C): a gram is a lower-case, white-space delimited word without punctuation, and a document
that shares 13 in a row with an evaluation text collides. As in that paper's first form, the whole document is
removed; cutting 200 characters around each collision, and ignoring grams that more than 10 training documents
have, are not done. An evaluation text of fewer than 13 words can match nothing. Candidates are found by hash
and compared byte for byte.

Arrays of b bytes of text, g n-grams and r records:

    utf8      (b,) uint8    the normalised evaluation texts
    hash      (g,) uint64   of each n-gram; start, stop (g,) int64: where it is in utf8
    record    (g,) uint32   the number of the n-gram's record
    slots     (2^k,) uint32 the table and its filter (2^m,) uint64, see kernels/word_ngrams.py
    record_file     (r,) uint32   the number of the record's file in `files`
    record_number   (r,) uint32   the number of the record in its file, from 0
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from btlm_data.cleaning import evaluation_sets
from btlm_data.cleaning.evaluation_sets import EvaluationFile
from btlm_data.errors import DataError, InputError
from btlm_data.kernels import normalisation, word_ngrams
from btlm_data.kernels.ranges import check_below, check_same_length

VERSION = 2
ARRAYS = {
    "utf8": np.uint8,
    "hash": np.uint64,
    "start": np.int64,
    "stop": np.int64,
    "record": np.uint32,
    "slots": np.uint32,
    "filter": np.uint64,
    "record_file": np.uint32,
    "record_number": np.uint32,
}


def evaluation_digest(files: Sequence[EvaluationFile]) -> str:
    """Hex SHA-256 of what decides the n-grams: the files' names and contents, and the rule."""
    described = [VERSION, word_ngrams.NGRAM_WORDS, [list(file) for file in files]]
    return hashlib.sha256(json.dumps(described).encode()).hexdigest()


@dataclass(frozen=True)
class EvalNgrams:
    """The n-grams of evaluation sets. arrays: see the module, memory-mapped or not. files: names of the
    evaluation files.

    Raises DataError if a value in the arrays would lead outside them.
    """

    arrays: Mapping[str, npt.NDArray[Any]]
    files: Sequence[str]

    def __post_init__(self) -> None:
        a = self.arrays
        for name, dtype in ARRAYS.items():
            if a[name].dtype != dtype or a[name].ndim != 1:
                raise DataError(
                    f"The evaluation n-grams have {name} of dtype {a[name].dtype} and shape "
                    f"{a[name].shape}, expected one "
                    f"row of {np.dtype(dtype)}. The file is damaged. Delete it and rerun the same command."
                )
        self._table.check()
        check_same_length("The n-grams of the evaluation sets", a["hash"], a["record"])
        check_same_length("The records of the evaluation sets", a["record_file"], a["record_number"])
        check_below(a["record"], len(a["record_file"]), "The record of an n-gram")
        check_below(a["record_file"], len(self.files), "The file of a record")

    @staticmethod
    def read(files: Sequence[EvaluationFile]) -> EvalNgrams:
        """Read evaluation files. Raises InputError if one cannot be read whole, or has no text of 13
        words.
        """
        texts: list[str] = []
        text_record: list[int] = []
        record_file: list[int] = []
        record_number: list[int] = []
        for index, file in enumerate(files):
            for number, record in enumerate(evaluation_sets.records(file.name)):
                before = len(texts)
                texts += evaluation_sets.texts(record)
                text_record += [len(record_file)] * (len(texts) - before)
                record_file.append(index)
                record_number.append(number)
        ngrams = EvalNgrams.of_texts(texts, text_record, record_file, record_number, [f.name for f in files])
        ngrams._check_every_file_contributes()
        return ngrams

    @staticmethod
    def of_texts(
        texts: Sequence[str],
        text_record: Sequence[int],
        record_file: Sequence[int],
        record_number: Sequence[int],
        files: Sequence[str],
    ) -> EvalNgrams:
        """The n-grams of texts; text i is of record text_record[i], which is record record_number[.] of file
        record_file[.].
        """
        encoded = [text.encode("utf-8", "replace") for text in texts]
        bounds = np.concatenate(([0], np.cumsum([len(text) for text in encoded], dtype=np.int64)))
        n = normalisation.normalise(None, np.frombuffer(b"".join(encoded), np.uint8), bounds)
        hashes, starts, stops, owners = word_ngrams.word_ngrams(n.utf8, n.offsets)
        table = word_ngrams.build_table(n.utf8, hashes, starts, stops)
        arrays: dict[str, npt.NDArray[Any]] = {
            "utf8": table.utf8,
            "hash": table.hashes,
            "start": table.starts,
            "stop": table.stops,
            "record": np.array(text_record, np.uint32)[owners],
            "slots": table.slots,
            "filter": table.bits,
            "record_file": np.array(record_file, np.uint32),
            "record_number": np.array(record_number, np.uint32),
        }
        return EvalNgrams(arrays, list(files))

    def hits(
        self, utf8: npt.NDArray[np.uint8], offsets: npt.NDArray[np.int64], chosen: npt.NDArray[np.int64]
    ) -> dict[str, npt.NDArray[np.uint32]]:
        """`hits` (c,): how many n-grams of each chosen document are in the sets; `ngram` (c,): the first
        one's number, or 2^32 - 1.

        utf8 (b,), offsets (n + 1,): documents before normalisation; chosen (c,): their numbers.
        """
        n = normalisation.normalise(None, utf8, offsets)
        hits, first = word_ngrams.find(n.utf8, n.offsets, chosen.astype(np.int64), self._table)
        return {"hits": hits, "ngram": first}

    def describe(self, ngram: int) -> tuple[str, int, str]:
        """(file, record from 0, words) of an n-gram. Raises DataError if there is no such n-gram."""
        a = self.arrays
        check_below(np.array([ngram]), len(a["hash"]), "The n-gram")
        record = int(a["record"][ngram])
        words = a["utf8"][a["start"][ngram] : a["stop"][ngram]].tobytes().decode("utf-8", "replace")
        return self.files[int(a["record_file"][record])], int(a["record_number"][record]), words

    @cached_property
    def _table(self) -> word_ngrams.Table:
        a = self.arrays
        return word_ngrams.Table(a["utf8"], a["hash"], a["start"], a["stop"], a["slots"], a["filter"])

    def _check_every_file_contributes(self) -> None:
        """A file without n-grams can match nothing: more likely a mistake (other columns, no text) than a
        wish.
        """
        a = self.arrays
        num_ngrams = np.bincount(a["record_file"][a["record"]], minlength=len(self.files))
        num_records = np.bincount(a["record_file"], minlength=len(self.files))
        empty = [
            f"{name} ({records:,} {'record' if records == 1 else 'records'})"
            for name, ngrams, records in zip(self.files, num_ngrams, num_records, strict=True)
            if not ngrams
        ]
        if empty:
            raise InputError(
                f"holdout.decontaminate: nothing could ever match {', '.join(empty[:5])}"
                f"{f' and {len(empty) - 5} more' if len(empty) > 5 else ''}: no text in it has "
                f"{word_ngrams.NGRAM_WORDS} words. Check that it is the right file, or remove it from the "
                "list."
            )
