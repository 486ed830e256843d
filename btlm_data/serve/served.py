"""A dataset that is served: opened once, read where somebody looks."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import numpy.typing as npt
from msgspec.structs import replace

from btlm_data.errors import DataError
from btlm_data.formats.documents_table import DocumentTable
from btlm_data.formats.shard_formats import get_format
from btlm_data.inspection import lookup, sample_tokens, summary
from btlm_data.inspection.lookup import Rows
from btlm_data.inspection.opening import Opened, OpenShards, open_path
from btlm_data.inspection.report import Report, SetsReport
from btlm_data.inspection.sample_tokens import SampleTokens
from btlm_data.inspection.split_stream import stream_of
from btlm_data.inspection.token_measures import find_tokenizer
from btlm_data.lineage.split_view import SplitView

if TYPE_CHECKING:
    from btlm_data.kernels.passages import Needles
    from btlm_data.lineage.passages import Seen
    from btlm_data.tokenizer import Tokenizer

MAX_HITS = 100
MAX_CUT = 1000  # places where a text may go on in another sample that are looked at
ROWS_AT_ONCE = 512  # of a shard that are searched together
COUNTED_ROWS = 128  # of a split, from which one learns what tokens are frequent
SHOWN_AROUND = 20  # tokens before and behind a text that was found
NO_TOKEN = -1  # instead of the id that ends documents, where none is known
MAX_DOCUMENT_TOKENS = 20_000  # of a document that are shown


class Hit(msgspec.Struct, frozen=True):
    """A sample in which a text was found. position, end: of the tokens that hold it, within the sample. document: row of the
    document that holds it, None where that is not known. around: the text before it, itself, and behind it. goes_on: whether it ends in
    another sample.
    """

    split: str
    sample: int
    position: int
    end: int
    document: int | None = None
    around: tuple[str, str, str] = ("", "", "")
    goes_on: bool = False


class SearchResult(msgspec.Struct, frozen=True):
    """The hits of a search. complete: whether everything was searched; False where it stopped at MAX_HITS."""

    hits: list[Hit]
    complete: bool


class Served:
    """One dataset (of one set), or shards that others made. Methods may be called from several threads."""

    def __init__(self, path: Path, name: str) -> None:
        self.name = name
        self.opened: Opened = open_path(path)
        self._lock = threading.Lock()
        self._rows: dict[str, Rows] = {}
        self._tables: dict[str, DocumentTable | None] = {}

    @property
    def splits(self) -> list[str]:
        """Splits that can be looked at."""
        return [self.opened.chosen] if self.opened.chosen is not None else list(self.opened.splits)

    @cached_property
    def report(self) -> Report:
        """What `inspect` finds out; measured when first requested."""
        report = summary.inspect_one(self.opened.path, num_samples=0)
        assert not isinstance(report, SetsReport)
        return report

    @cached_property
    def tokenizer(self) -> Tokenizer | None:
        """None where it is not available; samples then show ids."""
        return find_tokenizer(self.opened, None).tokenizer

    def rows(self, split: str) -> Rows:
        """Raises DataError if there is no such split."""
        if split not in self.splits:
            raise DataError(f"There is no split {split!r} in {self.name}. It has {', '.join(self.splits)}.")
        if split not in self._rows:
            self._rows[split] = lookup.rows_of(self.opened, split)
        return self._rows[split]

    def num_samples(self, split: str) -> int:
        """Samples of a split."""
        return lookup.num_sequences(self.opened, self.rows(split))

    def table(self, split: str) -> DocumentTable | None:
        """documents.parquet of a split; None where it cannot be read. Hold the lock of `document` while using
        it.
        """
        self.rows(split)
        if split not in self._tables:
            try:
                table = (
                    DocumentTable(self.opened.documents_path(split))
                    if self.opened.manifest is not None
                    else None
                )
            except DataError:
                table = None
            self._tables[split] = table
        return self._tables[split]

    def sample(self, split: str, number: int) -> SampleTokens:
        """One sample, token by token. Raises DataError if there is none."""
        with self._lock:
            return sample_tokens.read(
                self.opened, split, number, self.rows(split), self.tokenizer, self.table(split)
            )

    def document(self, split: str, row: int) -> dict[str, Any]:
        """A row of documents.parquet. Raises DataError if there is none."""
        with self._lock:
            table = self.table(split)
            if table is None:
                raise DataError(f"documents.parquet of {split} is missing, so documents cannot be shown.")
            if not 0 <= row < table.num_rows:
                raise DataError(
                    f"{split} has no document {row:,}. It has {table.num_rows:,}, numbered from 0."
                )
            return next(table.described([row]))

    def document_text(self, split: str, row: int) -> str | None:
        """The text of a document as the model sees it, from the shards; None where they do not hold the
        stream.
        """
        document = self.document(split, row)
        manifest = self.opened.manifest
        if manifest is None or self.tokenizer is None or manifest.format == "vsl":
            return None
        with self._lock, OpenShards() as shards:
            stream = stream_of(self.opened, manifest, split, shards)
            start = document["stream_offset"]
            count = min(document["tokens"], MAX_DOCUMENT_TOKENS)
            ids = stream.tokens(start, start + count)
        return self.tokenizer.decode(ids)

    def first_sample_of(self, split: str, row: int) -> int | None:
        """The sample in which a document begins; None where that is not known."""
        document = self.document(split, row)
        manifest = self.opened.manifest
        if manifest is None or not get_format(manifest.format).follows_stream:
            return None
        total = self.num_samples(split)
        number = document["stream_offset"] // manifest.seq_len
        if number >= total:
            return None
        destinations = lookup.destinations(self.opened, split, np.array([number], np.uint64), total)
        return None if destinations is None else int(destinations[0])

    def documents(
        self, split: str, *, source: str = "", file: str = "", first: int = 0, count: int = 50
    ) -> tuple[list[dict[str, Any]], int | None]:
        """Documents whose source is `source` and whose file's name holds `file`, from row `first` on; and the
        row to continue from.

        "" means any. The second value is None at the end.
        """
        with self._lock:
            table = self.table(split)
            if table is None:
                raise DataError(f"documents.parquet of {split} is missing, so documents cannot be listed.")
            documents: list[dict[str, Any]] = []
            for group in range(table.num_groups):
                begin, end = table.group_rows(group)
                if end <= first:
                    continue
                columns = table.read(group)
                wanted = np.ones(end - begin, bool)
                wanted[: max(0, first - begin)] = False
                for name, test in (("source", source.__eq__), ("file", lambda text: file in text)):
                    if source if name == "source" else file:
                        codes, names = columns[name]
                        wanted &= np.array([bool(test(text)) for text in names] or [False])[codes]
                rows = begin + np.flatnonzero(wanted)
                for row in rows.tolist():
                    if len(documents) == count:
                        return documents, row
                    documents.append(
                        {"row": row, **{key: _value(columns[key], row - begin) for key in columns}}
                    )
            return documents, None

    def search(self, text: str, splits: Sequence[str], workers: int) -> SearchResult:
        """Samples in which `text` is, or begins, letter by letter. Of shards that others made, which do not say what the next
        sample of a document is, only those that hold it whole.

        Raises DataError if the tokenizer is not available.
        """
        if self.tokenizer is None:
            raise DataError(
                "The tokenizer is not on this machine, so text cannot be looked for. Search by source or file."
            )
        from btlm_data.kernels import passages

        blob, starts = self.tokenizer.bytes_of_tokens()
        eos = self.opened.eos_id
        sought = passages.needles(
            [text.encode(errors="replace")], blob, starts[1:], eos if eos is not None else NO_TOKEN,
            self._token_counts(splits, len(starts) - 1),
        )  # fmt: skip
        hits: list[Hit] = []
        cut: list[tuple[str, Seen]] = []
        with ThreadPoolExecutor(workers) as pool:
            pieces = [piece for split in splits for piece in self._pieces(split)]
            for piece, (hits_of_piece, cut_of_piece) in zip(
                pieces, pool.map(lambda piece: self._search_piece(piece, sought), pieces), strict=True
            ):
                hits += hits_of_piece
                cut += [(piece.split, seen) for seen in cut_of_piece]
                if len(hits) >= MAX_HITS:
                    pool.shutdown(cancel_futures=True)
                    return SearchResult(self._resolved(hits[:MAX_HITS], text), False)
        hits += self._across(cut[:MAX_CUT], sought, MAX_HITS - len(hits))
        return SearchResult(self._resolved(hits, text), len(cut) <= MAX_CUT and len(hits) < MAX_HITS)

    def _across(self, cut: Sequence[tuple[str, Seen]], sought: Needles, most: int) -> list[Hit]:
        """Hits that begin in one sample and end in another, of what was seen at the ends of samples."""
        from btlm_data.serve import cut_texts

        manifest = self.opened.manifest
        hits: list[Hit] = []
        if manifest is None or not cut:
            return hits
        views = {split: SplitView(self.opened.root, manifest, split) for split in {split for split, _ in cut}}
        with OpenShards(most=128) as shards:
            for split, seen in cut:
                rows, view = self.rows(split), views[split]
                try:
                    texts = cut_texts.find(view, seen, sought, shards)
                except DataError:  # a damaged file; what is whole in a sample was found all the same
                    continue
                for text in texts:
                    sample, position = text.row - rows.base, text.position
                    if view.is_corpus:
                        sample, position = divmod(
                            position - rows.base, lookup.sequence_length(self.opened, rows)
                        )
                    if 0 <= sample < self.num_samples(split) and len(hits) < most:
                        hits.append(Hit(split, sample, position, position + text.tokens, goes_on=True))
        return hits

    def _resolved(self, hits: Sequence[Hit], text: str) -> list[Hit]:
        """Hits with the text around them, and their documents."""
        assert self.tokenizer is not None
        resolved = []
        for hit in self._with_documents(hits):
            planes = lookup.planes(self.opened, self.rows(hit.split), hit.sample)
            ids = (
                planes[0] if len(planes) == 1 else planes[0][: np.flatnonzero(planes[1]).max(initial=-1) + 1]
            )
            before = self._within(ids[max(0, hit.position - SHOWN_AROUND) : hit.position], last=True)
            behind = self._within(ids[hit.end : hit.end + SHOWN_AROUND], last=False)
            if hit.position >= len(ids):  # padding
                continue
            # The tokens that hold it may have more before and behind.
            holding = text if hit.goes_on else self.tokenizer.decode(ids[hit.position : hit.end])
            left, match, right = holding.partition(text) if text in holding else ("", holding, "")
            around = (self.tokenizer.decode(before) + left, match, right + self.tokenizer.decode(behind))
            resolved.append(replace(hit, around=around))
        return resolved

    def _within(self, ids: npt.NDArray[Any], *, last: bool) -> npt.NDArray[Any]:
        """Ids up to a token that ends documents; last: those behind the last such token."""
        ends = np.flatnonzero(ids == (NO_TOKEN if self.opened.eos_id is None else self.opened.eos_id))
        if not len(ends):
            return ids
        return ids[ends[-1] + 1 :] if last else ids[: ends[0]]

    def _token_counts(self, splits: Sequence[str], vocabulary: int) -> npt.NDArray[np.int64]:
        """How often each token is in the first rows of the splits, (vocabulary,)."""
        counts = np.zeros(vocabulary, np.int64)
        with OpenShards() as shards:
            for piece in (piece for split in splits for piece in list(self._pieces(split))[:1]):
                rows = self.rows(piece.split)
                corpus = rows.are_tokens
                count = COUNTED_ROWS * (lookup.sequence_length(self.opened, rows) if corpus else 1)
                ids = shards.ids(piece.path, 0, min(count, piece.count), axes=1 if corpus else 3).ravel()
                counts += np.bincount(ids[(ids >= 0) & (ids < vocabulary)], minlength=vocabulary)
        return counts

    def _with_documents(self, hits: Sequence[Hit]) -> list[Hit]:
        """Hits with their documents, as far as documents.parquet can tell."""
        manifest = self.opened.manifest
        if manifest is None:
            return list(hits)
        views: dict[str, SplitView] = {}
        resolved = []
        for hit in hits:
            rows = self.rows(hit.split)
            document = None
            try:
                if hit.split not in views:
                    views[hit.split] = SplitView(self.opened.root, manifest, hit.split)
                document = _document_at(views[hit.split], rows.base, hit)
            except DataError:  # a damaged table; the text was found all the same
                pass
            resolved.append(replace(hit, document=document))
        return resolved

    def _pieces(self, split: str) -> Iterator[_Piece]:
        rows = self.rows(split)
        for number, path in enumerate(rows.files):
            yield _Piece(split, path, rows.first[number], rows.end(number) - rows.first[number])

    def _search_piece(self, piece: _Piece, sought: Needles) -> tuple[list[Hit], list[Seen]]:
        """The hits of a shard, and what fits as far as it is in a sample, but is cut by the sample's end."""
        from btlm_data.kernels import passages
        from btlm_data.lineage.passages import Seen

        rows = self.rows(piece.split)
        corpus = rows.are_tokens
        length = lookup.sequence_length(self.opened, rows)
        step = ROWS_AT_ONCE * (length if corpus else 1)
        no_breaks = np.zeros((0, 0), np.bool_)
        hits: list[Hit] = []
        cut: list[Seen] = []
        with OpenShards() as shards:
            for begin in range(0, piece.count, step):
                data = shards.ids(piece.path, begin, min(begin + step, piece.count), axes=1 if corpus else 3)
                ids = data[None, :] if corpus else data
                real = np.full(len(ids), ids.shape[1], np.int64)
                matches = passages.find(ids, real, no_breaks, sought, first_of_row=not corpus)
                is_whole = matches.state == passages.FOUND
                places = (matches.row, matches.begin, matches.end)
                for row, token, end in zip(*(values[is_whole].tolist() for values in places), strict=True):
                    index = piece.first + begin + (token if corpus else row)
                    sample, position = divmod(index, length) if corpus else (index, token)
                    if not hits or hits[-1].sample != sample:
                        hits.append(Hit(piece.split, sample, position, position + end - token))
                base = rows.base + piece.first + begin
                at_ends = (matches.row, matches.begin, matches.end, matches.token)
                for row, token, end, anchor in zip(
                    *(values[~is_whole].tolist() for values in at_ends), strict=True
                ):
                    cut.append(Seen(0, base + (0 if corpus else row), token, end, anchor, True))
                if len(hits) >= MAX_HITS:
                    break
        return hits, cut


def _document_at(view: SplitView, base: int, hit: Hit) -> int | None:
    """The row of the document at the position of a hit. base: rows of the split before those served."""
    if view.is_corpus:
        position = base + hit.sample * view.length + hit.position
        return next((extent.row for extent in view.between(position, position + 1)), None)
    for span in view.documents_in(base + hit.sample):
        if span.positions[0] <= hit.position < span.positions[1]:
            return span.document
    return None


class _Piece(msgspec.Struct, frozen=True):
    """A shard to be searched. first: its first row in the split; count: its rows."""

    split: str
    path: Path
    first: int
    count: int


def _value(column: Any, k: int) -> Any:
    return column[1][column[0][k]] if isinstance(column, tuple) else int(column[k])
