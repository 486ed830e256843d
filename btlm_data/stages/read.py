"""The one pass over the text: read, clean, sketch for deduplication, tokenize; a file is fetched and parsed once.

reads   source files, in parts: a file, a byte range of a plain file, a run of small files
writes  per block of about 16 MB: .docs, .sketch, .tokens (stages/blocks.py) and, where any, .rejects
unit    a part; blocks inside it are kept as they are finished, so a part resumes inside a file
balance records = rejected + dropped + documents; bytes likewise, with the change by normalisation apart

Tokenizing before deduplication costs tokens that are thrown away (as many as there are duplicates), and saves decompressing,
parsing and normalising everything twice (and, for a remote source, fetching it twice): docs/decisions/0001 has the figures.

Each product has a digest of its own (inputs and the settings it depends on). A part that is done again, for example because
the tokenizer changed, makes only the products whose digest changed.
"""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from btlm_data import seeding
from btlm_data.cleaning.document import Documents
from btlm_data.cleaning.filters import Filters, plan_filters
from btlm_data.errors import DataError, InputError
from btlm_data.fingerprint import digest
from btlm_data.formats import columns, rejects
from btlm_data.recipe.models import CleanSettings, Settings, SourceSettings
from btlm_data.records.base import BATCH_BYTES, Fields, ReadOptions, Stretch
from btlm_data.records.batch import RecordBatch
from btlm_data.records.reader import count_records, is_divisible, read_batches
from btlm_data.sources.base import SourceFile
from btlm_data.sources.fetch import Fetcher
from btlm_data.task import Counts, Task
from btlm_data.tokenizers import TokenizerSpec

if TYPE_CHECKING:
    from btlm_data.cleaning.evaluation_ngrams import EvalNgrams

VERSION = 1
PART_BYTES = 64 * 2**20  # a plain JSON Lines file is cut into byte ranges of this many
GROUP_BYTES = 16 * 2**20  # small files are read together up to this many bytes as stored
GROUP_FILES = 256
UNREADABLE = "(unreadable)"  # the source name under which records that could not be parsed are counted


@dataclass(frozen=True)
class Segment:
    """A stretch of a file; start and stop as in records.reader.read_batches. max_line: lines from here on are not read."""

    file: SourceFile
    start: int = 0
    stop: int | None = None
    max_line: int | None = None

    def to_json(self) -> list[Any]:
        """As JSON values, for a task's arguments."""
        return [self.file.to_json(), self.start, self.stop, self.max_line]

    @staticmethod
    def from_json(value: Sequence[Any]) -> Segment:
        """Inverse of to_json."""
        return Segment(SourceFile(**value[0]), value[1], value[2], value[3])


@dataclass(frozen=True)
class ReadSettings:
    """What the pass needs to know; picklable. Digests decide what is made again (see Products)."""

    settings: Settings
    options: ReadOptions
    tokenizer: TokenizerSpec
    fetcher: Fetcher
    filters: Filters
    products: dict[str, str]  # product -> digest of the settings it depends on
    strict: bool = False
    eval_ngrams: str | None = None  # columns file relative to the work folder
    keep_signatures: bool = False
    need_sha256: bool = False


def read_options(source: SourceSettings, listed: Mapping[str, str]) -> ReadOptions:
    """How the files of a source are read. listed: fields that the source's registration names, before the settings."""
    return ReadOptions(
        Fields(listed.get("text_field", source.text_field), listed.get("source_field", source.source_field)),
        max_record_bytes=source.max_record_bytes,
        max_window=source.max_window,
        encoding=source.encoding,
        txt=source.txt,
        text_join=source.text_join,
    )


def product_digests(
    settings: Settings,
    filters: Filters,
    options: ReadOptions,
    tokenizer: TokenizerSpec,
    eval_digest: str | None,
    keep_signatures: bool,
    need_sha256: bool,
) -> dict[str, str]:
    """What each product depends on, besides its part of the source."""
    d = settings.dedupe
    source = settings.source
    docs = digest(
        VERSION,
        settings.clean,
        filters.fingerprint if filters.entries else None,
        asdict(options),
        source.exclude_sources,
        need_sha256,
    )
    products = {
        "docs": docs,
        "tokens": digest(docs, tokenizer.fingerprint),
    }
    if d.method != "none":
        products["sketch"] = digest(docs, d.method, d.scheme, d.bands, d.rows, d.num_perm, keep_signatures)
    if eval_digest:
        products["contamination"] = digest(docs, eval_digest)
    return products


