"""Find training documents that share a 13-word n-gram with an evaluation set.

The rule is that of GPT-3's filtering of training data (Brown et al. 2020, "Language Models are Few-Shot Learners", appendix C): a gram is
a lower-case, white-space delimited word without punctuation, and a document that shares 13 in a row with an evaluation text collides.
As in that paper's first form, the whole document goes; cutting 200 characters around each collision, and ignoring grams that more
than 10 training documents have, are not done. An evaluation text of fewer than 13 words can match nothing.

Every string in an evaluation record, however nested, is a text of its own. Candidates are found by hash and compared byte for byte.

    decontaminate/ngrams.cols   `utf8` (b,) uint8: the normalised evaluation texts; per n-gram `hash` (g,) uint64, `start`, `stop` (g,) int64
                                in utf8, `record` (g,) uint32; `slots`, `filter`: kernels/word_ngrams.py; per record `record_file` uint16
                                (index into meta["files"]) and `record_number` uint32 (from 0); meta: {"digest", "files"}
    BLOCK.contamination         `hits` (n,) uint32: n-grams of each document in the table; `ngram` (n,) uint32: number of the first, or 2^32 - 1
    contamination.parquet       a row per document with hits, see write_report
"""

from __future__ import annotations

import glob
import gzip
import hashlib
import json
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from btlm_data.errors import ConfigError, InputError
from btlm_data.formats import columns
from btlm_data.kernels import minhash, word_ngrams

logger = logging.getLogger(__name__)

VERSION = 1
NGRAMS = "decontaminate/ngrams.cols"
REPORT = "decontaminate/contamination.parquet"


def prepare_ngrams(patterns: Sequence[str], work_dir: Path) -> tuple[str, str]:
    """Make the table of all evaluation n-grams, or leave it if these very files made it. Returns (its path in the work folder, digest).

    patterns: files or globs, JSON Lines (also .gz, .zst) or parquet. Raises ConfigError if one matches nothing, InputError if a file
    cannot be read.
    """
    names = [name for pattern in patterns for name in _expand(pattern)]
    hasher = hashlib.sha256(f"{VERSION}/{word_ngrams.NGRAM_WORDS}".encode())
    for name in names:
        hasher.update(json.dumps(name).encode())
        hasher.update(_file_digest(Path(name)))
    digest = hasher.hexdigest()
    path = work_dir / NGRAMS
    if path.exists() and columns.read(path, []).meta["digest"] == digest:
        return NGRAMS, digest
    texts: list[str] = []
    records: list[int] = []
    record_file: list[int] = []
    record_number: list[int] = []
    for index, name in enumerate(names):
        for number, record in enumerate(_records(Path(name))):
            for text in _strings(record):
                texts.append(text)
                records.append(len(record_file))
            record_file.append(index)
            record_number.append(number)
    encoded = [text.encode("utf-8", "replace") for text in texts]
    bounds = np.concatenate(
        (np.zeros(1, np.int64), np.cumsum([len(text) for text in encoded], dtype=np.int64))
    )
    n = minhash.normalise(None, np.frombuffer(b"".join(encoded), np.uint8), bounds)
    hashes, starts, stops, owners = word_ngrams.word_ngrams(n.utf8, n.offsets)
    slots, bits = word_ngrams.build_table(n.utf8, hashes, starts, stops)
    if not len(hashes):
        logger.warning(
            "No text of the evaluation sets (%s) has %d words: nothing can match them.",
            ", ".join(names[:3]),
            word_ngrams.NGRAM_WORDS,
        )
    arrays: dict[str, npt.NDArray[Any]] = {
        "utf8": n.utf8,
        "hash": hashes,
        "start": starts,
        "stop": stops,
        "record": np.array(records, np.uint32)[owners],
        "slots": slots,
        "filter": bits,
        "record_file": np.array(record_file, np.uint16),
        "record_number": np.array(record_number, np.uint32),
    }
    columns.write(path, arrays, {"digest": digest, "files": names})
    return NGRAMS, digest


@dataclass(frozen=True)
class EvalNgrams:
    """The table, memory-mapped."""

    arrays: dict[str, npt.NDArray[Any]]
    files: list[str]

    @staticmethod
    def read(path: Path) -> EvalNgrams:
        """Open what prepare_ngrams wrote. Raises DataError if it is torn."""
        found = columns.read(path)
        return EvalNgrams(dict(found.arrays), found.meta["files"])

    def hits(
        self, utf8: npt.NDArray[np.uint8], offsets: npt.NDArray[np.int64], kept: npt.NDArray[np.int64]
    ) -> dict[str, npt.NDArray[np.uint32]]:
        """`hits` and `ngram` (see the module) of the kept documents. utf8, offsets: documents before normalisation."""
        n = minhash.normalise(None, utf8, offsets)
        a = self.arrays
        hits, first = word_ngrams.find(
            n.utf8,
            n.offsets,
            kept.astype(np.int64),
            (a["utf8"], a["hash"], a["start"], a["stop"], a["slots"], a["filter"]),
        )
        return {"hits": hits, "ngram": first}

    def describe(self, ngram: int) -> tuple[str, int, str]:
        """(file, record from 0, words) of an n-gram."""
        a = self.arrays
        record = int(a["record"][ngram])
        words = a["utf8"][a["start"][ngram] : a["stop"][ngram]].tobytes().decode()
        return self.files[int(a["record_file"][record])], int(a["record_number"][record]), words


def _expand(pattern: str) -> list[str]:
    found = (
        sorted(glob.glob(pattern, recursive=True))
        if glob.has_magic(pattern)
        else [pattern]
        if Path(pattern).is_file()
        else []
    )
    if not found:
        raise ConfigError(
            f"holdout.decontaminate: {pattern} matches no file. An evaluation set that is not read would silently decontaminate nothing. "
            "Correct the path, or remove it from the list."
        )
    return found


def _file_digest(path: Path) -> bytes:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()


def _records(path: Path) -> Iterator[Any]:
    """The records of one file. Raises InputError naming file and line of one that cannot be read."""
    if path.suffix == ".parquet":
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            yield from pq.read_table(path).to_pylist()
        except (pa.ArrowException, OSError) as error:
            raise InputError(
                f"The evaluation set {path} is no parquet file that can be read ({error}). Fetch it again, or remove it."
            ) from error
        return
    try:
        lines = _decompressed(path).decode("utf-8").splitlines()
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise InputError(
            f"The evaluation set {path} cannot be read ({error}). Fetch it again, or remove it from the list."
        ) from error
    for number, line in enumerate(lines, 1):
        if line.strip():
            try:
                yield json.loads(line)
            except ValueError as error:
                raise InputError(
                    f"The evaluation set {path} line {number} is no JSON ({error}). Every record of it must be read. Correct the file."
                ) from error


def _decompressed(path: Path) -> bytes:
    data = path.read_bytes()
    if path.suffix == ".gz":
        return gzip.decompress(data)
    if path.suffix == ".zst":
        import zstandard

        try:
            with zstandard.ZstdDecompressor().stream_reader(data, read_across_frames=True) as reader:
                return reader.read()
        except zstandard.ZstdError as error:
            raise OSError(str(error)) from error
    return data


def _strings(value: Any) -> Iterator[str]:
    """Every string in a record, in order."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from _strings(item)
    elif isinstance(value, list):
        for item in value:
            yield from _strings(item)
