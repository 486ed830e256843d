"""Compare a dataset with the source it was made from: every input file by size and digest; documents by their
tokens.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

import msgspec
import numpy as np

from btlm_data.cleaning.document import Documents
from btlm_data.cleaning.filters import Filters, modules_named, plan_filters
from btlm_data.cleaning.normalize import normalize_ftfy, normalize_nfc
from btlm_data.errors import BtlmError, DataError, InputError
from btlm_data.formats import input_digest, provenance
from btlm_data.formats.dataset import FILE_NAME, Dataset, InputFile
from btlm_data.formats.documents_table import DocumentTable
from btlm_data.formats.guarded import reading, require_regular
from btlm_data.inspection.check import Check, Report, tell_problems
from btlm_data.inspection.opening import Opened, OpenShards
from btlm_data.inspection.split_stream import SplitStream, stream_of
from btlm_data.inspection.token_measures import find_tokenizer
from btlm_data.inspection.vsl_pieces import WantedPieces
from btlm_data.recipe.recorded import settings_of
from btlm_data.records.base import WHOLE, Fields, ReadOptions, Stretch
from btlm_data.records.batch import RecordBatch
from btlm_data.records.formats import classify
from btlm_data.records.reader import is_divisible, read_batches
from btlm_data.wording import counted

if TYPE_CHECKING:
    from btlm_data.recipe.models import SourceSettings
    from btlm_data.tokenizer import Tokenizer

MAX_COMPARED_BYTES = 1 << 34  # of a file that is compared before its texts are shown: some ten seconds
SEED = 0xDEE9  # of the documents drawn
_BATCH_BYTES = 1 << 20  # read at a time to come to a record: what is behind the last one is read for nothing
NORMALIZERS: dict[str, Callable[[str], str]] = {
    "nfc": normalize_nfc,
    "ftfy": normalize_ftfy,
    "none": lambda text: text,
}


def check_inputs(manifest: Dataset, source: Path, tell: Report) -> None:
    """Every input file that dataset.json names is below `source` (or is it, where there is one) with its size
    and digest.
    """
    problems: list[str] = []
    compared = 0
    for file in manifest.inputs:
        try:
            compared += _check_input(path_of_input(source, file), file, problems)
        except DataError as error:
            problems.append(str(error))
    only_size = len(manifest.inputs) - compared
    detail = f"{counted(compared, 'input file')} with the recorded digest"
    if only_size:
        detail += f"; of {only_size:,} only the size is recorded"
    if not manifest.inputs:
        tell(Check("source", None, f"not made: {FILE_NAME} names no input file"))
    else:
        tell_problems(tell, "source", problems, detail)


def path_of_input(source: Path, file: InputFile) -> Path:
    """Where an input file is, if `source` is what was given as --source: a folder, or a single file."""
    return source if source.is_file() and source.name == file.name else source / file.name


def where_it_was_read(root: Path, file: InputFile) -> Path:
    """Where the run read an input file, as provenance.json of the dataset at `root` says, if it is still that file there.

    Only a file of the digest in dataset.json is: a dataset that somebody sent could name any file of this machine as its
    source, but not one that its maker does not have. Raises InputError, with the reason.
    """
    made = provenance.read(root)
    url = (
        next((origin.url for origin in made.inputs if origin.name == file.name), "")
        if made is not None
        else ""
    )
    path = _local(url)
    if path is None:
        raise InputError(
            f"{file.name} was read from {url or 'an unknown place'}, which is not on this machine."
        )
    if not path.is_file() or path.stat().st_size != file.size:
        raise InputError(f"{path} is not there any more, or was changed since.")
    algorithm, _, _ = (file.digest or "").partition(":")
    if algorithm != input_digest.NAME or file.size > MAX_COMPARED_BYTES:
        why = "is too large to be compared" if algorithm == input_digest.NAME else "has no digest"
        raise InputError(f"Whether {path} is the file that was read is not known: it {why} in {FILE_NAME}.")
    with reading(path):
        status = path.stat()
        is_same = _digest(path, status.st_size, status.st_mtime_ns, status.st_ino) == file.digest
    if not is_same:
        raise InputError(f"{path} is not there any more, or was changed since.")
    return path


def _local(url: str) -> Path | None:
    """The path of a file: URL or a plain path; None for what is elsewhere."""
    if "://" not in url:
        return Path(url) if url else None
    parts = urlsplit(url)
    return Path(unquote(parts.path)) if parts.scheme == "file" else None


@functools.lru_cache(maxsize=1000)
def _digest(path: Path, *stamp: int) -> str:
    """The digest of a file as it is now. stamp: what another file there would have otherwise."""
    return input_digest.of_file(path)


def _check_input(path: Path, file: InputFile, problems: list[str]) -> bool:
    """Returns whether the content was compared."""
    require_regular(path)
    size = path.stat().st_size
    if size != file.size:
        problems.append(f"{path}: {size:,} bytes, {FILE_NAME} says {file.size:,}")
        return True
    algorithm, _, _ = (file.digest or "").partition(":")
    if algorithm != input_digest.NAME:
        return False
    with reading(path):
        computed = input_digest.of_file(path)
    if computed != file.digest:
        problems.append(f"{path}: {computed}, {FILE_NAME} says {file.digest}")
    return True


# Documents --------------------------------------------------------------------------------------------------


class _Drawn(msgspec.Struct, frozen=True):
    """A document drawn to be read again: its row in the table of its split."""

    split: str
    row: dict[str, Any]

    @property
    def name(self) -> str:
        """Where documents.parquet names it."""
        return f"{self.split}/documents.parquet row {self.row['row']}"


class _Reader(msgspec.Struct, frozen=True):
    """Everything with which a document becomes tokens once more."""

    options: ReadOptions
    normalize: Callable[[str], str]
    filters: Filters
    tokenizer: Tokenizer


class _Compared(msgspec.Struct, frozen=True):
    """What documents are compared with, by split, and what was found wrong."""

    streams: Mapping[str, SplitStream]
    pieces: Mapping[str, WantedPieces]
    problems: list[str]


def check_documents(opened: Opened, manifest: Dataset, source: Path, count: int, tell: Report) -> None:
    """Read `count` drawn documents from the source, tokenize them, and find them where documents.parquet
    says.

    Bytes, number of tokens and the tokens themselves are compared; those of vsl shards, where documents are
    cut and packed, by looking for every piece (vsl_pieces.py), which reads the shards once more. Nothing that
    the dataset names is imported: with filters that name code the check is not made.
    """
    name = "documents again"
    made = _reader(opened, manifest)
    if isinstance(made, str):
        tell(Check(name, None, f"not made: {made}"))
        return
    problems: list[str] = []
    compared = 0
    with OpenShards() as shards:
        streams = {split: stream_of(opened, manifest, split, shards) for split in manifest.splits}
        pieces = {split: WantedPieces(stream, manifest.tokenizer.eos_id) for split, stream in streams.items()}
        try:
            for file, documents in _by_file(manifest, _draw(opened, manifest, count)):
                path = path_of_input(source, file)
                compared += _compare_file(path, file, documents, made, _Compared(streams, pieces, problems))
            for wanted in pieces.values():
                problems += wanted.missing()
        except DataError as error:
            problems.append(str(error))
    tell_problems(
        tell, name, problems, f"{counted(compared, 'document')} read from the source and tokenized: the same"
    )


def _reader(opened: Opened, manifest: Dataset) -> _Reader | str:
    """What is needed to read documents again, or a message: why that cannot be done."""
    settings = settings_of(manifest.configuration)
    if isinstance(settings, str):
        return f"the configuration is not valid ({settings})"
    specs = settings.clean.filters
    try:
        if modules_named(specs):
            return "a filter names a Python function, which is not run for a received dataset"
        filters = plan_filters(specs)
    except BtlmError as error:
        return str(error)
    tokenizer_search = find_tokenizer(opened, None)
    if tokenizer_search.tokenizer is None:
        return tokenizer_search.reason or "there is no tokenizer"
    options = options_of(settings.source)
    return _Reader(options, NORMALIZERS[settings.clean.normalize], filters, tokenizer_search.tokenizer)


def _draw(opened: Opened, manifest: Dataset, count: int) -> list[_Drawn]:
    """Documents drawn from all splits together, seeded."""
    tables = {
        split: DocumentTable(opened.documents_path(split))
        for split in manifest.splits
        if opened.chosen in (None, split)
    }
    total = sum(table.num_rows for table in tables.values())
    rows = np.sort(np.random.default_rng(SEED).choice(total, min(count, total), replace=False)).tolist()
    drawn: list[_Drawn] = []
    first = 0
    for split, table in tables.items():
        chosen = [row - first for row in rows if first <= row < first + table.num_rows]
        drawn += [_Drawn(split, row) for row in table.rows(chosen)]
        first += table.num_rows
    return drawn


def _by_file(
    manifest: Dataset, drawn: Sequence[_Drawn]
) -> Iterator[tuple[InputFile, dict[int, list[_Drawn]]]]:
    """Input files with the documents drawn from each, by offset."""
    inputs = {file.name: file for file in manifest.inputs}
    files: dict[str, dict[int, list[_Drawn]]] = {}
    for document in drawn:
        files.setdefault(document.row["file"], {}).setdefault(document.row["offset"], []).append(document)
    for name, documents in files.items():
        if name not in inputs:
            raise DataError(f"{name!r} is not among the inputs in {FILE_NAME}")
        yield inputs[name], documents


def _compare_file(
    path: Path,
    file: InputFile,
    documents: dict[int, list[_Drawn]],
    reader: _Reader,
    against: _Compared,
) -> int:
    """Read the documents of one file; returns how many were compared."""
    left = dict(documents)
    compared = 0
    for batch, index in records_at(path, file, left, reader.options, whole=reader.filters.needs_metadata):
        for document in left.pop(batch.offsets[index], ()):
            text = _text(batch, index, file.name, reader)
            problem = _difference(document, text, reader, against)
            compared += 1
            if problem is not None:
                against.problems.append(f"{document.name}: {problem}")
    for offset, missing in left.items():
        against.problems.append(f"{missing[0].name}: {path} has no record at byte {offset:,}")
    return compared


def records_at(
    path: Path, file: InputFile, offsets: Iterable[int], options: ReadOptions, *, whole: bool = False
) -> Iterator[tuple[RecordBatch, int]]:
    """The records that begin at these offsets of a source file: (batch, index in it), each once.

    whole: batches carry the whole records. Raises DataError if the file is not regular or of no format that
    is read.
    """
    require_regular(path)
    kind = classify(file.name)
    if kind is None:
        raise DataError(f"{path} is of a format that this program does not read")
    stored = _Stored(*kind, file.source, file.text_field)
    left = set(offsets)
    wanted = sorted(left)
    stretches = [Stretch(offset, offset + 1) for offset in wanted] if reads_apart(file, options) else [WHOLE]
    for stretch in stretches:
        for batch in read_batches(path, stored, options, stretch, _BATCH_BYTES, whole, wanted):
            for index, offset in enumerate(batch.offsets):
                if offset in left:
                    left.remove(offset)
                    yield batch, index
            if not left or batch.final or (len(batch.offsets) and batch.offsets[-1] > wanted[-1]):
                break


def reads_apart(file: InputFile, options: ReadOptions) -> bool:
    """Whether a record of a source file is read without what is before it."""
    kind = classify(file.name)
    if kind is None:
        return False
    stored = _Stored(*kind, file.source, file.text_field)
    return is_divisible(stored, options) and stored.format != "parquet"


def bytes_before(file: InputFile, offset: int, options: ReadOptions) -> int:
    """Bytes of a source file that are read, inflated, to come to the record at this offset; of a table, as it is stored."""
    if reads_apart(file, options):
        return 0
    kind = classify(file.name)
    return file.size if kind is not None and kind[0] in ("parquet", "arrow") else offset


def options_of(source: SourceSettings) -> ReadOptions:
    """How the records of a source are read, as its settings say."""
    return ReadOptions(
        Fields(source.text_field, source.source_field),
        max_record_bytes=source.max_record_bytes,
        max_window=source.max_window,
        encoding=source.encoding,
        txt=source.txt,
        text_join=source.text_join,
    )


class _Stored(msgspec.Struct, frozen=True):
    """What the reader needs to know of a file."""

    format: str
    compression: str
    source: str | None
    text_field: str | None


def _text(batch: RecordBatch, index: int, name: str, reader: _Reader) -> str:
    """A record's text as cleaning leaves it."""
    text = reader.normalize(batch.texts[index])
    records = [batch.records[index]] if batch.records is not None else None
    documents = Documents([text], [batch.sources[index]], [name], [batch.offsets[index]], records)
    return reader.filters.apply(documents)[1][0] if reader.filters.entries else text


def _difference(document: _Drawn, text: str, reader: _Reader, against: _Compared) -> str | None:
    """What differs between a document read again and the dataset; for vsl, its pieces are
    requested.
    """
    row = document.row
    size = len(text.encode())
    if size != row["bytes"]:
        return f"{row['bytes']:,} bytes, the text has {size:,} now"
    ids, _ = reader.tokenizer.encode_batch([text])
    if len(ids) != row["tokens"]:
        return f"{row['tokens']:,} tokens, the text has {len(ids):,} now"
    stream = against.streams[document.split]
    if stream.is_vsl:
        against.pieces[document.split].add(document.name, ids)
        return None
    start = row["stream_offset"]
    stored = stream.tokens(start, start + len(ids))
    differing = np.flatnonzero(stored != ids[: len(stored)].astype(np.int64))
    if len(differing):
        k = int(differing[0])
        return f"token {k} of the document is {int(stored[k])} in the shards, {int(ids[k])} from the text"
    return None
