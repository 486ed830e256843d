"""What `btlm-data inspect` finds out, as one typed value: what is printed, and with --json what programs get
(docs/inspect.md).

Shares are fractions of 1, sizes are bytes, `None` means not known. Texts and names are as they are in the
data: make control characters visible before showing them on a terminal.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from btlm_data.formats.dataset import LeftOut, SetPosition, Tokenizer
from btlm_data.formats.ledger import Amounts
from btlm_data.formats.provenance import StepTime


class Identity(msgspec.Struct, frozen=True):
    """What dataset.json says the dataset is."""

    format_version: int
    fingerprint: str
    checksum: str
    format: str
    seq_len: int
    shuffle: str
    seed: int
    tail: str
    tokenizer: Tokenizer
    set: SetPosition
    left_out: list[LeftOut]
    configuration: dict[str, Any]


class Split(msgspec.Struct, frozen=True):
    """Counts of one split (of one shard, where the path names one).

    samples: what a reader makes of it. label_tokens: real label positions; measured: "all", or "N rows" where
    they are estimated from a sample. packing_efficiency: real positions of all. layout, dtype, shape, chunks,
    compression: of the first readable shard.
    """

    files: int
    samples: int
    seq_len: int
    documents: int | None
    stream_tokens: int | None
    label_tokens: int | None
    label_tokens_measured: str
    positions: int
    packing_efficiency: float | None
    disk_bytes: int
    bytes_per_token: float | None
    layout: str | None
    dtype: str | None
    shape: list[int] | None
    chunks: list[int] | None
    compression: str | None
    hdf5_shuffle: bool | None


class Shares(msgspec.Struct, frozen=True):
    """A source's shares of a split."""

    documents: float
    bytes: float
    tokens: float


class Source(msgspec.Struct, frozen=True):
    """What one source contributes to a split."""

    source: str
    documents: int
    bytes: int
    tokens: int
    shares: Shares


class Stage(msgspec.Struct, frozen=True, rename={"received": "in"}):
    """One stage of the ledger, over all splits and sources."""

    stage: str
    received: Amounts
    added: dict[str, Amounts]
    dropped: dict[str, Amounts]
    out: Amounts


class TokenShare(msgspec.Struct, frozen=True):
    """One of the most common tokens. text: None where the tokenizer is not available."""

    id: int
    share: float
    text: str | None = None


class Bar(msgspec.Struct, frozen=True, rename={"first": "from", "last": "to"}):
    """A bar of a histogram: how many have a value from `first` to `last`, both included."""

    first: int
    last: int
    count: int


class Rank(msgspec.Struct, frozen=True):
    """The share of all tokens that is the token of this rank; 1 is the most common one's."""

    rank: int
    share: float


class Repeat(msgspec.Struct, frozen=True):
    """The longest run of one token within a row. text: None where the tokenizer is not available."""

    id: int
    length: int
    text: str | None = None


class Tokens(msgspec.Struct, frozen=True):
    """Ids of a seeded sample of rows.

    all: whether every row was read. mask_share: positions with mask 1. used_share: positions that are not
    padding. ranks: of up to 60 ranks, evenly spread on a logarithmic scale. documents_per_sample: histogram
    of how many documents the rows have a part of; None where the end of a document is unknown.
    """

    rows: int
    all: bool
    tokens: int
    distinct: int
    min: int
    max: int
    mask_share: float
    used_share: float
    eos_share: float | None
    document_parts_per_sample: float | None
    most_common: list[TokenShare]
    entropy_bits: float
    ranks: list[Rank]
    longest_repeat: Repeat
    documents_per_sample: list[Bar] | None
    vocabulary_share: float | None = None


class Distribution(msgspec.Struct, frozen=True):
    """Mean, quantiles (by their share, "0.5" is the median), and a histogram over powers of two."""

    mean: float
    total: int
    quantiles: dict[str, float]
    histogram: list[Bar]


class Lengths(msgspec.Struct, frozen=True):
    """Lengths of documents. documents: how many were measured; of: how many there are."""

    documents: int
    of: int
    tokens: Distribution | None
    chars: Distribution | None
    chars_per_token: float | None
    bytes_per_token: float | None


class Correlation(msgspec.Struct, frozen=True):
    """Spearman's rank correlation of two orders; a perfect shuffle gives 0 ± standard_deviation."""

    rank_correlation: float
    standard_deviation: float
    measured_on: int


class LongestRun(msgspec.Struct, frozen=True):
    """Most consecutive documents of one source. expected: of a perfect shuffle."""

    longest_run: int
    source: str
    expected: float


class SourceMix(msgspec.Struct, frozen=True):
    """Which sources are where in the stream. sources: the largest, and "(others)" where there are more.

    parts: shares of the tokens of each stretch of the stream by source, in order; stretches have equally many
    documents.
    """

    sources: list[str]
    parts: list[list[float]]


class Neighbours(msgspec.Struct, frozen=True, rename={"continued": "continue"}):
    """Share of samples whose last label is the next row's first input. expected: by chance."""

    continued: float
    expected: float
    measured_on: int


class Shuffle(msgspec.Struct, frozen=True):
    """How well a split is mixed.

    documents: their order against the source's. samples: their order against the stream's.
    """

    documents: Correlation | None = None
    runs: LongestRun | None = None
    samples: Correlation | None = None
    neighbours: Neighbours | None = None
    mix: SourceMix | None = None


class Clusters(msgspec.Struct, frozen=True):
    """Clusters of duplicates in clusters.parquet. histogram: clusters by number of documents."""

    clusters: int
    documents: int
    largest: int
    histogram: list[Bar]


