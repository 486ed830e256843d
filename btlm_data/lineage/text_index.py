"""Make the text index of a dataset, and ask it: which documents can have a passage, or 13 words of a text.

What the index says is a proposal: documents are read, and their text decides. It leaves none out, so what is found is what
reading everything finds.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from btlm_data.errors import DataError, InputError
from btlm_data.formats import columns, text_index
from btlm_data.formats.text_index import (
    FOLDER,
    WORK_FOLDER,
    IndexedSplit,
    IndexPart,
    TextIndexFile,
    part_name,
)
from btlm_data.kernels import normalisation, token_text, word_samples
from btlm_data.lineage import index_folder
from btlm_data.lineage.datasets import SetView
from btlm_data.lineage.hash_parts import PART_ENTRIES, HashParts, bits_of, part_bits
from btlm_data.lineage.index_folder import IndexKind, Made
from btlm_data.lineage.restream import stream_of
from btlm_data.lineage.split_view import SplitView
from btlm_data.storage import Store, open_store
from btlm_data.task import Artifact
from btlm_data.threads import in_threads

SERVED_WORDS = word_samples.SERVED_WORDS
_BLOCK_TOKENS = 1 << 21  # of documents that are sampled at once: about 60 MB
_THREADS = 8
_PART_ENTRIES = PART_ENTRIES
_ENTRIES_A_TOKEN = 0.22  # of English text: 2 in 7 of the words
_ENTRY = np.dtype([("hash", "<u8"), ("document", "<u4")])
_MOST_DOCUMENTS = 2**32
_STREAM = "stream"
_ONE_BY_ONE = 64  # hashes in one part: for more its whole column is read
UInt8Array = npt.NDArray[np.uint8]
UInt64Array = npt.NDArray[np.uint64]
Int64Array = npt.NDArray[np.int64]


# Making it --------------------------------------------------------------------------------------------------


def make(path: Path) -> Made:
    """Make the text index of every set of a dataset that has none of its dataset.json (index_folder.py). Raises ConfigError
    if its tokenizer is not on this machine, and what index_folder.make raises.
    """
    return index_folder.make(path, _KIND)


def _build(of_set: SetView, work: Path) -> None:
    """The index of one set, in an empty folder."""
    splits = [IndexedSplit(name, view.table.num_rows) for name, view in of_set.splits.items()]
    documents = sum(split.documents for split in splits)
    if documents > _MOST_DOCUMENTS:
        raise InputError(
            f"{of_set.root} has {documents:,} documents; an index has room for {_MOST_DOCUMENTS:,}."
        )
    tokens = sum(view.entry.stream_tokens for view in of_set.splits.values())
    bits = part_bits(int(tokens * _ENTRIES_A_TOKEN), _PART_ENTRIES)
    unsorted = HashParts(work, bits, _ENTRY)
    base = 0
    for split, view in zip(splits, of_set.splits.values(), strict=True):
        for entries in _entries(of_set, view, base, work):
            unsorted.add(entries)
        base += split.documents
    store = open_store(work)
    parts = [_sorted_part(store, number, unsorted.taken(number)) for number in range(1 << bits)]
    value = TextIndexFile(
        dataset=of_set.manifest.checksum,
        words=word_samples.WORDS,
        grams=word_samples.GRAMS,
        splits=splits,
        parts=parts,
    )
    store.write(text_index.FILE_NAME, text_index.encode(value))


def _entries(of_set: SetView, view: SplitView, base: int, work: Path) -> Iterator[npt.NDArray[Any]]:
    """The entries of a split, some documents at a time. base: number of its first document."""
    if not view.table.num_rows or not view.entry.files:
        return
    stream, held = stream_of(view, work / _STREAM)
    sampler = _Sampler(stream, held, token_text.TokenBytes(*of_set.token_bytes))
    names = ["stream_offset", "tokens", *(["forgotten"] if "forgotten" in view.table.columns else [])]
    for group in range(view.table.num_groups):
        first, _ = view.table.group_rows(group)
        part = view.table.arrow(group, names)
        begin, length = (part.column(name).to_numpy().astype(np.int64) for name in names[:2])
        if len(names) > 2:
            length = np.where(part.column(names[2]).to_numpy(), 0, length)
        edges = np.flatnonzero(np.diff(np.cumsum(length) // _BLOCK_TOKENS)) + 1
        blocks = [
            (base + first + low, begin[low:high], length[low:high])
            for low, high in pairwise([0, *edges.tolist(), len(begin)])
        ]
        yield from in_threads(sampler.entries, blocks, _THREADS)


class _Sampler(msgspec.Struct, frozen=True):
    """Entries out of a stream of tokens, of which `held` are in the shards."""

    stream: npt.NDArray[Any]
    held: int
    tokens: token_text.TokenBytes

    def entries(self, block: tuple[int, Int64Array, Int64Array]) -> npt.NDArray[Any]:
        """Those of consecutive documents: number of the first, where each begins, its tokens."""
        number, begin, length = block
        length = np.clip(self.held - begin, 0, length)
        if not length.any():
            return np.empty(0, _ENTRY)
        start = int(begin[0])
        begin = np.where(length > 0, begin, start)  # what is left out may be behind what is held
        stop = int((begin + length).max())
        utf8, offsets = text_of(self.stream[start:stop], begin - start, length, self.tokens)
        hashes, documents = word_samples.word_samples(utf8, offsets[:-1], offsets[1:])
        entries = np.empty(len(hashes), _ENTRY)
        entries["hash"], entries["document"] = hashes, number + documents
        return entries


def text_of(
    ids: npt.NDArray[Any], begin: Int64Array, length: Int64Array, tokens: token_text.TokenBytes
) -> tuple[UInt8Array, Int64Array]:
    """Normalised texts of documents ids[begin[i] : begin[i] + length[i]]. A part of a character at the end of one that is cut
    becomes U+FFFD.

    ids: (t,) of any integer dtype; begin, length: (n,) int64. Returns (bytes,) uint8 and offsets, (n + 1,) int64.
    """
    utf8, offsets = raw_text_of(ids, begin, length, tokens)
    try:
        normal = normalisation.normalise(None, utf8, offsets)
    except UnicodeDecodeError:
        normal = normalisation.normalise(None, *with_whole_characters(utf8, offsets))
    return normal.utf8, normal.offsets


def with_whole_characters(utf8: UInt8Array, offsets: Int64Array) -> tuple[UInt8Array, Int64Array]:
    """Texts whose bytes that are no character became U+FFFD: (bytes,) uint8, and offsets, (n + 1,) int64."""
    data = utf8.tobytes()
    texts = [data[a:b].decode(errors="replace").encode() for a, b in pairwise(offsets.tolist())]
    return np.frombuffer(b"".join(texts), np.uint8), np.cumsum([0, *map(len, texts)], dtype=np.int64)


def raw_text_of(
    ids: npt.NDArray[Any], begin: Int64Array, length: Int64Array, tokens: token_text.TokenBytes
) -> tuple[UInt8Array, Int64Array]:
    """The texts of documents as they are, as `text_of` takes and returns them: (bytes,) uint8 and (n + 1,) int64. Raises DataError for an
    id that the tokenizer does not have.
    """
    sizes = np.diff(tokens.offsets)
    if len(ids) and int(ids.max()) >= len(sizes):
        raise DataError(
            f"A shard has the token {int(ids.max())}, and the tokenizer has {len(sizes):,}. Run `btlm-data verify`."
        )
    before = np.concatenate([np.zeros(1, np.int64), np.cumsum(sizes[ids])])
    most = before[begin + length] - before[begin]
    return token_text.decode(ids, begin, length, token_text.Table.of(tokens), most)


def _sorted_part(store: Store, number: int, entries: npt.NDArray[Any]) -> IndexPart:
    """A part, written: each document once for a hash."""
    entries = entries[np.lexsort((entries["document"], entries["hash"]))]
    is_new = np.ones(len(entries), np.bool_)
    is_new[1:] = entries[1:] != entries[:-1]
    entries = entries[is_new]
    arrays = {name: np.ascontiguousarray(entries[name]) for name in ("hash", "document")}
    file = columns.write(store, part_name(number), arrays, durable=True)
    return IndexPart(file.name, file.size, file.checksum, len(entries))


# Asking it --------------------------------------------------------------------------------------------------


class TextIndex:
    """The index of a set. Raises DataError, naming the file, where it is damaged."""

    def __init__(self, root: Path, value: TextIndexFile) -> None:
        self._value = value
        self._bits = len(value.parts).bit_length() - 1
        self._store = open_store(root / FOLDER)
        self._parts: dict[int, columns.Columns] = {}

    @staticmethod
    def of(of_set: SetView) -> TextIndex | None:
        """The one of a set; None if it has none, or it is stale."""
        value = text_index.read(of_set.root)
        is_ours = value is not None and (value.words, value.grams) == (word_samples.WORDS, word_samples.GRAMS)
        if value is None or not is_ours or value.dataset != of_set.manifest.checksum:
            return None
        return TextIndex(of_set.root, value)

    def with_passage(self, passage: bytes) -> dict[str, Int64Array] | None:
        """Documents that can have a passage, by split: rows of its table, (n,) int64; None if it has too few words to be
        asked for.
        """
        hashes = _hashes_of(passage)
        if not len(hashes):
            return None
        lists = sorted(self._documents(hashes), key=len)
        documents = lists[0]
        for other in lists[1:]:
            documents = np.intersect1d(documents, other, assume_unique=True)
        return self._by_split(documents)

    def with_any(self, hashes: UInt64Array) -> dict[str, Int64Array]:
        """Documents that have one of some n-grams, by split: rows of its table, (n,) int64. hashes: (n,) uint64, of
        `sample_of`.
        """
        lists = self._documents(np.unique(hashes))
        return self._by_split(np.unique(np.concatenate([np.empty(0, np.uint32), *lists])))

    def _documents(self, hashes: UInt64Array) -> list[npt.NDArray[np.uint32]]:
        """The documents of each hash; hashes ascend."""
        lists: list[npt.NDArray[np.uint32]] = []
        number = bits_of(hashes, 0, self._bits)
        for part in np.unique(number).tolist():
            asked = hashes[number == part]
            opened = self._part(part)
            edges = _edges(opened, asked)
            lists += [opened.rows("document", low, high) for low, high in edges]
        return lists

    def _part(self, number: int) -> columns.Columns:
        if number not in self._parts:
            entry = self._value.parts[number]
            try:
                self._parts[number] = columns.Columns(
                    self._store, Artifact(entry.name, entry.bytes, entry.checksum)
                )
            except DataError as error:
                raise _damaged(error) from None
        return self._parts[number]

    def _by_split(self, documents: npt.NDArray[np.uint32]) -> dict[str, Int64Array]:
        bases = list(accumulate((split.documents for split in self._value.splits), initial=0))
        if len(documents) and int(documents.max()) >= bases[-1]:
            raise DataError(
                f"{self._store.shown} names document {int(documents.max()):,} of {bases[-1]:,}. "
                "Remove that folder, and run `btlm-data index` again."
            )
        edges = np.searchsorted(documents, bases).tolist()
        return {
            split.name: documents[low:high].astype(np.int64) - base
            for split, base, (low, high) in zip(self._value.splits, bases[:-1], pairwise(edges), strict=True)
        }


def _edges(part: columns.Columns, hashes: UInt64Array) -> list[tuple[int, int]]:
    """Where the entries of each hash are, [low, high)."""
    try:
        if len(hashes) > _ONE_BY_ONE:
            column = part["hash"]
            low, high = (np.searchsorted(column, hashes, side=side).tolist() for side in ("left", "right"))
            return list(zip(low, high, strict=True))
        return [(_bound(part, value), _bound(part, value + 1)) for value in hashes.tolist()]
    except columns.DamagedError as error:
        raise _damaged(error) from None


def _bound(part: columns.Columns, value: int) -> int:
    """How many hashes are below a value; only what is looked at is read."""
    low, high = 0, part.shape("hash")[0]
    while low < high:
        middle = (low + high) // 2
        if int(part.rows("hash", middle, middle + 1)[0]) < value:
            low = middle + 1
        else:
            high = middle
    return low


def _damaged(error: Exception) -> DataError:
    return DataError(
        f"The text index is damaged ({str(error).partition('. ')[0]}). Remove the folder {FOLDER} there, and run "
        "`btlm-data index` again; without it, every shard is read."
    )


def _hashes_of(passage: bytes) -> UInt64Array:
    """Hashes that every document with a passage has; none where its words are too few. The first and the last word may be
    parts of longer ones, and are left out.
    """
    inner = re.search(rb"\s(.*)\s", passage, re.DOTALL)
    if inner is None:
        return np.empty(0, np.uint64)
    data = np.frombuffer(inner[1], np.uint8)
    normal = normalisation.normalise(None, data, np.array([0, len(data)], np.int64))
    hashes, _ = word_samples.word_samples(normal.utf8, normal.offsets[:-1], normal.offsets[1:])
    return np.unique(hashes)


def check(root: Path, checksum: str) -> tuple[str | None, str]:
    """What `index_folder.compare` says of the text index of a set."""
    return index_folder.compare(root, checksum, _KIND, _problems, _summary)


def _summary(value: TextIndexFile) -> str:
    documents = sum(split.documents for split in value.splits)
    return f"{value.entries:,} n-grams of {documents:,} documents, as written"


def _problems(store: Store, value: TextIndexFile) -> Iterator[str]:
    for number, part in enumerate(value.parts):
        opened = columns.Columns(store, Artifact(part.name, part.bytes, part.checksum))
        if (problem := _problem(opened, part, number, value)) is not None:
            yield f"{part.name}: {problem}"


def _problem(opened: columns.Columns, part: IndexPart, number: int, value: TextIndexFile) -> str | None:
    hashes, documents = opened["hash"], opened["document"]
    if len(hashes) != part.entries or len(documents) != part.entries:
        return f"it has {len(hashes):,} entries, {part.entries:,} were written"
    if (hashes[1:] < hashes[:-1]).any():
        return "its hashes do not ascend"
    if len(hashes) and set(bits_of(hashes[[0, -1]], 0, len(value.parts).bit_length() - 1).tolist()) != {
        number
    }:
        return "it has hashes of another part"
    total = sum(split.documents for split in value.splits)
    if len(documents) and int(documents.max()) >= total:
        return f"it names document {int(documents.max()):,} of {total:,}"
    return None


def sample_of(
    utf8: UInt8Array, starts: Sequence[int] | Int64Array, stops: Sequence[int] | Int64Array
) -> UInt64Array:
    """Hashes of the sample of normalised texts utf8[starts[i]:stops[i]], (g,) uint64."""
    return word_samples.word_samples(utf8, np.asarray(starts, np.int64), np.asarray(stops, np.int64))[0]


_KIND = IndexKind(FOLDER, WORK_FOLDER, text_index.read, _build)
