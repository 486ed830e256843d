"""The records of one block become its products: documents, sketches, tokens, rejects (blocks.py)."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt
import xxhash
from msgspec.structs import replace

from btlm_data import seeding
from btlm_data.cleaning.document import Documents
from btlm_data.cleaning.evaluation_ngrams import EvalNgrams
from btlm_data.cleaning.filters import Filters
from btlm_data.cleaning.normalize import normalizer
from btlm_data.cleaning.signals import NO_SIGNALS, NUMBERS, Signals
from btlm_data.errors import InputError
from btlm_data.formats import columns, rejects, text_columns
from btlm_data.recipe.models import Settings
from btlm_data.records.base import ReadOptions
from btlm_data.records.batch import RecordBatch
from btlm_data.records.fields import as_text, lookup
from btlm_data.sources.fetch import Fetcher
from btlm_data.stages import ready, tokenize
from btlm_data.stages.file_ranges import FileRange
from btlm_data.storage import Store, digest
from btlm_data.task import Artifact, Counts
from btlm_data.task_files import TaskFiles
from btlm_data.tokenizer import TokenizerSpec

UNREADABLE = "(unreadable)"  # the source name under which records that could not be parsed are counted
_ENCODED_AT_ONCE = 64  # texts: of common lengths their buffers stay in the cache of a core


class ReadSettings(msgspec.Struct, frozen=True):
    """What the pass over the text needs to know; picklable. products: product -> digest of the settings it
    depends on.
    """

    settings: Settings
    filters: Filters
    options: ReadOptions
    tokenizer: TokenizerSpec
    fetcher: Fetcher
    products: Mapping[str, str]
    strict: bool = False
    signals: Signals = NO_SIGNALS
    keep_signatures: bool = False
    need_sha256: bool = False

    def get_ready(self) -> None:
        """What a process does before the first of these tasks (engine/execute.py)."""
        ready.get_ready(self.tokenizer)


class Part(msgspec.Struct, frozen=True):
    """What one task works on. wanted: product -> digest of its settings and of these inputs."""

    ranges: Sequence[FileRange]
    settings: ReadSettings
    wanted: Mapping[str, str]
    ngrams: EvalNgrams | None = None


class Records(msgspec.Struct):
    """The records of one block, which may come from several small files. files: index into the task's ranges."""

    block: RecordBatch = msgspec.field(default_factory=RecordBatch)
    files: list[int] = msgspec.field(default_factory=list)
    reject_files: list[int] = msgspec.field(default_factory=list)

    def documents(self, ranges: Sequence[FileRange], rows: Sequence[int]) -> Documents:
        """The documents of these rows as filters see them. ranges: the task's."""
        batch, names = self.block, [file_range.file.name for file_range in ranges]
        return Documents(
            [batch.texts[row] for row in rows],
            [batch.sources[row] for row in rows],
            [names[self.files[row]] for row in rows],
            [batch.offsets[row] for row in rows],
            [batch.records[row] for row in rows] if batch.records is not None else None,
        )

    def take(self, block: RecordBatch, range_index: int) -> None:
        """Append another stretch's records."""
        if not self.block.texts and not self.block.rejects:
            self.block = block
        else:
            for name in ("texts", "sources", "lines", "offsets", "rejects"):
                getattr(self.block, name).extend(getattr(block, name))
            if self.block.records is not None and block.records is not None:
                self.block.records += block.records
        self.files += [range_index] * len(block.texts)
        self.reject_files += [range_index] * len(block.rejects)


class Cleaned(NamedTuple):
    """The n documents of a block after cleaning. reasons: of those that are dropped, by index. utf8, offsets: the texts
    encoded one after the other, (bytes,) uint8 and (n + 1,) int64.
    """

    texts: list[str]
    reasons: dict[int, str]
    utf8: npt.NDArray[np.uint8]
    offsets: npt.NDArray[np.int64]


