r"""Give a prepared dataset to other trainers: Megatron-LM, MosaicML Streaming, or flat files of ids.

`megatron` and `npy` are made of the split's *token stream* (`doc_1 EOS doc_2 EOS ...`), with documents as they were: a
sample-format dataset whose samples were shuffled is put back into stream order, as the place of each sample is a seeded
bijection. Every document's EOS is then looked for where documents.parquet says it is. `mds` is made of samples, in the order in
which they lie in the shards. The vsl format cuts documents to fit its bins, so it is not exported.

    megatron   OUT/SPLIT.bin       the stream, uint16 where every id fits, else int32, little-endian
               OUT/SPLIT.idx       9 bytes  b"MMIDIDX\0\0"
                                   8 bytes  uint64 version, 1
                                   1 byte   dtype: 8 = uint16, 4 = int32
                                   8 bytes  uint64 S, sequences (= documents here, each with its EOS)
                                   8 bytes  uint64 D, documents + 1
                                   4 S      int32 tokens of each sequence
                                   8 S      int64 byte offset of each sequence in the .bin file
                                   8 D      int64 sequence at which each document begins, and at the end S
    npy        OUT/SPLIT.bin       the stream, uint16 or uint32, little-endian and nothing else (as nanoGPT reads it; its
                                   name for the validation split, val.bin, is used)
               OUT/SPLIT.documents.npy   int64 (documents + 1,): where each document begins in the stream, and its end
    mds        OUT/SPLIT/index.json, shard.NNNNN.mds: one column `tokens`, `ndarray:uint16:L` (or int32), MDS version 2. A shard:
                                   4 bytes  uint32 n, samples
                                   4 (n+1)  uint32 byte offset of each sample, and the end
                                            JSON: the columns
                                            n samples of L ids
               The last sample is left out, and counted, where it is padded.

OUT/export.json, written last, says what was exported: files with sha256, documents, tokens, what was left out, the tokenizer and the
fingerprint of the dataset. The same dataset gives the same bytes.
"""

from __future__ import annotations

import hashlib
import json
import logging
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np
import numpy.typing as npt

from btlm_data.errors import ConfigError, DataError, OutputError
from btlm_data.formats import atomic
from btlm_data.formats import dataset as dataset_json
from btlm_data.formats.shard_formats import reader as shards

logger = logging.getLogger(__name__)

Target = Literal["megatron", "mds", "npy"]
TARGETS: tuple[Target, ...] = ("megatron", "mds", "npy")
FILE_NAME = "export.json"
MDS_SHARD_BYTES = 1 << 26  # MosaicML's own default
_READ_BYTES = 1 << 24  # of a shard at a time
_MEGATRON_DTYPES = {"uint16": 8, "int32": 4}


@dataclass
class ExportedSplit:
    """What one split became. tokens: ids written. left_out_tokens: ids of the split's samples that are in no file, with the reason."""

    documents: int | None = None
    samples: int | None = None
    tokens: int = 0
    left_out_tokens: dict[str, int] = field(default_factory=dict)
    files: list[dict[str, Any]] = field(default_factory=list)


@dataclass(frozen=True)
class _Split:
    """One split of one prepared dataset, opened for reading."""

    folder: Path
    name: str
    value: dataset_json.Dataset

    @property
    def entry(self) -> dataset_json.Split:
        return self.value.split(self.name)

    @property
    def seq_len(self) -> int:
        return self.value.seq_len

    @property
    def num_tokens(self) -> int:
        """Tokens of the stream that are in the shards: of samples, their inputs and the last label."""
        labels = self.entry.label_tokens
        return labels if self.value.format == "corpus" or not labels else labels + 1

    def chunks(self) -> Iterator[tuple[int, npt.NDArray[Any]]]:
        """(Number of the first row in the split, rows) from all shards in order."""
        row = 0
        for file in self.entry.files:
            for _, rows in shards.iter_chunks(self.folder / self.name / file.name, _READ_BYTES):
                yield row, rows
                row += len(rows)

    def documents(self) -> Iterator[tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]]:
        """(Stream offset, tokens with EOS) of the documents in stream order, clipped to what the shards hold."""
        import pyarrow.parquet as pq

        path = self.folder / self.name / self.entry.documents_file.name
        try:
            with pq.ParquetFile(path) as file:
                for batch in file.iter_batches(columns=["stream_offset", "tokens"]):
                    offsets = batch["stream_offset"].to_numpy(zero_copy_only=False).astype(np.int64)
                    tokens = batch["tokens"].to_numpy(zero_copy_only=False).astype(np.int64) + 1
                    inside = offsets < self.num_tokens
                    yield offsets[inside], np.minimum(tokens, self.num_tokens - offsets)[inside]
        except (OSError, ValueError, KeyError) as error:
            raise DataError(
                f"{path} cannot be read: {error}. Run `btlm-data verify`, and prepare the dataset again if it fails."
            ) from error


