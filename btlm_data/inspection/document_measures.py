"""Measure documents.parquet: lengths, order against the source, runs of one source."""

from __future__ import annotations

import math
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from btlm_data.formats.dataset import Dataset
from btlm_data.formats.documents_table import DocumentTable
from btlm_data.inspection.report import Bar, Correlation, Distribution, Lengths, LongestRun, SourceMix

MAX_DOCUMENTS = 2_000_000  # measured per split; more are sampled by row groups spread evenly over the stream
MAX_RANKED = 200_000
QUANTILES = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99, 1.0)
MIX_STRETCHES = 60
_FILE_BITS = 20  # of a document's place in the source as one number
MIX_SOURCES = 8
OTHERS = "(others)"
_COLUMNS = ("tokens", "chars", "bytes", "file", "offset", "source")


class DocumentMeasures(msgspec.Struct, frozen=True):
    """What a table of documents shows."""

    lengths: Lengths
    order: Correlation | None
    runs: LongestRun | None
    mix: SourceMix | None


def measure_documents(table: DocumentTable, manifest: Dataset) -> DocumentMeasures:
    """Figures of up to MAX_DOCUMENTS documents. Raises DataError if the table is damaged."""
    groups = list(range(table.num_groups))
    if table.num_rows > MAX_DOCUMENTS and table.num_groups > 1:
        wanted = max(2, table.num_groups * MAX_DOCUMENTS // table.num_rows)
        groups = sorted({int(group) for group in np.linspace(0, table.num_groups - 1, wanted).round()})
    files = {file.name: number for number, file in enumerate(manifest.inputs)}
    sources: dict[str, int] = {}
    parts: dict[str, list[npt.NDArray[Any]]] = {name: [] for name in _COLUMNS}
    runs = RunCounter()
    previous = -1
    for group in groups:
        columns = table.read(group, _COLUMNS)
        for name, known in (("file", files), ("source", sources)):
            codes, names = columns[name]
            numbers = np.array([known.setdefault(text, len(known)) for text in names] or [0], np.int64)
            columns[name] = numbers[codes]
        runs.add(columns["source"], joined=group == previous + 1)
        previous = group
        for name, arrays in parts.items():
            arrays.append(columns[name])
    whole = {
        name: np.concatenate(arrays) if arrays else np.empty(0, np.int64) for name, arrays in parts.items()
    }
    counts = np.bincount(whole["source"], minlength=len(sources))
    lengths = Lengths(
        documents=len(whole["tokens"]),
        of=table.num_rows,
        tokens=_distribution(whole["tokens"]),
        chars=_distribution(whole["chars"]),
        chars_per_token=_ratio(whole["chars"], whole["tokens"]),
        bytes_per_token=_ratio(whole["bytes"], whole["tokens"]),
    )
    order = _order(whole["file"], whole["offset"].astype(np.int64))
    mix = source_mix(whole["source"], whole["tokens"].astype(np.int64), list(sources))
    return DocumentMeasures(lengths, order, runs.longest_run(list(sources), counts), mix)


def source_mix(
    codes: npt.NDArray[np.int64], tokens: npt.NDArray[np.int64], names: list[str]
) -> SourceMix | None:
    """Shares of the tokens by source along the stream. codes, tokens: of each document, (n,); names: of the
    codes.
    """
    if not len(codes) or not tokens.sum():
        return None
    stretches = min(MIX_STRETCHES, len(codes))
    stretch = np.arange(len(codes)) * stretches // len(codes)
    sums = np.bincount(stretch * len(names) + codes, tokens, minlength=stretches * len(names))
    by_source = sums.reshape(stretches, len(names))
    order = np.lexsort((np.arange(len(names)), -by_source.sum(axis=0)))
    shown = order if len(order) <= MIX_SOURCES else order[: MIX_SOURCES - 1]
    columns = by_source[:, shown]
    listed = [names[k] for k in shown]
    if len(shown) < len(order):
        columns = np.column_stack([columns, by_source[:, order[MIX_SOURCES - 1 :]].sum(axis=1)])
        listed.append(OTHERS)
    totals = np.maximum(columns.sum(axis=1, keepdims=True), 1)
    return SourceMix(listed, np.round(columns / totals, 5).tolist())


def _ratio(above: npt.NDArray[Any], below: npt.NDArray[Any]) -> float | None:
    total = int(below.sum(dtype=np.int64))
    return int(above.sum(dtype=np.int64)) / total if total else None


def _distribution(values: npt.NDArray[Any]) -> Distribution | None:
    if not len(values):
        return None
    return Distribution(
        mean=float(values.mean()),
        total=int(values.sum(dtype=np.int64)),
        quantiles={
            f"{share:g}": float(value)
            for share, value in zip(QUANTILES, np.quantile(values, QUANTILES), strict=True)
        },
        histogram=histogram(values, [0, 1], 0),
    )


def histogram(values: npt.NDArray[Any], edges: list[int], less: int) -> list[Bar]:
    """How many values are in each of [edges[0], edges[1]), and so on; further edges double, less `less`.
    Leading empty bars go. values: (n,) of an integer dtype.
    """
    while edges[-1] <= int(values.max()):
        edges.append(2 * edges[-1] - less)
    of_bars = np.searchsorted(edges, values, side="right")
    counts = np.bincount(of_bars, minlength=len(edges) + 1)[1:-1].tolist()
    first = next((k for k, count in enumerate(counts) if count), 0)
    bars = [Bar(a, b - 1, count) for a, b, count in zip(edges[:-1], edges[1:], counts, strict=True)]
    return bars[first:]


def _order(files: npt.NDArray[np.int64], offsets: npt.NDArray[np.int64]) -> Correlation | None:
    """Rank correlation of the place in the stream with the place in the source."""
    if len(files) > MAX_RANKED:
        chosen = np.linspace(0, len(files) - 1, MAX_RANKED).round().astype(np.int64)
        files, offsets = files[chosen], offsets[chosen]
    if len(files) < 3:
        return None
    rank = np.empty(len(files), np.float64)
    if files.max() < 1 << _FILE_BITS and offsets.max() < 1 << (63 - _FILE_BITS):  # sorted once, not twice
        order = np.argsort(files << (63 - _FILE_BITS) | offsets)
    else:
        order = np.lexsort((offsets, files))
    rank[order] = np.arange(len(files))
    return correlation(rank)


def correlation(rank: npt.NDArray[np.float64]) -> Correlation:
    """Of ranks, in the order they are met, with that order (Spearman's rho; of a random order 0 ± 1/sqrt(n -
    1)). rank: (n,) float64.
    """
    n = len(rank)
    rho = float(np.corrcoef(np.arange(n), rank)[0, 1])
    return Correlation(rho, 1 / math.sqrt(n - 1), n)


class RunCounter:
    """The longest run of documents of one source, over arrays that may follow each other."""

    def __init__(self) -> None:
        self.longest = (0, -1)
        self._open = (0, -1)
        self.documents = 0

    def add(self, codes: npt.NDArray[np.int64], *, joined: bool) -> None:
        """Add the next codes; joined: they follow the ones before directly. codes: (n,) int64."""
        if not len(codes):
            return
        self.documents += len(codes)
        edges = np.concatenate([[0], np.flatnonzero(np.diff(codes)) + 1, [len(codes)]])
        lengths = np.diff(edges)
        if joined and self._open[1] == codes[0]:
            lengths[0] += self._open[0]
        k = int(lengths.argmax())
        self.longest = max(self.longest, (int(lengths[k]), int(codes[edges[k]])))
        self._open = (int(lengths[-1]), int(codes[-1]))

    def longest_run(self, names: list[str], counts: npt.NDArray[np.int64]) -> LongestRun | None:
        """With the length expected of a perfect shuffle; counts: documents of each source. counts is
        (sources,) int64.
        """
        if self.longest[1] < 0:
            return None
        expected = max(expected_run(self.documents, int(count)) for count in counts if count)
        return LongestRun(self.longest[0], names[self.longest[1]], expected)


def expected_run(documents: int, of_source: int) -> float:
    """Expected longest run of one source's documents among all, in random order.

    log_(1/p)(n (1 - p)) + gamma / ln(1/p) - 1/2 for a share p (Schilling, "The Longest Run of Heads", 1990),
    within 1 to their number.
    """
    if of_source >= documents:
        return float(documents)
    p = of_source / documents
    rate = math.log(1 / p)
    expected = (math.log(max(documents * (1 - p), 1)) + np.euler_gamma) / rate - 0.5
    return float(min(max(expected, 1.0), of_source))