def filters_fingerprint(clean: CleanSettings) -> str | None:
    """Digest of what the filters do besides their settings: users' functions, word lists. None without filters."""
    if not clean.filters:
        return None
    return plan_filters(clean.filters).fingerprint


def plan(files: Sequence[SourceFile], settings: ReadSettings) -> list[Task]:
    """Parts in source order: the plan depends on names, sizes and --limit only."""
    parts: list[list[Segment]] = []
    group: list[Segment] = []
    for segment in _limited(files, settings):
        segments = _segments(segment, settings.options)
        small = len(segments) == 1 and segments[0].file.size < GROUP_BYTES
        fits = (
            small
            and group
            and group[0].file.split == segments[0].file.split
            and len(group) < GROUP_FILES
            and sum(s.file.size for s in group) + segments[0].file.size <= GROUP_BYTES
        )
        if group and not fits:
            parts.append(group)
            group = []
        if small:
            group.append(segments[0])
        else:
            parts += [[segment] for segment in segments]
    if group:
        parts.append(group)
    return [_task(number, part, settings) for number, part in enumerate(parts)]


def _task(number: int, part: list[Segment], settings: ReadSettings) -> Task:
    weight = sum((s.stop or s.file.size) - s.start for s in part)
    return Task(
        id=f"{number:06d}",
        args={"segments": [s.to_json() for s in part], "products": settings.products},
        inputs=[f"{s.file.identity}|{s.start}|{s.stop}|{s.max_line}" for s in part],
        weight=max(1, weight),
    )


def _limited(files: Sequence[SourceFile], settings: ReadSettings) -> Iterator[Segment]:
    """Whole files; with --limit, the first N records of each split, found by counting."""
    limit = settings.settings.source.limit
    left: dict[str, int] = {}
    for file in files:
        if limit is None:
            yield Segment(file)
            continue
        remaining = left.setdefault(file.split, limit)
        if remaining == 0:
            continue
        with settings.fetcher.local_copy(file) as path:
            found, end = count_records(path, file, settings.options, remaining)
        left[file.split] -= found
        yield Segment(file, max_line=end if end >= 0 else None)


def _segments(whole: Segment, options: ReadOptions) -> list[Segment]:
    file = whole.file
    if whole.max_line is not None or file.size <= PART_BYTES or not is_divisible(file, options):
        return [whole]
    edges = list(range(0, file.size, PART_BYTES))
    return [Segment(file, start, None if start == edges[-1] else start + PART_BYTES) for start in edges]


# The work -------------------------------------------------------------------------------------------------------


@dataclass
class _Records:
    """The records of one block, which may come from several small files. files: index into the part's segments."""

    block: RecordBatch = field(default_factory=RecordBatch)
    files: list[int] = field(default_factory=list)
    reject_files: list[int] = field(default_factory=list)

    def documents(self, segments: Sequence[Segment], rows: Sequence[int]) -> Documents:
        """The documents of these rows as filters see them. segments: the part's."""
        batch, names = self.block, [segment.file.name for segment in segments]
        return Documents(
            [batch.texts[row] for row in rows],
            [batch.sources[row] for row in rows],
            [names[self.files[row]] for row in rows],
            [batch.offsets[row] for row in rows],
        )

    def take(self, block: RecordBatch, segment: int) -> None:
        """Append another stretch's records."""
        mine = self.block
        if not mine.texts and not mine.rejects:
            self.block = block
        else:
            for name in ("texts", "sources", "lines", "offsets", "rejects"):
                getattr(mine, name).extend(getattr(block, name))
        self.files += [segment] * len(block.texts)
        self.reject_files += [segment] * len(block.rejects)


