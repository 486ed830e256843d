"""Find duplicates and near-duplicates over all sources and splits, and decide which documents stay.

reads   every block's .sketch (exact hashes, band keys [, signatures]) and .docs; an index of earlier runs, where asked for
writes  work/dedupe/fates.cols, clusters.cols, clusters.parquet (formats/duplicates.py); the index
unit    group of blocks (split) . range of keys (sort) . whole (exact, cluster)
balance one survivor per component of train documents; none where the component holds a validation or test document

    split exact   exact hashes, partitioned by range              |  all of this in one go, in memory, if it fits: same bytes
    sort exact    equal hashes -> edges                           |
    exact         edges -> the first document of each text        |
    split bands   band keys of first documents, partitioned       |
    sort bands    equal keys -> edges (each to its bucket's first) |
    cluster       edges -> components -> fates, clusters.parquet

Documents sharing a band are connected (design, section 5). Exact duplicates are found first and only the first of each text
reaches the bands. All steps are pure functions of files; which partitions there are depends on the memory, the outcome never does.

Memory of `cluster`: 4 bytes a document for the union-find, 1 of flags, 1 of fate, and 8 for the document to keep (`longest`,
`source-priority`) or the cluster's size; 4 more are mapped from disk. The other steps hold what Run.memory_per_worker allows.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numba
import numpy as np
import numpy.typing as npt
import xxhash

from btlm_data.advance import advance
from btlm_data.errors import ConfigError, SafetyStop
from btlm_data.fingerprint import digest
from btlm_data.formats import atomic, columns, receipts, signatures
from btlm_data.formats.duplicates import Keys, Links, read_partition, write_partitions, writing_clusters
from btlm_data.kernels import buckets, union_find
from btlm_data.recipe.models import DedupeSettings, Run
from btlm_data.stages.blocks import Block
from btlm_data.stages.fates import Fate
from btlm_data.task import Counts, Step, Task

VERSION = 1
FATES = "dedupe/fates.cols"
CLUSTERS = "dedupe/clusters.cols"
CLUSTERS_PARQUET = "dedupe/clusters.parquet"
_EXACT = "dedupe/exact.cols"
_BLOCKS = "dedupe/blocks.json"
_FOLDERS = (
    "dedupe/exact-split",
    "dedupe/exact-sort",
    "dedupe/bands-split",
    "dedupe/bands-sort",
    "dedupe/index",
)
_KEPT, _EXACT_DUPLICATE, _NEAR_DUPLICATE = int(Fate.KEPT), int(Fate.EXACT_DUPLICATE), int(Fate.NEAR_DUPLICATE)
_DUPLICATE_OF_HOLDOUT, _NEAR_DUPLICATE_OF_HOLDOUT = (
    int(Fate.DUPLICATE_OF_HOLDOUT),
    int(Fate.NEAR_DUPLICATE_OF_HOLDOUT),
)
_IN_INDEX = int(Fate.IN_INDEX)
MAX_DOCUMENTS = 2**32 - 1
SHOWN_CLUSTERS = 10
# What sorting holds per key: the key, its ordinal, the packed number that is sorted, and the edges it may give.
_SORT_BYTES = {"exact": 8 + 8 + 4 + 8 + 8, "bands": 8 + 4 + 8 + 8}
_SPLIT_BYTES = {"exact": 20, "bands": 12}  # what splitting holds (and writes) per key
_GROUP_DOCUMENTS = 2**20  # most documents of one split task, so that there are tasks enough for many workers
_VERIFY_ROWS = 2**14  # signatures held at once by a verification: 8 MB at 128 permutations
_INDEX_CANDIDATES = 16  # documents of an index compared for one key by a verification
UInt8Array = npt.NDArray[np.uint8]
UInt32Array = npt.NDArray[np.uint32]
UInt64Array = npt.NDArray[np.uint64]
BoolArray = npt.NDArray[np.bool_]


class Context(Protocol):
    """The part of a run that this stage needs."""

    @property
    def work_dir(self) -> Path:
        """Where everything is written."""

    def step(self, step: Step) -> list[Counts]:
        """Run a step, skipping what is done; counts in task order."""


@dataclass(frozen=True)
class ClusterSettings:
    """What every task of the stage needs; picklable. memory_bytes is the only setting that does not decide the outcome."""

    dedupe: DedupeSettings
    memory_bytes: int
    index_run: str | None = None

    @property
    def whats(self) -> tuple[str, ...]:
        """Kinds of keys: exact hashes, then (unless method is exact) bands."""
        return ("exact", "bands") if self.dedupe.method == "minhash" else ("exact",)

    @property
    def kind(self) -> signatures.Kind:
        """What an index must agree with."""
        d = self.dedupe
        return (
            signatures.Kind(d.scheme, d.bands, d.rows, d.num_perm)
            if d.method == "minhash"
            else signatures.Kind("exact", 0, 0, 0)
        )

    @property
    def needed(self) -> int:
        """Equal values of a signature that make its estimated similarity reach the threshold."""
        return int(np.ceil(self.dedupe.threshold * self.dedupe.num_perm - 1e-9))

    def index(self) -> signatures.Index | None:
        """The index to match against, opened."""
        if self.dedupe.index is None:
            return None
        assert self.index_run is not None
        return signatures.Index(Path(self.dedupe.index), self.index_run, self.kind)

    def keys_per_document(self, what: str) -> int:
        """Keys of one document."""
        return 1 if what == "exact" else self.dedupe.bands


# The plan ---------------------------------------------------------------------------------------------------------


def run(
    context: Context, blocks: Sequence[Block], lineage: str, dedupe: DedupeSettings, how: Run
) -> tuple[str, dict[str, Any], str, Counts]:
    """Deduplicate all blocks. Returns (path of the fates, summary for the manifest, lineage of the fates, what went and why).

    Raises SafetyStop if a source would lose more than `max_removed` of its bytes, ConfigError for an index of another kind.
    """
    root = context.work_dir
    total = blocks[-1].last_ordinal if blocks else 0
    if total > MAX_DOCUMENTS:
        raise ConfigError(
            f"The corpus has {total:,} documents; deduplication numbers them with 32 bits, up to {MAX_DOCUMENTS:,}. "
            "Prepare it in parts, each with --dedupe-index, so that later parts are deduplicated against earlier ones."
        )
    settings = ClusterSettings(dedupe, how.memory_per_worker)
    if dedupe.index is not None:
        settings = replace(settings, index_run=_content(blocks, root, settings))
    index = settings.index()
    lineage = digest(VERSION, lineage, _what(dedupe), settings.index_run, index.earlier if index else None)
    atomic.write_json(
        root / _BLOCKS, [[b.stem, b.split, b.first_ordinal, b.num_documents] for b in blocks], durable=False
    )
    steps = _Steps(blocks, settings, lineage)
    if index is not None and not index.is_added and not any((root / "dedupe/index").glob("*.cols")):
        for step in (
            steps.cluster(),
            steps.sort("bands"),
            steps.exact(),
        ):  # done before, but what they left for the index is gone
            for task in step.tasks:
                receipts.forget(root, step.name, task.id)

    final = steps.cluster()
    if not _proved(final, root, lineage) and not steps.fits_in_memory:
        if "bands" in settings.whats:
            bands = steps.sort("bands")
            if not _proved(bands, root, lineage):
                _exact(context, steps)
                context.step(steps.split("bands"))
                context.step(bands)
                shutil.rmtree(root / "dedupe/bands-split", ignore_errors=True)
        else:
            _exact(context, steps)
    [counts] = context.step(final)
    summary: dict[str, Any] = counts.extra["summary"]
    check_safety(counts, dedupe.max_removed, how.accept_removal)
    if index is not None:
        keep_signatures = "bands" in settings.whats
        files = sorted((root / "dedupe/index").glob("*.cols"))
        index.add(files, [(b.first_ordinal, b.sketch(root)) for b in blocks if keep_signatures], total)
    for folder in _FOLDERS:
        shutil.rmtree(root / folder, ignore_errors=True)
    return FATES, summary, lineage, counts


def _exact(context: Context, steps: _Steps) -> None:
    exact = steps.exact()
    if not _proved(exact, context.work_dir, steps.lineage):
        context.step(steps.split("exact"))
        context.step(steps.sort("exact"))
        context.step(exact)
    for folder in ("dedupe/exact-split", "dedupe/exact-sort"):
        shutil.rmtree(context.work_dir / folder, ignore_errors=True)


def _what(dedupe: DedupeSettings) -> dict[str, Any]:
    """The settings that decide the fates of given sketches."""
    return dedupe.model_dump(mode="json", exclude={"max_removed", "index"})


def _content(blocks: Sequence[Block], root: Path, settings: ClusterSettings) -> str:
    """A run's name in an index: its documents and the kind of its sketches, so that other tokenizers or lengths are the same run."""
    hasher = xxhash.xxh3_128(digest(settings.kind.__dict__, settings.dedupe.holdout).encode())
    for block in blocks:
        hasher.update(block.split.encode())
        hasher.update(np.ascontiguousarray(columns.read(block.sketch(root), ["exact"])["exact"]).data)
    return hasher.hexdigest()


