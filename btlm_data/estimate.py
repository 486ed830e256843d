"""What a run is expected to cost, step by step, before any of it is done.

A Workload says how much there is and how it is to be prepared. Each stage has an `estimate(workload)` beside
its work (stages/), which says what its steps read, write, hold and compute. The amounts follow from how many
documents, bytes and tokens go through; nobody can know before reading the texts how many of them are
duplicates, so all estimates are of a corpus without any, upper bounds after the stage `dedupe`, unless Workload.in_components
says how many have a text like theirs: then the steps that compare them are in it.

CPU time is RATES times these amounts. `python -m tests.benchmarks.rates CORPUS` measures them again.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

import msgspec
from msgspec.structs import replace

from btlm_data.recipe.models import Run, Settings
from btlm_data.records.base import BATCH_BYTES


class Rates(msgspec.Struct, frozen=True):
    """CPU seconds of one core for each unit of work, and bytes.

    Measured by tests/benchmarks/rates.py (the process's user and system time between a step's start and its
    end, one worker, compiled kernels) on a core of an AMD EPYC server with AVX2, on 147 MB of Debian's
    documentation (tools/build_corpus.py, 15,000 documents) and on 300,000 documents of 320 characters; about
    the larger of the two figures. `join_document`, `rank_document` and `place_document` are of
    3 x 10^7 documents of which 30 % are joined; `member_byte`, `pair`, `compare_byte` and `decide_document` are of 268 MB of
    documentation of which half is copies (bench_verify). `--plan` replaces those that depend most on texts and settings by what it
    measures on a sample of the real input.
    """

    start: float = 0.7  # of a run: libraries, compiled kernels, checking the tokenizer
    file: float = 2e-5  # of listing one source file
    task: float = 0.002  # of any task: files opened and published, its receipt
    clean_byte: float = 1.6e-8  # of text: decompress, parse, normalise, sketch, tokenize (measured by --plan)
    contamination_byte: float = 1.0e-8  # of text: look up its 13-word n-grams
    evaluation_byte: float = 6.0e-7  # of evaluation sets, as stored
    split_key: float = 2.5e-8  # a key (an exact hash or a band of a document) to its partition
    sort_key: float = 1.5e-8  # a key among the equal ones
    join_document: float = 2.2e-8  # joined, and written, on one core
    rank_document: float = 9.0e-8  # best copies, sizes and groups of components, on several
    star_document: float = 1.0e-8  # in one step of joining in ranges: looked at, with its edges
    unite_member: float = 7.0e-7  # a document in a component, in all steps that follow of joining in ranges
    fate_document: float = 3.0e-8  # of any task that reads or writes a few bytes of a document
    place_document: float = 1.0e-8  # its fate and copies put in their place
    member_byte: float = 4.5e-9  # of text in components: put together from tokens, normalised
    pair: float = 5.0e-8  # a nominated pair put in the order of groups, and ranked
    pack_text_byte: float = 4.5e-9  # of text that stays, for an index: from tokens, normalised, compressed
    compare_byte: float = 6.0e-9  # of text in components: its features counted
    decide_document: float = 3.0e-6  # in a component: decided, and a row of removals.parquet
    holdout_document: float = 1.0e-8
    sha256_document: float = 2.5e-7  # compare the hash of a text with those of the holdout
    scatter_document: float = 2.5e-7  # order keys, and the ledger
    order_document: float = 1.0e-7  # sort one document's place in a stream
    text_byte: float = 2.0e-8  # of kept text: compressed, and written twice (--emit-text)
    move_byte: float = 2.3e-9  # of tokens laid down in another order, read and written
    pack_byte: float = 3.0e-9  # of the files that rows, or pieces of rows, are put in
    shard_token: float = 2.2e-8  # (measured by --plan, in the format that is requested)
    move_document: float = 4.0e-7  # a row of documents.parquet to its place in the stream
    copied_byte: float = 1.5e-9  # copied from one file to another, with both checksums
    table_document: float = 8.0e-7  # a row of documents.parquet
    shard_token_bytes: float = 2.0  # of the files, for each token (measured by --plan)
    text_ratio: float = 0.4  # bytes of compressed text for each byte of text
    process_bytes: int = 260_000_000  # what a process holds beside its arrays: libraries, kernels, tokenizer


RATES = Rates()
COPYING_CORES = 2.5  # what is read, hashed and written is so in a thread each


class Volume(msgspec.Struct, frozen=True):
    """How much there is. stored_bytes: of the source's files; parts: tasks that read them. documents,
    text_bytes (UTF-8) and tokens (with one EOS for each document): of what passes cleaning.
    """

    files: int
    parts: int
    stored_bytes: int
    documents: int
    text_bytes: int
    tokens: int

    def scaled(self, factor: float) -> Volume:
        """`factor` times as much of the same kind."""
        return Volume(*(round(getattr(self, name) * factor) for name in self.__struct_fields__))


class Workload(msgspec.Struct, frozen=True):
    """What is prepared and how; what every estimate is made from.

    repeats: how often a document is in the streams on average (1 but for `mix`). token_bytes: of a token in
    the work folder. eos_id: as shards need it. splits: number of splits that can have documents.
    evaluation_bytes: of the files of evaluation sets. in_components: share of the documents that are nominated as duplicates.
    """

    volume: Volume
    settings: Settings
    run: Run
    rates: Rates = RATES
    repeats: float = 1.0
    token_bytes: int = 2
    eos_id: int = 0
    splits: int = 1
    evaluation_bytes: int = 0
    in_components: float = 0.0

    @property
    def blocks(self) -> int:
        """Blocks that cleaning leaves."""
        return max(self.volume.parts, -(-self.volume.text_bytes // BATCH_BYTES))

    @property
    def stream(self) -> Volume:
        """What is in the streams: the documents as often as the mix repeats them."""
        return self.volume.scaled(self.repeats)

    def scaled(self, factor: float) -> Workload:
        """The same preparation of `factor` times as much."""
        return replace(self, volume=self.volume.scaled(factor))


class Estimate(msgspec.Struct, frozen=True):
    """What one step is expected to take. Bytes, and CPU seconds of one core.

    step: its name, or (of a sum) its stage's. tasks: that can run at the same time. documents: that go in.
    source_bytes: read of the source, as stored. read_bytes: read from the work folder, in so many reads (of a
    column, or a stretch of one; opening a file is apart). work_bytes: written
    there, of which (or of what earlier steps wrote) freed_bytes are removed when the step is done. out_bytes:
    written to the folder of the dataset, or of the text. memory_bytes: of one process that does a task,
    beside the pages of mapped files, which the system takes back when it needs them. cpu_seconds: of all
    tasks together. cores: that one task keeps busy, on average, where they are free. is_beside: whether its tasks are done
    among those of the step before it.
    """

    step: str
    tasks: int
    documents: int = 0
    source_bytes: int = 0
    read_bytes: int = 0
    reads: int = 0
    work_bytes: int = 0
    freed_bytes: int = 0
    out_bytes: int = 0
    memory_bytes: int = 0
    cpu_seconds: float = 0.0
    cores: float = 1.0
    is_beside: bool = False

    @property
    def stage(self) -> str:
        """The stage that the step belongs to."""
        return self.step.partition(".")[0]

    def seconds(self, workers: int) -> float:
        """Wall seconds with so many workers, where nothing is waited for but the processors."""
        return self.cpu_seconds / max(1.0, min(workers, self.tasks * self.cores))


def by_stage(estimates: Iterable[Estimate]) -> dict[str, Estimate]:
    """One sum for each stage, in order: amounts and tasks added up; documents, memory and cores are the largest
    of its steps.
    """
    stages: dict[str, list[Estimate]] = defaultdict(list)
    for estimate in estimates:
        stages[estimate.stage].append(estimate)
    return _sums(stages)


def by_run_step(estimates: Iterable[Estimate]) -> dict[str, Estimate]:
    """The steps as a run knows them, in order: what is done among the tasks of a step is in its sum."""
    steps: dict[str, list[Estimate]] = {}
    for estimate in estimates:
        if estimate.is_beside:
            steps[next(reversed(steps))].append(estimate)
        else:
            steps[estimate.step] = [estimate]
    return _sums(steps)


def _sums(steps: Mapping[str, Sequence[Estimate]]) -> dict[str, Estimate]:
    largest = {"documents", "memory_bytes", "cores"}
    return {
        name: Estimate(
            name,
            **{
                field: (max if field in largest else sum)(getattr(part, field) for part in parts)
                for field in Estimate.__struct_fields__
                if field not in ("step", "is_beside")
            },
        )
        for name, parts in steps.items()
    }


def peak_work_bytes(estimates: Iterable[Estimate]) -> int:
    """The most bytes that are in the work folder at once."""
    held = peak = 0
    for estimate in estimates:
        held += estimate.work_bytes
        peak = max(peak, held)
        held -= estimate.freed_bytes
    return peak