def work(task: Task, settings: ReadSettings, work_dir: str) -> Counts:
    """Read one part. Raises InputError under --strict, DataError if a verified tokenization differs."""
    root = Path(work_dir)
    segments = [Segment.from_json(value) for value in task.args["segments"]]
    identity = digest(list(task.inputs))
    wanted = {product: digest(identity, setting) for product, setting in task.args["products"].items()}
    stages = {"acquire": Counts(), "clean": Counts()}
    blocks: list[list[Any]] = []
    outputs: list[str] = []

    def collect(meta: dict[str, Any], stem: str) -> None:
        for name, counts in meta["stages"].items():
            stages[name].merge(Counts.from_json(counts))
        blocks.append([stem, meta["num_documents"]])
        outputs.extend(f"{stem}.{ending}" for ending in meta["endings"])

    # A part that is one large stretch goes on behind the blocks an earlier attempt finished; small files are read again.
    resume, final = (0, 0), False
    if len(segments) == 1:
        while not final and (meta := _finished(root, stem := _stem(task, len(blocks)), wanted)) is not None:
            collect(meta, stem)
            resume, final = (meta["end"], meta["num_lines"]), meta["final"]
    num_lines = resume[1]
    ngrams: EvalNgrams | None = None
    if not final:
        for found in records(segments, settings, resume):
            stem = _stem(task, len(blocks))
            if settings.eval_ngrams is not None and ngrams is None:
                from btlm_data.stages.decontaminate import open_ngrams

                ngrams = open_ngrams(root)
            collect(BlockWriter(root, stem, segments, settings, wanted, ngrams).write(found), stem)
            num_lines = found.block.num_lines
    result = Counts()
    result.extra = {
        "stages": {name: counts.to_json() for name, counts in stages.items()},
        "blocks": blocks,
        "num_lines": num_lines,
        "documents": sum(count for _, count in blocks),
        "outputs": outputs,
    }
    return result


def _stem(task: Task, number: int) -> str:
    return f"read/{task.id}-{number:05d}"


def records(
    segments: Sequence[Segment],
    settings: ReadSettings,
    resume: tuple[int, int],
    block_bytes: int = BATCH_BYTES,
) -> Iterator[_Records]:
    """Blocks of about block_bytes; those of small files are put together."""
    found, held = _Records(), 0
    for index, segment in enumerate(segments):
        with settings.fetcher.local_copy(segment.file) as path:
            stretch = Stretch(segment.start, segment.stop, *resume)
            for block in read_batches(path, segment.file, settings.options, stretch, block_bytes):
                if segment.max_line is not None:
                    block.keep_lines_before(segment.max_line)
                found.take(block, index)
                held += sum(map(len, block.texts))
                if len(segments) == 1 or held >= block_bytes:
                    yield found
                    found, held = _Records(), 0
                if block.final:
                    break
    if found.block.num_records:
        yield found


def _finished(root: Path, stem: str, wanted: dict[str, str]) -> dict[str, Any] | None:
    """The .docs meta of a block whose every product is there under its digest, else None."""
    try:
        meta = dict(columns.read(root / f"{stem}.docs", []).meta)
        for product, ending in _ENDINGS.items():
            if (
                product in wanted
                and columns.read(root / f"{stem}.{ending}", []).meta["digest"] != wanted[product]
            ):
                return None
    except (DataError, KeyError):
        return None
    return meta


_ENDINGS = {"docs": "docs", "sketch": "sketch", "tokens": "tokens", "contamination": "contamination"}