class LargeCluster(msgspec.Struct, frozen=True):
    """One of the largest clusters, and the document that stands for it."""

    documents: int = 0
    file: str = "?"
    offset: int = 0
    source: str = "?"


class Removal(msgspec.Struct, frozen=True):
    """A removed document, and the one kept for it. kept_file: None where that is in an index of earlier runs."""

    reason: str
    similarity: float
    file: str
    line: int
    kept_file: str | None
    kept_line: int | None


class SimilarityBar(msgspec.Struct, frozen=True):
    """How many removed documents have a similarity from `low` up to `high`."""

    low: float
    high: float
    count: int


class Duplicates(msgspec.Struct, frozen=True):
    """What deduplication found. dropped: by reason. clusters: None where clusters.parquet is missing.

    similarities: of removed documents whose texts were compared with those kept for them. border: the least
    alike of them.
    """

    method: str
    dropped: dict[str, Amounts]
    clusters: Clusters | None
    largest_clusters: list[LargeCluster]
    similarities: list[SimilarityBar] = []
    border: list[Removal] = []


class Example(msgspec.Struct, frozen=True):
    """The beginning of a document that was dropped."""

    text: str
    file: str | None = None
    offset: int | None = None
    source: str | None = None


class Reject(msgspec.Struct, frozen=True):
    """A record that could not be read. line: from 1."""

    file: str
    line: int
    detail: str


class Disk(msgspec.Struct, frozen=True):
    """Bytes on disk of the shards, the tables of documents, and dataset.json with the other files that it
    lists.
    """

    shards: int
    documents: int
    other: int

    @property
    def total(self) -> int:
        """All of them."""
        return self.shards + self.documents + self.other


class DocumentPart(msgspec.Struct, frozen=True):
    """A document of a sample, and the part of it that is there.

    document: its row in documents.parquet. line: from 1. offset: bytes into the decompressed file.
    token_range: [first, last) of its tokens. positions: [first, last) of the sample.
    """

    document: int
    file: str
    line: int
    offset: int
    source: str
    bytes: int
    chars: int
    tokens: int
    token_range: tuple[int, int]
    positions: tuple[int, int]


class Segment(msgspec.Struct, frozen=True):
    """A stretch of a sample that is of one document.

    document: number of its entry in the sample's `documents`. ids: the first tokens, where there is no text.
    """

    positions: tuple[int, int]
    ends_document: bool
    document: int
    text: str | None
    ids: list[int] | None = None


class Sample(msgspec.Struct, frozen=True):
    """One sample. documents: None where they cannot be named; `note` says why. file: None where it could not
    be read.
    """

    split: str
    sample: int
    note: str | None = None
    file: str | None = None
    row: int = 0
    positions: int = 0
    real_positions: int = 0
    stream_sample: int | None = None
    stream_positions: tuple[int, int] | None = None
    documents: list[DocumentPart] | None = None
    segments: list[Segment] = []


class Verdict(msgspec.Struct, frozen=True):
    """What a figure means. subject: what it is about; split: of which split, None for the whole dataset.

    advice: what to do about a warning.
    """

    subject: Literal["shuffle", "size", "packing", "records", "encoding", "duplicates", "sources", "files"]
    split: str | None
    level: Literal["good", "warning", "unknown"]
    text: str
    advice: str = ""


class Report(msgspec.Struct, frozen=True):
    """A dataset of one set, or shards that others made (kind "shards": what only a dataset.json says is empty
    or None).

    Dictionaries are by split, train first. read: what each source had before anything was dropped, over all
    splits. examples, rejects: some of each reason. source, steps, program, libraries: from provenance.json.
    unknown: what could not be found out, and why. identical_shards: of each split, names of shards with the
    same content.
    """

    kind: Literal["dataset", "shards"]
    path: str
    identity: Identity | None
    foreign: dict[str, Any]
    tokenizer_guess: str | None
    splits: dict[str, Split]
    tokens: dict[str, Tokens]
    lengths: dict[str, Lengths]
    shuffle: dict[str, Shuffle]
    read: list[Source]
    sources: dict[str, list[Source]]
    ledger: list[Stage]
    duplicates: Duplicates | None
    examples: dict[str, list[Example]]
    rejects: dict[str, list[Reject]]
    source: dict[str, Any] | None
    steps: list[StepTime]
    program: str | None
    libraries: dict[str, str]
    finished: str | None
    disk: Disk
    identical_shards: dict[str, list[str]]
    samples: list[Sample]
    verdicts: list[Verdict]
    unknown: list[str]

    @property
    def masked(self) -> int:
        """Label positions of forgotten documents, which have lost their loss."""
        stages = (stage for stage in self.ledger if stage.stage == "forget")
        return sum(amounts.tokens for stage in stages for amounts in stage.dropped.values())


class SetsReport(msgspec.Struct, frozen=True):
    """A folder of several sets: a report for each."""

    path: str
    sets: dict[str, Report]
    unknown: list[str]
    kind: Literal["sets"] = "sets"


class GenerationSplit(msgspec.Struct, frozen=True):
    """A split of a generation (of a set, where there are several). first_sample: the number of its first sample,
    counted through all generations; None for a corpus.
    """

    generation: int
    set: str
    split: str
    documents: int
    tokens: int
    samples: int | None
    first_sample: int | None
    bytes: int


class GenerationsReport(msgspec.Struct, frozen=True):
    """A dataset that documents were added to: its splits by generation, and a report for each, the oldest first."""

    path: str
    splits: list[GenerationSplit]
    generations: dict[str, Report | SetsReport]
    unknown: list[str]
    kind: Literal["generations"] = "generations"