class BlockWriter:
    """Turns the records of one block into its products."""

    def __init__(self, files: TaskFiles, stem: str, part: Part) -> None:
        self.files, self.stem = files, stem
        self.ranges, self.settings, self.wanted = part.ranges, part.settings, part.wanted
        self.ngrams = part.ngrams
        self.acquire, self.clean = Counts(), Counts()
        self.examples = rejects.block_examples(part.settings.settings.clean.rejected_sample)
        self.split = part.ranges[0].file.split

    def write(self, records: Records) -> dict[str, Any]:
        """Clean, sketch, tokenize, write; returns the .docs meta. The .docs file is written last: it says the
        block is done.
        """
        from btlm_data.kernels import normalisation

        block = records.block
        keys = self._keys(records)
        lines = self._rejects(records)
        texts, reasons, utf8, offsets = self.cleaned(records.documents(self.ranges, range(len(block.texts))))
        lengths = np.diff(offsets)
        normalised = normalisation.normalise(texts, utf8, offsets)
        min_chars = self.settings.settings.clean.min_chars
        for index in np.flatnonzero(normalised.num_chars < min_chars).tolist():
            reasons.setdefault(index, "too_short")
        keep = np.ones(len(texts), bool)
        keep[list(reasons)] = False
        kept = np.flatnonzero(keep)
        sources, codes = self._count(records, texts, lengths, reasons, keys)

        arrays: dict[str, npt.NDArray[Any]] = {
            "offset": np.array(block.offsets, np.uint64)[kept],
            "line": np.array(block.lines, np.uint32)[kept],
            "file": np.array(records.files, np.uint16)[kept],
            "source": codes[kept],
            "num_bytes": lengths[kept].astype(np.uint32),
            "num_chars": normalised.num_chars[kept].astype(np.uint32),
            "key": keys[kept],
        }
        raw = utf8.data
        arrays["hash"] = _text_hashes(raw, offsets, kept)
        dropped = np.flatnonzero(~keep)
        names = sorted(set(reasons.values()))
        arrays |= {
            "dropped/offset": np.array(block.offsets, np.uint64)[dropped],
            "dropped/line": np.array(block.lines, np.uint32)[dropped],
            "dropped/file": np.array(records.files, np.uint16)[dropped],
            "dropped/source": codes[dropped],
            "dropped/num_bytes": lengths[dropped].astype(np.uint32),
            "dropped/hash": _text_hashes(raw, offsets, dropped),
            "dropped/reason": np.array([names.index(reasons[i]) for i in dropped.tolist()], np.uint16),
        }
        if self.settings.need_sha256:
            digests = b"".join(
                hashlib.sha256(raw[offsets[i] : offsets[i + 1]]).digest() for i in kept.tolist()
            )
            arrays["sha256"] = np.frombuffer(digests, np.uint8).reshape(-1, 32)
        if "sketch" in self.wanted and not self._reuse("sketch"):
            self._sketch(normalised, kept)
        del normalised
        if "contamination" in self.wanted and not self._reuse("contamination"):
            self._contamination(utf8, offsets, kept)
        del utf8, raw
        if "fields" in self.wanted and not self._reuse("fields"):
            self._fields(records, np.concatenate([kept, dropped]))
        if "signals" in self.wanted and not self._reuse("signals"):
            self._signals(records, texts, kept)
        if not self._reuse("tokens"):
            self._tokens(texts, kept, keys)
        rejects_file = None
        if lines or any(True for _ in self.examples.lines()):
            with self.files.create(f"{self.stem}.rejects") as creating:
                rejects.write_block(creating.file, lines, self.examples)
            rejects_file = list(self.files.written[-1])
        meta = {
            "digest": self.wanted["docs"],
            "files": [segment.file.name for segment in self.ranges],
            "sources": sources,
            "reasons": names,
            "stages": {"acquire": self.acquire.to_json(), "clean": self.clean.to_json()},
            "num_documents": len(kept),
            "rejects": rejects_file,
            "end": block.end,
            "num_lines": block.num_lines,
            "final": block.final,
        }
        self.files.write_columns(f"{self.stem}.docs", arrays, meta)
        return meta

    def _reuse(self, product: str) -> bool:
        """Whether an earlier attempt left this product, made from the same inputs and settings."""
        artifact = find_product(self.files.work, self.stem, product, self.wanted)
        if artifact is None:
            return False
        self.files.adopt(artifact)
        return True

    def _keys(self, records: Records) -> npt.NDArray[np.uint64]:
        offsets, files = np.array(records.block.offsets, np.uint64), np.array(records.files, np.int64)
        if len(self.ranges) == 1:
            return seeding.document_keys(self.ranges[0].file.name, offsets)
        keys = np.empty(len(offsets), np.uint64)
        for index in np.unique(files).tolist():
            is_of_file = files == index
            keys[is_of_file] = seeding.document_keys(self.ranges[index].file.name, offsets[is_of_file])
        return keys

    def _rejects(self, records: Records) -> list[dict[str, Any]]:
        """Count the unreadable records. Raises InputError for the first under --strict."""
        lines = []
        for reject, index in zip(records.block.rejects, records.reject_files, strict=True):
            name = self.ranges[index].file.name
            is_fault = not reject.is_without_text
            if (
                self.settings.strict and is_fault and self.ranges[index].start == 0
            ):  # elsewhere the driver, which knows the line, raises it
                raise strict_error(name, reject.line, reject.reason, reject.detail)
            self.acquire.add(self.split, UNREADABLE, "in", 1, reject.num_bytes)
            self.acquire.add(self.split, UNREADABLE, f"drop:{reject.reason}", 1, reject.num_bytes)
            lines.append(
                {
                    "file": name,
                    "line": reject.line,
                    "offset": reject.offset,
                    "reason": reject.reason,
                    "detail": reject.detail,
                    "bytes": reject.num_bytes,
                }
            )
        return lines

    def cleaned(self, documents: Documents) -> Cleaned:
        """Normalise and filter."""
        from btlm_data.kernels import composition

        clean = self.settings.settings.clean
        texts, sources = list(documents.texts), documents.sources
        reasons: dict[int, str] = {}
        self.raw_bytes: dict[int, int] = {}  # of each text that cleaning changed
        normalize = normalizer(clean.normalize)
        utf8, offsets = _encoded(texts)
        lengths = np.diff(offsets).tolist()
        to_look_at: Iterable[int] = range(len(texts))
        if clean.normalize == "nfc":
            to_look_at = np.flatnonzero(~composition.are_composed(utf8, offsets)).tolist()
        for i in to_look_at:
            normalised = normalize(texts[i])
            if normalised is not texts[i] and normalised != texts[i]:
                self.raw_bytes[i] = lengths[i]
                texts[i] = normalised
        excluded = self.settings.settings.source.exclude_sources
        if excluded:
            reasons.update({i: "excluded_source" for i, name in enumerate(sources) if name in excluded})
        if clean.filters:
            verdicts, changed_texts = self.settings.filters.apply(replace(documents, texts=texts))
            for i, reason in enumerate(verdicts):
                if reason is not None:
                    reasons.setdefault(i, reason)
                elif changed_texts[i] is not texts[i] and changed_texts[i] != texts[i]:
                    self.raw_bytes.setdefault(i, lengths[i])
                    texts[i] = changed_texts[i]
        if self.raw_bytes:
            utf8, offsets = _with_changed(utf8, offsets, texts, sorted(self.raw_bytes))
        return Cleaned(texts, reasons, utf8, offsets)

    def _count(
        self,
        records: Records,
        texts: list[str],
        lengths: npt.NDArray[np.int64],
        reasons: dict[int, str],
        keys: npt.NDArray[np.uint64],
    ) -> tuple[list[str], npt.NDArray[np.uint32]]:
        """Fill the ledger's cells for acquire and clean, collect examples; returns source names and each
        document's code.
        """
        names = records.block.sources
        sources = sorted(set(names))
        index = {name: code for code, name in enumerate(sources)}
        codes = np.fromiter(map(index.__getitem__, names), np.uint32, len(names))
        raw = lengths.copy()
        for i, size in self.raw_bytes.items():
            raw[i] = size
        documents, cleaned, original = (
            np.bincount(codes, w, len(sources)).astype(np.int64) for w in (None, lengths, raw)
        )
        for code, name in enumerate(sources):
            n, size = int(documents[code]), int(original[code])
            self.acquire.add(self.split, name, "in", n, size)
            self.acquire.add(self.split, name, "out", n, size)
            self.clean.add(self.split, name, "in", n, size)
            self.clean.add(self.split, name, "out", n, int(cleaned[code]))
            grown = int(cleaned[code]) - size
            if grown:
                self.clean.add(
                    self.split,
                    name,
                    "add:grown_by_cleaning" if grown > 0 else "drop:shrunk_by_cleaning",
                    0,
                    abs(grown),
                )
        salt = seeding.salt(0, "examples")
        hashes = seeding.mix64(keys, salt)
        for i, reason in reasons.items():
            size = int(lengths[i])
            self.clean.add(self.split, names[i], "out", -1, -size)
            self.clean.add(self.split, names[i], f"drop:{reason}", 1, size)
            if self.examples.wants(reason, int(hashes[i])):
                example = {
                    "file": self.ranges[records.files[i]].file.name,
                    "offset": records.block.offsets[i],
                    "source": names[i],
                    "text": texts[i][: rejects.EXAMPLE_CHARS],
                }
                self.examples.add(reason, int(hashes[i]), example)
        return sources, codes

    def _sketch(self, normalised: Any, kept: npt.NDArray[np.int64]) -> None:
        from btlm_data.dedupe.sketches import sketch

        settings = self.settings
        arrays = sketch(normalised, kept, settings.settings.dedupe, with_signatures=settings.keep_signatures)
        content = digest.checksum(arrays["exact"].tobytes())
        meta = {"digest": self.wanted["sketch"], "content": content}
        self.files.write_columns(f"{self.stem}.sketch", arrays, meta)

    def _contamination(
        self, utf8: npt.NDArray[np.uint8], offsets: npt.NDArray[np.int64], kept: npt.NDArray[np.int64]
    ) -> None:
        assert self.ngrams is not None
        self.files.write_columns(
            f"{self.stem}.contamination",
            self.ngrams.hits(utf8, offsets, kept),
            {"digest": self.wanted["contamination"]},
        )

    def _fields(self, records: Records, rows: npt.NDArray[np.int64]) -> None:
        """Write the record fields to keep, of these rows."""
        assert records.block.records is not None
        kept = self.settings.settings.source.kept_columns
        values: dict[str, list[str | None]] = {column: [] for column in kept}
        for row in rows.tolist():
            record = records.block.records[row].fields()
            for column, field_name in kept.items():
                values[column].append(as_text(lookup(record, field_name)))
        self.files.write_columns(
            f"{self.stem}.fields",
            text_columns.arrays_of(values),
            {"digest": self.wanted["fields"], "columns": list(kept)},
        )

    def _signals(self, records: Records, texts: list[str], kept: npt.NDArray[np.int64]) -> None:
        """Write the signals of the documents that are kept, of their texts as cleaned."""
        rows = kept.tolist()
        documents = replace(records.documents(self.ranges, rows), texts=[texts[row] for row in rows])
        values = self.settings.signals.measure(documents)
        labels = {name: column for name, column in values.items() if isinstance(column, list)}
        numbers = np.zeros(len(rows), self.settings.signals.dtype)
        for name in numbers.dtype.names or ():
            numbers[name] = values[name]
        arrays = text_columns.arrays_of(labels) | text_columns.arrays_of_packed(NUMBERS, numbers)
        self.files.write_columns(f"{self.stem}.signals", arrays, {"digest": self.wanted["signals"]})

    def _tokens(self, texts: list[str], kept: npt.NDArray[np.int64], keys: npt.NDArray[np.uint64]) -> None:
        chosen = [texts[i] for i in kept.tolist()]
        arrays = tokenize.encode(
            chosen, keys[kept], self.settings.tokenizer, self.settings.settings, self.ranges[0].file.name
        )
        self.files.write_columns(f"{self.stem}.tokens", arrays, {"digest": self.wanted["tokens"]})