def export(
    dataset: Path, to: Target, out: Path, *, splits: Sequence[str] = (), overwrite: bool = False
) -> dict[str, dict[str, ExportedSplit]]:
    """Write a prepared dataset in another trainer's format; returns {set folder ("" if there is one set): {split: what it became}}.

    dataset: a folder with dataset.json; with several prepared lengths each set goes to a folder of its name below `out`.
    splits: only these. Raises ConfigError for a vsl dataset or an unknown split or target, OutputError if `out` holds something else,
    DataError if the dataset is damaged.
    """
    if to not in TARGETS:
        raise ConfigError(f"There is no export to {to!r}. Choose one of {', '.join(TARGETS)}.")
    values = dataset_json.read_sets(dataset)
    for name, value in values.items():
        _check(dataset / name, value, splits)
    _claim(out, overwrite)
    result: dict[str, dict[str, ExportedSplit]] = {}
    for name, value in values.items():
        result[name] = {}
        for split in splits or value.splits:
            opened = _Split(dataset / name, split, value)
            if not opened.num_tokens:
                logger.warning(
                    "%s: the %s split has no samples, so there is nothing to export", dataset / name, split
                )
                continue
            result[name][split] = _WRITERS[to](opened, out / name)
    _finish(out, to, values, result)
    return result


def _check(folder: Path, value: dataset_json.Dataset, splits: Sequence[str]) -> None:
    if value.format == "vsl":
        raise ConfigError(
            f"{folder} is in the vsl format, whose bins hold cut documents out of order: it cannot be exported. "
            "Prepare the same recipe with --format corpus and export that; what both share is not done again."
        )
    unknown = [split for split in splits if split not in value.splits]
    if unknown:
        raise ConfigError(f"{folder} has no split {unknown[0]!r}. It has {', '.join(value.splits)}.")


def _claim(out: Path, overwrite: bool) -> None:
    """Refuse a folder with anything else in it; remove an earlier export if told to."""
    if out.exists() and not out.is_dir():
        raise OutputError(f"The output {out} is a file. Choose another folder.")
    if not out.exists() or not any(out.iterdir()):
        return
    earlier = out / FILE_NAME
    if not overwrite or not earlier.exists():
        what = "an earlier export" if earlier.exists() else "files that are no export"
        advice = (
            "Choose another folder, or pass --overwrite to replace it."
            if earlier.exists()
            else "Choose an empty folder."
        )
        raise OutputError(f"The output folder {out} holds {what}. {advice}")
    try:
        recorded = json.loads(earlier.read_bytes())
        files = [
            out / name / file["name"]
            for name, entry in recorded["sets"].items()
            for s in entry["splits"].values()
            for file in s["files"]
        ]
    except (ValueError, KeyError, TypeError) as error:
        raise OutputError(
            f"{earlier} cannot be read, so what may be replaced is unknown. Remove {out} yourself, or choose another."
        ) from error
    earlier.unlink()
    for path in files:
        if path.resolve().is_relative_to(out.resolve()):
            path.unlink(missing_ok=True)


def _finish(
    out: Path,
    to: Target,
    values: Mapping[str, dataset_json.Dataset],
    result: Mapping[str, Mapping[str, ExportedSplit]],
) -> None:
    sets = {
        name: {
            "dataset_fingerprint": value.fingerprint,
            "seq_len": value.seq_len,
            "tokenizer": msgspec.to_builtins(value.tokenizer),
            "splits": {split: asdict(exported) for split, exported in result[name].items()},
        }
        for name, value in values.items()
    }
    atomic.write_json(out / FILE_NAME, {"format_version": 1, "to": to, "sets": sets})