def _proved(step: Step, root: Path, lineage: str) -> bool:
    """Whether every task of a step is done for this lineage, though what it was made from may be gone."""
    for task in step.tasks:
        receipt = receipts.read(root, step.name, task.id)
        if (
            receipt is None
            or receipt.counts["extra"].get("lineage") != lineage
            or not receipts.proves(receipt, receipt.digest, root)
        ):
            return False
    return True


class _Steps:
    """The steps over one list of blocks; which groups and partitions there are follows from the memory."""

    def __init__(self, blocks: Sequence[Block], settings: ClusterSettings, lineage: str) -> None:
        self.blocks, self.settings, self.lineage = blocks, settings, lineage
        self.num_documents = blocks[-1].last_ordinal if blocks else 0
        self.budget = (
            settings.memory_bytes // 2
        )  # the other half is the interpreter, libraries and the pages of mapped files
        in_memory = max(
            self.num_documents * settings.keys_per_document(w) * _SORT_BYTES[w] for w in settings.whats
        )
        self.fits_in_memory = in_memory + 16 * self.num_documents <= self.budget

    def log_partitions(self, what: str) -> int:
        """Partitions are 2^k; each holds a quarter to half of the memory, so that uneven ones still fit."""
        total = self.num_documents * self.settings.keys_per_document(what) * _SORT_BYTES[what]
        return max(0, (-(-2 * total // self.budget) - 1).bit_length())

    def split(self, what: str) -> Step:
        """Partition the keys of each group of blocks."""
        log = self.log_partitions(what)
        most = max(
            1,
            min(
                _GROUP_DOCUMENTS, self.budget // (_SPLIT_BYTES[what] * self.settings.keys_per_document(what))
            ),
        )
        groups: list[list[Block]] = []
        for block in self.blocks:
            if not groups or block.last_ordinal - groups[-1][0].first_ordinal > most:
                groups.append([])
            groups[-1].append(block)
        tasks = [
            Task(
                f"{number:06d}",
                {
                    "what": what,
                    "log_partitions": log,
                    "blocks": [[b.stem, b.split, b.first_ordinal, b.num_documents] for b in group],
                },
                [self.lineage],
                [f"dedupe/{what}-split/{number:06d}.cols"],
                sum(b.num_documents for b in group),
            )
            for number, group in enumerate(groups)
        ]
        return Step(f"split {what}", VERSION, split, tasks, self.settings, self.lineage, "doc")

    def sort(self, what: str) -> Step:
        """Find the equal keys of each partition."""
        log = self.log_partitions(what)
        weight = max(1, self.num_documents >> log)
        tasks = []
        for partition in range(1 << log):
            outputs = [f"dedupe/{what}-sort/{partition:06d}.cols"]
            if self.settings.dedupe.index is not None:
                outputs.append(f"dedupe/index/{what}-{partition:06d}.cols")
            args = {"what": what, "log_partitions": log, "partition": partition}
            tasks.append(Task(f"{partition:06d}", args, [self.lineage], outputs, weight))
        return Step(f"sort {what}", VERSION, sort, tasks, self.settings, self.lineage, "doc")

    def exact(self) -> Step:
        """Join the edges between exact duplicates."""
        task = Task(
            "all", {"num_documents": self.num_documents}, [self.lineage], [_EXACT], max(1, self.num_documents)
        )
        return Step("exact", VERSION, exact, [task], self.settings, self.lineage, "doc")

    def cluster(self) -> Step:
        """Join all edges and decide. How the edges come about changes nothing, and so is a hint."""
        task = Task(
            "all",
            {"num_documents": self.num_documents},
            [self.lineage],
            [FATES, CLUSTERS, CLUSTERS_PARQUET],
            max(1, self.num_documents),
            {"in_memory": self.fits_in_memory},
        )
        return Step("cluster", VERSION, cluster, [task], self.settings, self.lineage, "doc")


def disk_bytes(num_documents: int, dedupe: DedupeSettings) -> int:
    """The most that the stage's own files take at once, besides the sketches (for --plan)."""
    bands = dedupe.bands if dedupe.method == "minhash" else 0
    return num_documents * (4 + max(_SPLIT_BYTES["exact"] + 8, _SPLIT_BYTES["bands"] * bands + 8))


# The work ---------------------------------------------------------------------------------------------------------


def split(task: Task, settings: ClusterSettings, work_dir: str) -> Counts:
    """Partition the keys of one group of blocks by their highest bits."""
    root, what, log = Path(work_dir), task.args["what"], task.args["log_partitions"]
    blocks = [Block(*values) for values in task.args["blocks"]]
    roots = columns.read(root / _EXACT, ["root"])["root"] if what == "bands" else None
    keys, bounds = _partitioned(blocks, settings, root, what, log, roots)
    write_partitions(root / task.outputs[0], keys, bounds)
    return Counts()


def sort(task: Task, settings: ClusterSettings, work_dir: str) -> Counts:
    """Find the equal keys of one partition, over all groups."""
    root, what = Path(work_dir), task.args["what"]
    partition, log = task.args["partition"], task.args["log_partitions"]
    paths = sorted((root / f"dedupe/{what}-split").glob("*.cols"))
    limit = max(1, settings.memory_bytes // 2 // _SORT_BYTES[what])
    links = _link(_chunks(paths, partition, limit), settings, root, what, partition, log)
    links.write(root / task.outputs[0])
    advance(task.weight)
    return Counts(extra={"lineage": task.inputs[0]})


def exact(task: Task, settings: ClusterSettings, work_dir: str) -> Counts:
    """Find each document's first exact duplicate."""
    root = Path(work_dir)
    found = (Links.read(path) for path in sorted((root / "dedupe/exact-sort").glob("*.cols")))
    roots, known = _exact_roots(found, task.args["num_documents"])
    columns.write(root / task.outputs[0], {"root": roots, "known": known})
    advance(task.weight)
    return Counts(extra={"lineage": task.inputs[0]})


def cluster(task: Task, settings: ClusterSettings, work_dir: str) -> Counts:
    """Join all edges, decide every document's fate, and list the clusters."""
    root, num_documents = Path(work_dir), task.args["num_documents"]
    blocks = [Block(*values) for values in _read_json(root / _BLOCKS)]
    found: Iterator[Links]
    if task.hints["in_memory"]:
        roots, known = _exact_roots(iter([_in_one_go(blocks, settings, root, "exact", None)]), num_documents)
        found = iter(
            [_in_one_go(blocks, settings, root, "bands", roots)] if "bands" in settings.whats else []
        )
    else:
        exact_file = columns.read(root / _EXACT)
        roots, known = exact_file["root"], exact_file["known"]
        found = (Links.read(path) for path in sorted((root / "dedupe/bands-sort").glob("*.cols")))
    parent = roots.copy()
    compared = rejected = 0
    known_parts = [known]
    for links in found:
        for first, other in zip(links.first, links.other, strict=True):
            union_find.unite(parent, buckets.readonly(first), buckets.readonly(other))
        known_parts += links.known
        compared, rejected = compared + links.compared, rejected + links.rejected
    union_find.flatten(parent)
    counts = _decide(blocks, settings, root, task, roots, parent, np.unique(np.concatenate(known_parts)))
    if settings.dedupe.verify:
        counts.extra["summary"]["verified_pairs"] = {"compared": compared, "below_threshold": rejected}
    counts.extra["lineage"] = task.inputs[0]
    return counts


# Keys ---------------------------------------------------------------------------------------------------------------


def _partitioned(
    blocks: Sequence[Block],
    settings: ClusterSettings,
    root: Path,
    what: str,
    log: int,
    roots: UInt32Array | None,
) -> tuple[Keys, npt.NDArray[np.int64]]:
    """All keys of some blocks in partition order, and each partition's bounds. roots: leave out all but the first of each text."""
    counts = np.zeros(1 << log, np.int64)
    for keys, _, chosen, _ in _sketches(blocks, settings, root, what, roots):
        buckets.count_partitions(keys, chosen, log, counts)
    bounds = np.concatenate((np.zeros(1, np.int64), np.cumsum(counts)))
    total = int(bounds[-1])
    out = Keys(
        np.empty(total, np.uint64),
        np.empty(total if what == "exact" else 0, np.uint64),
        np.empty(total, np.uint32),
    )
    cursors = bounds[:-1].copy()
    for keys, low, chosen, block in _sketches(blocks, settings, root, what, roots):
        buckets.scatter(keys, low, chosen, block.first_ordinal, log, cursors, out.keys, out.low, out.ordinals)
        advance(block.num_documents)
    return out, bounds


def _sketches(
    blocks: Sequence[Block], settings: ClusterSettings, root: Path, what: str, roots: UInt32Array | None
) -> Iterator[tuple[UInt64Array, UInt64Array, BoolArray, Block]]:
    """Keys (n, B), low halves (n,) or (0,) and the rows that take part, block by block."""
    for block in blocks:
        if block.split != "train" and not settings.dedupe.holdout:
            continue
        found = columns.read(block.sketch(root), [what])[what]
        chosen = np.ones(block.num_documents, np.bool_)
        if roots is not None:
            chosen = roots[block.first_ordinal : block.last_ordinal] == np.arange(
                block.first_ordinal, block.last_ordinal, dtype=np.uint32
            )
        if what == "exact":
            yield np.ascontiguousarray(found[:, :1]), np.ascontiguousarray(found[:, 1]), chosen, block
        else:
            yield found, np.empty(0, np.uint64), chosen, block


def _chunks(paths: Sequence[Path], partition: int, limit: int) -> Iterator[Keys]:
    """One partition over all groups, in source order, at most `limit` keys at a time (one chunk, unless a key is very frequent)."""
    held: list[Keys] = []
    size = 0
    for path in paths:
        part = read_partition(path, partition)
        if held and size + len(part) > limit:
            yield Keys.concatenate(held)
            held, size = [], 0
        held.append(part)
        size += len(part)
    if held:
        yield Keys.concatenate(held)


def _in_one_go(
    blocks: Sequence[Block], settings: ClusterSettings, root: Path, what: str, roots: UInt32Array | None
) -> Links:
    keys, _ = _partitioned(blocks, settings, root, what, 0, roots)
    return _link(iter([keys]), settings, root, what, 0, 0)


# Edges --------------------------------------------------------------------------------------------------------------


def _link(
    chunks: Iterator[Keys], settings: ClusterSettings, root: Path, what: str, partition: int, log: int
) -> Links:
    """Edges between the equal keys of one partition; with an index, also the documents it knows, and the sorted keys to add to it.

    A document that is linked to another need not be seen again: of a key that fills memory many times over, one
    representative a chunk is left, and those are linked in the end.
    """
    links = Links()
    verifier = _Verifier(settings, root) if settings.dedupe.verify and what == "bands" else None
    index = settings.index()
    left: list[Keys] = []
    chunk, following = next(chunks, None), next(chunks, None)
    several = following is not None
    while chunk is not None:
        linked = _link_chunk(chunk, links, verifier, log)
        if several or index is not None:
            left.append(chunk.take(~linked))
        chunk, following = following, next(chunks, None)
    if several:
        rest = Keys.concatenate(left)
        left = [rest.take(~_link_chunk(rest, links, verifier, log))]
    if index is not None:
        rest = (
            left[0] if left else Keys(np.empty(0, np.uint64), np.empty(0, np.uint64), np.empty(0, np.uint32))
        )
        rest = rest.take(np.argsort(rest.keys, kind="stable"))
        links.known.append(_known(rest, index, verifier, what, partition, log))
        arrays: dict[str, npt.NDArray[Any]] = {"keys": rest.keys}
        arrays |= {"low": rest.low} if what == "exact" else {"ordinals": rest.ordinals}
        columns.write(
            signatures.key_file(root / "dedupe/index", what, partition), arrays, {"log_partitions": log}
        )
    if verifier is not None:
        links.compared, links.rejected = verifier.compared, verifier.rejected
    return links


def _link_chunk(chunk: Keys, links: Links, verifier: _Verifier | None, log: int) -> BoolArray:
    """Add the edges of one chunk; returns which rows are now linked to an earlier one."""
    packed, mask = buckets.sort_order(chunk.keys, log)
    members, starts = buckets.equal_runs(packed, mask, chunk.keys, chunk.low)
    del packed
    linked = np.zeros(len(chunk), np.bool_)
    if verifier is None:
        first, other = buckets.star_edges(members, starts, chunk.ordinals)
        linked[members] = True
        linked[members[starts[:-1]]] = False
        links.first.append(first)
        links.other.append(other)
        return linked
    begins = np.zeros(len(members), np.bool_)
    begins[starts[:-1]] = True
    for low in range(0, len(members), _VERIFY_ROWS):
        rows = members[low : low + _VERIFY_ROWS]
        ordinals = chunk.ordinals[rows]
        leader = verifier.leaders.attach(
            verifier.signatures.read(ordinals), ordinals, begins[low : low + _VERIFY_ROWS]
        )
        attached = leader != ordinals
        linked[rows[attached]] = True
        links.first.append(leader[attached])
        links.other.append(ordinals[attached])
    return linked


class _Verifier:
    """Signatures of this run, and the leaders of the bucket at hand."""

    def __init__(self, settings: ClusterSettings, root: Path) -> None:
        blocks = [Block(*values) for values in _read_json(root / _BLOCKS)]
        self.signatures = signatures.SignatureReader(
            [b.first_ordinal for b in blocks], [b.sketch(root) for b in blocks]
        )
        self.needed = settings.needed
        self.leaders = buckets.Leaders(settings.dedupe.num_perm, self.needed)
        self._compared = self._rejected = 0  # against an index

    @property
    def compared(self) -> int:
        """Candidate pairs compared."""
        return self.leaders.compared + self._compared

    @property
    def rejected(self) -> int:
        """Of them, pairs below the threshold."""
        return self.leaders.rejected + self._rejected

    def agree(
        self, ordinals: UInt32Array, theirs: signatures.SignatureReader, their_ordinals: UInt32Array
    ) -> BoolArray:
        """Whether each document is similar enough to the other run's document beside it."""
        out = np.empty(len(ordinals), np.bool_)
        for low in range(0, len(ordinals), _VERIFY_ROWS):
            part = slice(low, low + _VERIFY_ROWS)
            equal = np.count_nonzero(
                self.signatures.read(ordinals[part]) == theirs.read(their_ordinals[part]), axis=1
            )
            out[part] = equal >= self.needed
        self._compared += len(out)
        self._rejected += int(np.count_nonzero(~out))
        return out


def _known(
    keys: Keys, index: signatures.Index, verifier: _Verifier | None, what: str, partition: int, log: int
) -> UInt32Array:
    """Documents whose key an earlier run has (and, verified, whose signature is similar to one of the first that have it)."""
    known = np.zeros(len(keys), np.bool_)
    for run_name, theirs in index.ranges(what, partition, log):
        their_keys = theirs["keys"]
        place = np.searchsorted(their_keys, keys.keys)
        rows = np.flatnonzero(~known)
        for _ in range(_INDEX_CANDIDATES):
            rows = rows[place[rows] < len(their_keys)]
            rows = rows[their_keys[place[rows]] == keys.keys[rows]]
            if not len(rows):
                break
            if what == "exact":
                hit = theirs["low"][place[rows]] == keys.low[rows]
            elif verifier is None:
                hit = np.ones(len(rows), np.bool_)
            else:
                hit = verifier.agree(
                    keys.ordinals[rows], index.signatures(run_name), theirs["ordinals"][place[rows]]
                )
            known[rows[hit]] = True
            rows = rows[~hit]
            place[rows] += 1
    return np.unique(keys.ordinals[known])


def _exact_roots(found: Iterator[Links], num_documents: int) -> tuple[UInt32Array, UInt32Array]:
    """The first document of each text by ordinal, and the documents an index knows."""
    roots = np.arange(num_documents, dtype=np.uint32)
    known: list[UInt32Array] = [np.empty(0, np.uint32)]
    for links in found:
        for first, other in zip(links.first, links.other, strict=True):
            union_find.unite(roots, buckets.readonly(first), buckets.readonly(other))
        known += links.known
    union_find.flatten(roots)
    return roots, np.concatenate(known)


# Fates --------------------------------------------------------------------------------------------------------------

_SEVERAL, _HAS_HOLDOUT, _HAS_KNOWN, _TEXT_IN_HOLDOUT = (
    1,
    2,
    4,
    8,
)  # flags of a component, by its root; the last of a text, by its first


def _decide(
    blocks: Sequence[Block],
    settings: ClusterSettings,
    root: Path,
    task: Task,
    roots: UInt32Array,
    clusters: UInt32Array,
    known: UInt32Array,
) -> Counts:
    """Write fates, clusters and clusters.parquet. roots, clusters: (N,), flat."""
    total = len(clusters)
    roots = buckets.readonly(roots)
    flags = np.zeros(total, np.uint8)
    _flag_several(clusters, flags)
    for block in blocks:
        if block.split != "train" and settings.dedupe.holdout:
            _flag(
                clusters,
                np.arange(block.first_ordinal, block.last_ordinal, dtype=np.uint32),
                _HAS_HOLDOUT,
                flags,
            )
            _flag(
                roots,
                np.arange(block.first_ordinal, block.last_ordinal, dtype=np.uint32),
                _TEXT_IN_HOLDOUT,
                flags,
            )
    _flag(clusters, known, _HAS_KNOWN, flags)
    best = _best(blocks, settings.dedupe, root, clusters) if settings.dedupe.keep != "first" else clusters

    fate = np.empty(total, np.uint8)
    counts = Counts()
    removed: dict[str, list[int]] = {}
    largest = _largest(clusters, flags)
    shown: dict[int, dict[str, Any]] = {}
    num_clustered = 0
    with writing_clusters(root / task.outputs[2]) as rows:
        for block in blocks:
            docs = columns.read(block.docs(root))
            here = slice(block.first_ordinal, block.last_ordinal)
            mine = fate[here]
            _fates(block.first_ordinal, block.split == "train", roots, clusters, best, flags, mine)
            sources: list[str] = docs.meta["sources"]
            num_bytes = docs["num_bytes"].astype(np.int64)
            _count(counts, removed, block.split, sources, docs["source"], num_bytes, mine)
            chosen = np.flatnonzero(flags[clusters[here]] & _SEVERAL)
            num_clustered += len(chosen)
            if len(chosen):
                rows.add(
                    block.split,
                    [f.reason for f in Fate],
                    sources,
                    docs.meta["files"],
                    {
                        "document": chosen.astype(np.uint32) + np.uint32(block.first_ordinal),
                        "cluster": clusters[here][chosen],
                        "kept": mine[chosen] == Fate.KEPT,
                        "fate": mine[chosen],
                        "source": docs["source"][chosen],
                        "file": docs["file"][chosen],
                        "offset": docs["offset"][chosen],
                        "bytes": docs["num_bytes"][chosen],
                    },
                )
            for ordinal, size in largest:
                if block.first_ordinal <= ordinal < block.last_ordinal:
                    row = ordinal - block.first_ordinal
                    shown[ordinal] = {
                        "cluster": ordinal,
                        "documents": size,
                        "source": sources[int(docs["source"][row])],
                        "file": docs.meta["files"][int(docs["file"][row])],
                        "offset": int(docs["offset"][row]),
                        "bytes": int(num_bytes[row]),
                    }
            advance(block.num_documents)
    columns.write(root / task.outputs[1], {"cluster": clusters})
    columns.write(root / task.outputs[0], {"fate": fate})
    counts.extra["removed"] = removed
    counts.extra["summary"] = {
        "clusters": int(np.count_nonzero(flags & _SEVERAL)),
        "documents_in_clusters": num_clustered,
        "largest_clusters": [shown[ordinal] for ordinal, _ in largest],
    }
    return counts


def _count(
    counts: Counts,
    removed: dict[str, list[int]],
    split_name: str,
    sources: Sequence[str],
    codes: npt.NDArray[Any],
    num_bytes: npt.NDArray[np.int64],
    fate: UInt8Array,
) -> None:
    """Add one block's documents and bytes by source and fate, and what each source loses: source -> [removed, all] bytes of train."""
    cells = codes.astype(np.int64) * len(Fate) + fate
    documents = np.bincount(cells, minlength=len(sources) * len(Fate)).reshape(-1, len(Fate))
    # A float sum is exact up to 2^53 bytes; a block is far smaller.
    amounts = (
        np.bincount(cells, num_bytes, minlength=len(sources) * len(Fate))
        .astype(np.int64)
        .reshape(-1, len(Fate))
    )
    for code, source in enumerate(sources):
        counts.add(split_name, source, "in", int(documents[code].sum()), int(amounts[code].sum()))
        for f in Fate:
            if documents[code, f]:
                what = "out" if f == Fate.KEPT else f"drop:{f.reason}"
                counts.add(split_name, source, what, int(documents[code, f]), int(amounts[code, f]))
        if split_name == "train":
            gone = removed.setdefault(source, [0, 0])
            gone[0] += int(amounts[code].sum() - amounts[code, Fate.KEPT])
            gone[1] += int(amounts[code].sum())


def _best(blocks: Sequence[Block], dedupe: DedupeSettings, root: Path, clusters: UInt32Array) -> UInt32Array:
    """The document to keep of each component, by its root: the highest score, the first among equals. (N,) uint32."""
    best, score = np.zeros(len(clusters), np.uint32), np.zeros(len(clusters), np.uint32)
    ranks = {name: len(dedupe.source_priority) - rank for rank, name in enumerate(dedupe.source_priority)}
    for block in blocks:
        docs = columns.read(block.docs(root))
        if dedupe.keep == "longest":
            scores = docs["num_bytes"].astype(np.uint32)
        else:
            scores = np.array([ranks.get(name, 0) for name in docs.meta["sources"]], np.uint32)[
                docs["source"]
            ]
        _keep_best(clusters, block.first_ordinal, scores, best, score)
    return best


def _largest(clusters: UInt32Array, flags: UInt8Array) -> list[tuple[int, int]]:
    """(root, documents) of the largest components of two or more, largest first, then by root."""
    sizes = np.zeros(len(clusters), np.uint32)
    _sizes(clusters, sizes)
    found: list[tuple[int, int]] = []
    for low in range(0, len(sizes), 1 << 20):  # a partial sort of all would hold 8 bytes a document
        part = sizes[low : low + (1 << 20)]
        smallest = found[-1][1] if len(found) == SHOWN_CLUSTERS else 1
        places = np.flatnonzero(part > smallest)
        places = places[np.argsort(-part[places].astype(np.int64), kind="stable")[:SHOWN_CLUSTERS]]
        found = sorted(
            found + [(int(p) + low, int(part[p])) for p in places], key=lambda item: (-item[1], item[0])
        )[:SHOWN_CLUSTERS]
    return found


def check_safety(counts: Counts, max_removed: float, accept: bool) -> None:
    """Raise SafetyStop if train loses more than `max_removed` of a source's bytes and that was not accepted."""
    if accept:
        return
    for source, (gone, total) in sorted(counts.extra["removed"].items()):
        if gone > max_removed * total:
            shown = "\n".join(
                f"  {c['documents']:,} documents like the one of {c['bytes']:,} bytes at offset {c['offset']} of {c['file']} ({c['source']})"
                for c in counts.extra["summary"]["largest_clusters"]
            )
            raise SafetyStop(
                f"Deduplication would remove {gone / total:.1%} of the bytes of {source}, more than dedupe.max_removed = {max_removed:.0%}. "
                f"The largest clusters, all listed in {CLUSTERS_PARQUET} of the work folder:\n{shown}\n"
                "Look at them; if they are right, run the same command again with --accept-removal."
            )


_jit = numba.njit(cache=True, nogil=True)


@_jit
def _flag_several(clusters: UInt32Array, flags: UInt8Array) -> None:
    for i in range(len(clusters)):
        if clusters[i] != i:
            flags[clusters[i]] |= np.uint8(_SEVERAL)


def _flag(owners: UInt32Array, ordinals: UInt32Array, flag: int, flags: UInt8Array) -> None:
    flags[owners[ordinals]] |= np.uint8(flag)


@_jit
def _keep_best(
    clusters: UInt32Array, first_ordinal: int, scores: UInt32Array, best: UInt32Array, score: UInt32Array
) -> None:
    for i in range(len(scores)):
        root = clusters[first_ordinal + i]
        # A root is the first of its component, so what it sets is never looked at before.
        if root == first_ordinal + i or scores[i] > score[root]:
            best[root], score[root] = first_ordinal + i, scores[i]


@_jit
def _fates(
    first_ordinal: int,
    train: bool,
    roots: UInt32Array,
    clusters: UInt32Array,
    best: UInt32Array,
    flags: UInt8Array,
    out: UInt8Array,
) -> None:
    for i in range(len(out)):
        ordinal = first_ordinal + i
        flag = flags[clusters[ordinal]]
        kept = best[clusters[ordinal]]
        if not train:
            out[i] = _KEPT
        elif flag & _HAS_HOLDOUT:
            out[i] = (
                _DUPLICATE_OF_HOLDOUT
                if flags[roots[ordinal]] & _TEXT_IN_HOLDOUT
                else _NEAR_DUPLICATE_OF_HOLDOUT
            )
        elif flag & _HAS_KNOWN:
            out[i] = _IN_INDEX
        elif kept == ordinal:
            out[i] = _KEPT
        elif roots[ordinal] != ordinal or roots[ordinal] == roots[kept]:
            out[i] = _EXACT_DUPLICATE
        else:
            out[i] = _NEAR_DUPLICATE


@_jit
def _sizes(clusters: UInt32Array, sizes: UInt32Array) -> None:
    for i in range(len(clusters)):
        sizes[clusters[i]] += np.uint32(1)


def _read_json(path: Path) -> Any:
    return json.loads(path.read_bytes())