def _encoded(texts: Sequence[str]) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
    """The texts in UTF-8, one after the other, (bytes,), and where each of the n begins and the last ends, (n + 1,).

    By Arrow, which leaves its UTF-8 with each text that is not ASCII: the tokenizer takes it from there, where `str.encode`
    would have it encode the text once more. A few texts at a time: Arrow's buffers grow by being copied to new memory, and
    are copied once more at the end.
    """
    import pyarrow as pa

    parts, lengths = list[memoryview](), [np.zeros(1, np.int64)]
    for first in range(0, len(texts), _ENCODED_AT_ONCE):
        some = texts[first : first + _ENCODED_AT_ONCE]
        _, buffer, utf8 = pa.array(some, pa.large_string()).buffers()
        offsets = np.frombuffer(buffer, np.int64)[: len(some) + 1]
        lengths.append(np.diff(offsets))
        if utf8 is not None:
            parts.append(memoryview(utf8)[: offsets[-1]])
    return np.frombuffer(b"".join(parts), np.uint8), np.cumsum(np.concatenate(lengths))


def _with_changed(
    utf8: npt.NDArray[np.uint8], offsets: npt.NDArray[np.int64], texts: Sequence[str], changed: Sequence[int]
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
    """As `_encoded`, of texts of which only some, in order, have changed since."""
    lengths, parts, end = np.diff(offsets), list[memoryview | bytes](), 0
    for i in changed:
        text = texts[i].encode()
        parts += [utf8[end : offsets[i]].data, text]
        lengths[i], end = len(text), offsets[i + 1]
    parts.append(utf8[end:].data)
    return np.frombuffer(b"".join(parts), np.uint8), np.concatenate([offsets[:1], np.cumsum(lengths)])


def _text_hashes(
    utf8: memoryview, offsets: npt.NDArray[np.int64], rows: npt.NDArray[np.int64]
) -> npt.NDArray[np.uint8]:
    """XXH3 (128 bits, big-endian) of the chosen texts, (n, 16) uint8."""
    hash_of = xxhash.xxh3_128_digest
    bounds = zip(offsets[rows].tolist(), offsets[rows + 1].tolist(), strict=True)
    digests = b"".join([hash_of(utf8[begin:end]) for begin, end in bounds])
    return np.frombuffer(digests, np.uint8).reshape(-1, 16)


def find_product(store: Store, stem: str, product: str, wanted: Mapping[str, str]) -> Artifact | None:
    """A product of a block that an earlier attempt left under the wanted digest, whole; else None."""
    artifact = columns.find(store, f"{stem}.{product}")
    if artifact is None or columns.Columns(store, artifact).meta.get("digest") != wanted[product]:
        return None
    return artifact


def strict_error(name: str, line: int, reason: str, detail: str) -> InputError:
    """The error that a rejected record is under --strict. line: 0-based, within the whole file."""
    return InputError(
        f"{name} line {line + 1}: {reason} ({detail}). "
        "Fix the record, or run without --strict: it is then counted and listed in rejects.jsonl."
    )