# The stream -----------------------------------------------------------------------------------------------------------


def _write_stream(split: _Split, path: Path, dtype: npt.DTypeLike) -> None:
    """Write the split's stream, flat and little-endian; the file is memory-mapped, so its pages can leave memory at any time.

    Raises DataError if a document does not end with EOS where it should.
    """
    stream = np.memmap(path, np.dtype(dtype).newbyteorder("<"), "w+", shape=(split.num_tokens,))
    if split.value.format == "corpus":
        for first, tokens in split.chunks():
            stream[first : first + len(tokens)] = tokens
    else:
        _restore(split, stream)
    eos = split.value.tokenizer.eos_id
    for offsets, lengths in split.documents():
        ends = offsets + lengths - 1
        wrong = np.flatnonzero(stream[ends] != eos)
        # What the shards no longer hold of the last document (`tail: drop`) ends without EOS.
        wrong = wrong[ends[wrong] != split.num_tokens - 1]
        if wrong.size:
            raise DataError(
                f"{split.folder / split.name}: no document ends at token {ends[wrong[0]]} of the stream, where documents.parquet has one. "
                "Run `btlm-data verify`; a dataset that passes was prepared by another version: use that to export it."
            )
    stream.flush()


def _restore(split: _Split, stream: npt.NDArray[Any]) -> None:
    """Put samples back into stream order: sample i's inputs are stream[i*L : (i+1)*L], the last one's last label ends it."""
    length = split.seq_len
    num_samples = -(-(split.num_tokens - 1) // length)
    whole = stream[: (num_samples - 1) * length].reshape(num_samples - 1, length)
    for first, rows in split.chunks():
        places = _origins(split, first, first + len(rows), num_samples)
        is_last = places == num_samples - 1
        whole[places[~is_last]] = rows[~is_last, 0]
        for row in rows[is_last]:
            real = split.num_tokens - 1 - (num_samples - 1) * length
            stream[-1 - real : -1], stream[-1] = row[0, :real], row[2, real - 1]


def _origins(split: _Split, first: int, last: int, num_samples: int) -> npt.NDArray[np.int64]:
    """Which samples of the stream stand in rows [first, last)."""
    if last > num_samples:
        raise DataError(
            f"{split.folder / split.name} has more rows than its {num_samples} samples. Run `btlm-data verify`."
        )
    if split.value.shuffle != "samples":
        return np.arange(first, last)
    from btlm_data.stages import pack

    origins = pack.origins(
        first, last, num_samples, split.value.seed, pack.sample_purpose(split.seq_len, split.name)
    )
    return origins.astype(np.int64)


def _left_out(split: _Split, written: int) -> dict[str, int]:
    """Tokens of the stream that the shards do not hold."""
    missing = split.entry.stream_tokens - written
    return {"not_in_the_shards": missing} if missing else {}


def _megatron(split: _Split, out: Path) -> ExportedSplit:
    small = split.value.tokenizer.vocab_size <= 2**16
    dtype = np.dtype(np.uint16 if small else np.int32)
    with atomic.replacing(out / f"{split.name}.bin") as temporary:
        _write_stream(split, temporary, dtype)
    num_documents = sum(len(lengths) for _, lengths in split.documents())
    header = struct.pack(
        "<9sQBQQ", b"MMIDIDX\0\0", 1, _MEGATRON_DTYPES[dtype.name], num_documents, num_documents + 1
    )
    with atomic.replacing(out / f"{split.name}.idx") as temporary:
        temporary.write_bytes(header)
        size = len(header) + 12 * num_documents + 8 * (num_documents + 1)
        index = np.memmap(temporary, np.uint8, "r+", shape=(size,))
        lengths, pointers, documents = np.split(index[len(header) :], [4 * num_documents, 12 * num_documents])
        done = 0
        for offsets, tokens in split.documents():
            rows = slice(done, done + len(tokens))
            lengths.view("<i4")[rows] = tokens
            pointers.view("<i8")[rows] = offsets * dtype.itemsize
            done += len(tokens)
        documents.view("<i8")[:] = np.arange(num_documents + 1)
        index.flush()
    files = [_described(out, f"{split.name}.{suffix}") for suffix in ("bin", "idx")]
    return ExportedSplit(num_documents, None, split.num_tokens, _left_out(split, split.num_tokens), files)


def _npy(split: _Split, out: Path) -> ExportedSplit:
    name = "val" if split.name == "validation" else split.name
    with atomic.replacing(out / f"{name}.bin") as temporary:
        _write_stream(split, temporary, split.value.dtype)
    begins = np.concatenate([*(offsets for offsets, _ in split.documents()), [split.num_tokens]]).astype(
        "<i8"
    )
    with atomic.replacing(out / f"{name}.documents.npy") as temporary, temporary.open("wb") as file:
        np.save(file, begins)
    files = [_described(out, f"{name}.{suffix}") for suffix in ("bin", "documents.npy")]
    return ExportedSplit(len(begins) - 1, None, split.num_tokens, _left_out(split, split.num_tokens), files)


# MDS ------------------------------------------------------------------------------------------------------------------


def _mds(split: _Split, out: Path) -> ExportedSplit:
    dtype = np.dtype("<u2" if split.value.tokenizer.vocab_size <= 2**16 else "<i4")
    length = split.seq_len
    size = length * dtype.itemsize
    columns: dict[str, Any] = {
        "column_encodings": [f"ndarray:{dtype.name}:{length}"],
        "column_names": ["tokens"],
        "column_sizes": [size],
        "compression": None,
        "format": "mds",
        "hashes": ["sha1"],
        "size_limit": MDS_SHARD_BYTES,
    }
    header = json.dumps(columns, sort_keys=True).encode()
    per_shard = max(1, (MDS_SHARD_BYTES - len(header) - 8) // (size + 4))
    entries: list[dict[str, Any]] = []
    files: list[dict[str, Any]] = []
    num_samples = 0
    for rows in _regrouped(_inputs(split), per_shard):
        name = f"shard.{len(entries):05d}.mds"
        offsets = 4 + 4 * (len(rows) + 1) + len(header) + size * np.arange(len(rows) + 1, dtype=np.int64)
        content = (
            struct.pack("<I", len(rows))
            + offsets.astype("<u4").tobytes()
            + header
            + rows.astype(dtype).tobytes()
        )
        atomic.write_bytes(out / split.name / name, content)
        raw = {
            "basename": name,
            "bytes": len(content),
            "hashes": {"sha1": hashlib.sha1(content, usedforsecurity=False).hexdigest()},
        }
        entries.append({**columns, "raw_data": raw, "samples": len(rows), "version": 2, "zip_data": None})
        files.append(_described(out, f"{split.name}/{name}"))
        num_samples += len(rows)
    atomic.write_json(out / split.name / "index.json", {"shards": entries, "version": 2})
    files.append(_described(out, f"{split.name}/index.json"))
    written = num_samples * length
    left_out = {"short_of_a_sample": split.num_tokens - written} if split.num_tokens > written else {}
    return ExportedSplit(None, num_samples, written, left_out | _left_out(split, split.num_tokens), files)


def _inputs(split: _Split) -> Iterator[npt.NDArray[Any]]:
    """The inputs of whole samples, (m, L), in the order of the shards."""
    length = split.seq_len
    if split.value.format != "corpus":
        for _, rows in split.chunks():
            yield rows[rows[:, 1, -1] == 1, 0]
        return
    rest = np.empty(0, np.int32)
    for _, tokens in split.chunks():
        rest = np.concatenate([rest, tokens])
        whole = len(rest) // length * length
        yield rest[:whole].reshape(-1, length)
        rest = rest[whole:]


def _regrouped(blocks: Iterator[npt.NDArray[Any]], size: int) -> Iterator[npt.NDArray[Any]]:
    """The same rows in blocks of `size`, the last one shorter."""
    held: list[npt.NDArray[Any]] = []
    count = 0
    for block in blocks:
        held.append(block)
        count += len(block)
        while count >= size:
            rows = np.concatenate(held)
            yield rows[:size]
            held, count = [rows[size:]], count - size
    if count:
        yield np.concatenate(held)


def _described(out: Path, name: str) -> dict[str, Any]:
    """What export.json says of a file."""
    path = out / name
    with path.open("rb") as file:
        return {
            "name": name,
            "bytes": path.stat().st_size,
            "sha256": hashlib.file_digest(file, "sha256").hexdigest(),
        }


_WRITERS = {"megatron": _megatron, "mds": _mds, "npy": _npy}