class BlockWriter:
    """Turns the records of one block into its products."""

    def __init__(
        self,
        root: Path,
        stem: str,
        segments: Sequence[Segment],
        settings: ReadSettings,
        wanted: dict[str, str],
        ngrams: EvalNgrams | None = None,
    ) -> None:
        self.root, self.stem, self.segments, self.settings, self.wanted = (
            root,
            stem,
            segments,
            settings,
            wanted,
        )
        self.ngrams = ngrams
        self.acquire, self.clean = Counts(), Counts()
        self.examples = rejects.block_examples(settings.settings.clean.rejected_sample)
        self.split = segments[0].file.split

    def write(self, records: _Records) -> dict[str, Any]:
        """Clean, sketch, tokenize, write; returns the .docs meta. The .docs file is written last: it says the block is done."""
        from btlm_data.kernels import minhash

        block = records.block
        keys = self._keys(records)
        lines = self._rejects(records)
        texts, reasons = self.cleaned(records.documents(self.segments, range(len(block.texts))))
        utf8_list = [text.encode() for text in texts]
        lengths = np.fromiter(map(len, utf8_list), np.int64, len(utf8_list))
        offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)])
        utf8 = np.frombuffer(b"".join(utf8_list), np.uint8)
        del utf8_list
        normalised = minhash.normalise(texts, utf8, offsets)
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
        if self.settings.need_sha256:
            raw = utf8.data
            digests = b"".join(
                hashlib.sha256(raw[offsets[i] : offsets[i + 1]]).digest() for i in kept.tolist()
            )
            arrays["sha256"] = np.frombuffer(digests, np.uint8).reshape(-1, 32)
        endings = ["docs"]
        if "sketch" in self.wanted:
            endings.append("sketch")
            if not self._is_done("sketch"):
                self._sketch(normalised, kept)
        del normalised
        if "contamination" in self.wanted:
            endings.append("contamination")
            if not self._is_done("contamination"):
                self._contamination(utf8, offsets, kept)
        del utf8
        endings.append("tokens")
        if not self._is_done("tokens"):
            self._tokens(texts, kept, keys)
        if lines or any(True for _ in self.examples.lines()):
            endings.append("rejects")
            rejects.write_block(self.root / f"{self.stem}.rejects", lines, self.examples)
        meta = {
            "digest": self.wanted["docs"],
            "files": [segment.file.name for segment in self.segments],
            "sources": sources,
            "stages": {"acquire": self.acquire.to_json(), "clean": self.clean.to_json()},
            "num_documents": len(kept),
            "endings": endings,
            "end": block.end,
            "num_lines": block.num_lines,
            "final": block.final,
        }
        columns.write(self.root / f"{self.stem}.docs", arrays, meta)
        return meta

    def _is_done(self, product: str) -> bool:
        try:
            return bool(
                columns.read(self.root / f"{self.stem}.{_ENDINGS[product]}", []).meta["digest"]
                == self.wanted[product]
            )
        except (DataError, KeyError):
            return False

    def _keys(self, records: _Records) -> npt.NDArray[np.uint64]:
        offsets, files = np.array(records.block.offsets, np.uint64), np.array(records.files, np.int64)
        if len(self.segments) == 1:
            return seeding.document_keys(self.segments[0].file.name, offsets)
        keys = np.empty(len(offsets), np.uint64)
        for index in np.unique(files).tolist():
            mine = files == index
            keys[mine] = seeding.document_keys(self.segments[index].file.name, offsets[mine])
        return keys

    def _rejects(self, records: _Records) -> list[dict[str, Any]]:
        """Count the unreadable records. Raises InputError for the first under --strict."""
        lines = []
        for reject, index in zip(records.block.rejects, records.reject_files, strict=True):
            name = self.segments[index].file.name
            if (
                self.settings.strict and self.segments[index].start == 0
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

    def cleaned(self, documents: Documents) -> tuple[list[str], dict[int, str]]:
        """Normalised and filtered texts, and the reason of each that is dropped (by index)."""
        clean = self.settings.settings.clean
        texts, sources = list(documents.texts), documents.sources
        reasons: dict[int, str] = {}
        self.raw_bytes = (
            {i: len(text.encode()) for i, text in enumerate(texts) if not text.isascii()}
            if clean.normalize == "ftfy"
            else {}
        )
        if clean.normalize == "nfc":
            changed = [
                i
                for i, text in enumerate(texts)
                if not (text.isascii() or unicodedata.is_normalized("NFC", text))
            ]
            self.raw_bytes = {i: len(texts[i].encode()) for i in changed}
            for i in changed:
                texts[i] = unicodedata.normalize("NFC", texts[i])
        elif clean.normalize == "ftfy":
            from btlm_data.cleaning.normalize import normalize_ftfy

            for i, text in enumerate(texts):
                fixed = normalize_ftfy(text)
                if fixed is not text and fixed != text:
                    self.raw_bytes[i] = len(text.encode())
                    texts[i] = fixed
        excluded = self.settings.settings.source.exclude_sources
        if excluded:
            reasons.update({i: "excluded_source" for i, name in enumerate(sources) if name in excluded})
        if clean.filters:
            verdicts, changed_texts = self.settings.filters.apply(replace(documents, texts=texts))
            for i, reason in enumerate(verdicts):
                if reason is not None:
                    reasons.setdefault(i, reason)
                elif changed_texts[i] is not texts[i] and changed_texts[i] != texts[i]:
                    self.raw_bytes.setdefault(i, len(texts[i].encode()))
                    texts[i] = changed_texts[i]
        return texts, reasons

    def _count(
        self,
        records: _Records,
        texts: list[str],
        lengths: npt.NDArray[np.int64],
        reasons: dict[int, str],
        keys: npt.NDArray[np.uint64],
    ) -> tuple[list[str], npt.NDArray[np.uint32]]:
        """Fill the ledger's cells for acquire and clean, collect examples; returns source names and each document's code."""
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
                    "file": self.segments[records.files[i]].file.name,
                    "offset": records.block.offsets[i],
                    "source": names[i],
                    "text": texts[i][: rejects.EXAMPLE_CHARS],
                }
                self.examples.add(reason, int(hashes[i]), example)
        return sources, codes

    def _sketch(self, normalised: Any, kept: npt.NDArray[np.int64]) -> None:
        from btlm_data.kernels import minhash

        dedupe = self.settings.settings.dedupe
        arrays: dict[str, npt.NDArray[Any]] = {"exact": minhash.exact_hashes(normalised)[kept]}
        if dedupe.method == "minhash":
            signatures = minhash.signatures(normalised, dedupe.num_perm, scheme=dedupe.scheme)
            arrays["bands"] = minhash.band_keys(signatures, dedupe.bands, dedupe.rows)[kept]
            if self.settings.keep_signatures:
                arrays["signatures"] = signatures[kept]
        columns.write(self.root / f"{self.stem}.sketch", arrays, {"digest": self.wanted["sketch"]})

    def _contamination(
        self, utf8: npt.NDArray[np.uint8], offsets: npt.NDArray[np.int64], kept: npt.NDArray[np.int64]
    ) -> None:
        assert self.ngrams is not None
        columns.write(
            self.root / f"{self.stem}.contamination",
            self.ngrams.hits(utf8, offsets, kept),
            {"digest": self.wanted["contamination"]},
        )

    def _tokens(self, texts: list[str], kept: npt.NDArray[np.int64], keys: npt.NDArray[np.uint64]) -> None:
        """Tokens in the shuffle's order, so that a bucket of the shuffle lies together; `starts` says where, whatever the seed."""
        tokenizer = self.settings.tokenizer.load()
        every = self.settings.settings.tokenizer.verify_every
        order = np.arange(len(kept))
        if self.settings.settings.shuffle != "none":
            shuffled = seeding.mix64(keys[kept], seeding.salt(self.settings.settings.seed, "shuffle"))
            order = np.argsort(shuffled, kind="stable")
        chosen = [texts[i] for i in kept[order].tolist()]
        ids, bounds = tokenizer.encode_batch(chosen)
        if every:
            self._verify(tokenizer, chosen, ids, bounds, keys[kept[order]], every)
        starts, lengths = np.empty(len(kept), np.uint64), np.empty(len(kept), np.uint32)
        starts[order] = bounds[:-1]
        lengths[order] = np.diff(bounds)
        columns.write(
            self.root / f"{self.stem}.tokens",
            {"starts": starts, "lengths": lengths, "tokens": ids},
            {"digest": self.wanted["tokens"]},
        )

    def _verify(
        self,
        tokenizer: Any,
        texts: list[str],
        ids: npt.NDArray[Any],
        bounds: npt.NDArray[np.int64],
        keys: npt.NDArray[np.uint64],
        every: int,
    ) -> None:
        for i in np.flatnonzero(
            seeding.mix64(keys, seeding.salt(0, "verify")) % np.uint64(every) == 0
        ).tolist():
            expected, _ = tokenizer.encode_reference([texts[i]])
            if not np.array_equal(expected, ids[bounds[i] : bounds[i + 1]]):
                raise DataError(
                    f"The fast tokenizer backend {tokenizer.backend} and `tokenizers` differ on a document of {self.segments[0].file.name} "
                    f"that begins {texts[i][:60]!r}. The run stopped before any wrong token was used. "
                    "Run again with --set tokenizer.backend=reference, and report the document."
                )


def strict_error(name: str, line: int, reason: str, detail: str) -> InputError:
    """The error that a rejected record is under --strict. line: 0-based, within the whole file."""
    return InputError(
        f"{name} line {line + 1}: {reason} ({detail}). "
        "Fix the record, or run without --strict: it is then counted and listed in rejects.jsonl."
    )
