"""Find documents by a passage of their text, out of the shards alone: every shard is read once, several at a
time; or, where there is a text index, those documents that it proposes (text_index.py).

Tokens are compared as bytes of text (kernels/passages.py), so a passage is found wherever it begins
in a token. A passage that continues in another sample is followed through the document.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt

from btlm_data.cleaning.normalize import normalizer
from btlm_data.errors import ConfigError
from btlm_data.formats import text_index
from btlm_data.formats.shard_formats.reader import ShardReader
from btlm_data.lineage.datasets import SetView
from btlm_data.lineage.split_view import Extent, Span, SplitView
from btlm_data.lineage.text_index import SERVED_WORDS, TextIndex
from btlm_data.threads import in_threads

PIECE_BYTES = 4 << 20
MAX_THREADS = 16
MIN_BYTES = 8  # shorter passages stand everywhere


class PassageHit(NamedTuple):
    """A passage found in a document: tokens [first, last) of it hold the passage."""

    query: int
    document: Extent
    tokens: tuple[int, int]


class _Job(msgspec.Struct, frozen=True):
    view: SplitView
    shard: int


def passage_of(text: str, of_set: SetView) -> bytes:
    """A passage as it is in the shards: normalised as the text was. Raises ConfigError for one that is too
    short.
    """
    clean = of_set.manifest.configuration.get("clean")
    method: Any = clean.get("normalize", "none") if isinstance(clean, dict) else "none"
    data = normalizer(method)(text).encode("utf-8", "replace")
    if len(data) < MIN_BYTES:
        raise ConfigError(
            f"The passage {text!r} has {len(data)} bytes, and {MIN_BYTES} are needed to tell documents apart. Give more of it."
        )
    return data


def find_passages(
    of_set: SetView, splits: Sequence[str], passages: Sequence[bytes]
) -> dict[str, list[PassageHit]]:
    """Every hit of the passages, by split, in the order of the stream. Where there is a text index, only documents that
    it proposes are read for passages that it serves; for others, every shard.
    """
    proposed = [index.with_passage(p) for p in passages] if (index := TextIndex.of(of_set)) else []
    served = [number for number, each in enumerate(proposed) if each is not None]
    scanned = [number for number in range(len(passages)) if number not in served]
    hits_by_split: dict[str, list[PassageHit]] = {}
    for name in splits:
        view = of_set.splits[name]
        hits: set[PassageHit] = set()
        if scanned:
            hits |= _numbered(_scanned(of_set, view, [passages[number] for number in scanned]), scanned)
        for number in served:
            each = proposed[number]
            assert each is not None
            hits |= _numbered(_confirmed(of_set, view, each[name], passages[number]), [number])
        hits_by_split[name] = sorted(hits, key=lambda hit: (hit.document.begin, hit.tokens, hit.query))
    return hits_by_split


def why_read_whole(of_set: SetView, passage: bytes) -> str | None:
    """Why every shard is read for a passage although there is a text index; None where that is not so, or there is none."""
    if text_index.read(of_set.root) is None:
        return None
    if (index := TextIndex.of(of_set)) is None:
        return "the text index is of another dataset.json, so every shard was read; `btlm-data index` makes it again"
    if index.with_passage(passage) is None:
        return (
            f"the passage has fewer than {SERVED_WORDS} whole words between its first and its last, too few for the "
            "text index, so every shard was read"
        )
    return None


def _numbered(hits: Iterable[PassageHit], numbers: Sequence[int]) -> set[PassageHit]:
    """Hits of some of the passages, by their numbers among all."""
    return {hit._replace(query=numbers[hit.query]) for hit in hits}


def _needles(of_set: SetView, passages: Sequence[bytes]) -> Any:
    from btlm_data.kernels import passages as kernel

    data, starts = of_set.token_bytes
    return kernel.needles(passages, data, starts[1:], of_set.manifest.tokenizer.eos_id)


def _scanned(of_set: SetView, view: SplitView, passages: Sequence[bytes]) -> set[PassageHit]:
    """Hits of passages in a split, all of which is read."""
    sought = _needles(of_set, passages)
    jobs = [_Job(view, number) for number in range(len(view.entry.files))]
    hits: set[PassageHit] = set()
    for raw in in_threads(partial(_scan, sought=sought), jobs, MAX_THREADS):
        hits |= resolved(view, raw, sought)
    return hits


def _confirmed(
    of_set: SetView, view: SplitView, rows: npt.NDArray[np.int64], passage: bytes
) -> set[PassageHit]:
    """Hits of a passage in some documents of a split. rows: (n,) int64, of its table."""
    from btlm_data.kernels import passages as kernel

    hits: set[PassageHit] = set()
    if not len(rows):
        return hits
    sought = _needles(of_set, [passage])
    for extent in view.extents(rows.tolist()):
        ids = view.document_tokens(extent)
        shown = kernel.find(ids[None, :], np.array([len(ids)], np.int64), np.zeros((0, 0), np.bool_), sought)
        for k in np.flatnonzero(shown.state == kernel.FOUND).tolist():
            hits.add(PassageHit(0, extent, (int(shown.begin[k]), int(shown.end[k]))))
    return hits


class Seen(NamedTuple):
    """What a shard shows of a passage. row: of the split (corpus: stream position of the first token of the piece)."""

    query: int
    row: int
    begin: int
    end: int
    token: int
    is_cut: bool


def _scan(job: _Job, sought: Any) -> list[Seen]:
    from btlm_data.kernels import passages as kernel

    raw: list[Seen] = []
    for first, rows, real, breaks in _pieces(job.view, job.shard):
        hits = kernel.find(rows, real, breaks, sought)
        for k in range(len(hits.query)):
            row = first + int(hits.row[k])
            values = (
                int(hits.begin[k]),
                int(hits.end[k]),
                int(hits.token[k]),
                bool(hits.state[k] == kernel.CUT),
            )
            raw.append(Seen(int(hits.query[k]), row, *values))
    return raw


def _pieces(
    view: SplitView, number: int
) -> Iterator[tuple[int, npt.NDArray[Any], npt.NDArray[np.int64], npt.NDArray[np.bool_]]]:
    """(first row, input ids (n, L), how many are tokens, where other documents begin) of a shard, piece by
    piece.
    """
    no_breaks = np.zeros((0, 0), np.bool_)
    first_row = view.first_row(number)
    with ShardReader(view.path(number)) as shard:
        if view.format == "vsl":
            for start, planes in shard.pieces(PIECE_BYTES):
                real = (planes[:, 1] != 0).sum(1).astype(np.int64)
                masked = planes[:, 1] == 0  # of a document that was forgotten: it is no padding
                if masked.any():
                    used = (planes[:, 4] != 0) | (planes[:, 3] != 0) | ~masked
                    real = np.where(used.any(1), planes.shape[2] - used[:, ::-1].argmax(1), 0).astype(
                        np.int64
                    )
                yield first_row + start, planes[:, 0], real, planes[:, 4] == 0
            return
        if view.is_corpus:
            step = PIECE_BYTES // 4
            for start in range(0, shard.shape[0], step):
                ids = shard.read(start, min(start + step, shard.shape[0]))[None, :]
                yield first_row + start, ids, np.array([ids.shape[1]], np.int64), no_breaks
            return
        step = max(1, PIECE_BYTES // (4 * view.length))
        for start in range(0, shard.shape[0], step):
            ids = shard.first_planes(start, min(start + step, shard.shape[0]))
            samples = view.samples_of(np.arange(first_row + start, first_row + start + len(ids)))
            real = np.clip(view.num_labels - samples * view.length, 0, view.length)
            yield first_row + start, ids, real, no_breaks


def resolved(view: SplitView, raw: Sequence[Seen], sought: Any) -> set[PassageHit]:
    """What shards showed, as tokens of documents; passages that were cut are followed through the document. Raises DataError
    for damaged files.
    """
    hits: set[PassageHit] = set()
    spans: dict[int, list[Span]] = {}
    for hit in raw:
        if view.is_corpus:
            position = hit.row + hit.token
            [extent] = view.between(position, position + 1)
            token = position - extent.begin
            begin, end = hit.begin - hit.token + token, hit.end - hit.token + token
        else:
            if hit.row not in spans:
                spans[hit.row] = view.documents_in(hit.row)
            covering = [span for span in spans[hit.row] if span.positions[0] <= hit.token < span.positions[1]]
            if not covering:  # padding
                continue
            span = covering[0]
            [extent] = view.extents([span.document])
            shift = span.tokens[0] - span.positions[0]
            token, begin, end = hit.token + shift, hit.begin + shift, hit.end + shift
        if not hit.is_cut:
            hits.add(PassageHit(hit.query, extent, (begin, end)))
        elif (whole := _followed(view, extent, token, hit.query, sought)) is not None:
            hits.add(PassageHit(hit.query, extent, whole))
    return hits


def _followed(view: SplitView, extent: Extent, token: int, query: int, sought: Any) -> tuple[int, int] | None:
    """The tokens of a document that hold a passage around one of its tokens, None if they do not."""
    from btlm_data.kernels import passages as kernel

    length = int(sought.ends[query] - (sought.ends[query - 1] if query else 0))
    first = max(0, token - length)  # a token is a byte at least
    ids = view.document_tokens(extent, first, token + length + 1)
    hits = kernel.find(ids[None, :], np.array([len(ids)], np.int64), np.zeros((0, 0), np.bool_), sought)
    chosen = (hits.query == query) & (hits.token == token - first) & (hits.state == kernel.FOUND)
    where = np.flatnonzero(chosen)
    return (int(hits.begin[where[0]]) + first, int(hits.end[where[0]]) + first) if len(where) else None
