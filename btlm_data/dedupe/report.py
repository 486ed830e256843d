"""What other rules and thresholds would remove, decided from what the stage has stored: the work folder's members (with
their normalised texts) and nominated pairs. Nothing is read from the source or sketched again.

Rules: `exact` (equal normalised texts), `none` (all of a component but one, as dedupe.verify: none), and `text` (as
dedupe.verify: text) by similarity and threshold. All of them start from the same nominations: those of the run's own bands.
A pair that several rules need is compared once. Memory: a group (groups.py) in each process, about 0.5 GB at most.
"""

from __future__ import annotations

import functools
import heapq
import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing import get_context
from typing import Any, Literal

import msgspec
import numpy as np
import numpy.typing as npt

from btlm_data.dedupe import compare, decided
from btlm_data.dedupe.components import HOLDOUT
from btlm_data.dedupe.decided import Decided
from btlm_data.dedupe.index import IndexReader
from btlm_data.dedupe.members import Group, read_group
from btlm_data.errors import ConfigError, DataError, InputError, OutputError
from btlm_data.kernels import shingles
from btlm_data.kernels.minhash import Shingle
from btlm_data.locations import Locations
from btlm_data.recipe.models import DedupeSettings
from btlm_data.splits import SPLITS
from btlm_data.storage import Store, open_store
from btlm_data.task import Artifact, Task
from btlm_data.task_files import TaskFiles

THRESHOLDS = (0.7, 0.75, 0.8, 0.85, 0.9, 0.95)
LARGEST = 5  # components shown of each rule
_BELOW = 0.05  # pairs so far below the lowest threshold are counted too: some of them are nearest to it
_BEFORE, _SHOWN = 200, 3000  # bytes of a text before the first difference, and from there on
TRAIN = SPLITS.index("train")
Int64Array = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]


class Rule(msgspec.Struct, frozen=True):
    """A way to decide. similarity, threshold: of `text` only. is_used: it is the one that the run used."""

    verify: Literal["exact", "none", "text"]
    similarity: Literal["jaccard", "containment"] | None = None
    threshold: float | None = None
    is_used: bool = False

    @property
    def title(self) -> str:
        """For people."""
        if self.verify == "text":
            return f"{self.similarity} {self.threshold:g}"
        return "exact copies" if self.verify == "exact" else "components"


class Outcome(msgspec.Struct):
    """What one rule would remove of train. removed: source -> [documents, bytes]. largest: the components that would lose
    most documents. nearest, of `text`: the pairs whose similarity is nearest to the threshold, first those of which one goes,
    then (as many) those of which both stay. compared: pairs of texts.
    """

    rule: Rule
    removed: dict[str, list[int]] = msgspec.field(default_factory=dict)
    largest: list[dict[str, Any]] = msgspec.field(default_factory=list)
    nearest: list[dict[str, Any]] = msgspec.field(default_factory=list)
    compared: int = 0

    def add(self, other: Outcome, num_pairs: int) -> None:
        """Add what is found in another group."""
        for source, amounts in other.removed.items():
            held = self.removed.setdefault(source, [0, 0])
            held[:] = [held[0] + amounts[0], held[1] + amounts[1]]
        self.largest = heapq.nsmallest(
            LARGEST, self.largest + other.largest, key=lambda one: (-one["removed"], one["cluster"])
        )
        pairs = sorted(self.nearest + other.nearest, key=self._distance)
        self.nearest = [pair for pair in pairs if pair["removed"]][: num_pairs - num_pairs // 2]
        self.nearest += [pair for pair in pairs if not pair["removed"]][: num_pairs // 2]
        self.compared += other.compared

    def _distance(self, pair: dict[str, Any]) -> tuple[float, int]:
        return abs(pair["similarity"] - (self.rule.threshold or 0.0)), pair["document"]


class Report(msgspec.Struct, frozen=True):
    """sources: documents and bytes of train by source, before deduplication."""

    work: str
    settings: DedupeSettings
    sources: dict[str, tuple[int, int]]
    outcomes: list[Outcome]


class _Work(msgspec.Struct, frozen=True):
    """What a process needs. Picklable."""

    url: str
    decided: Decided
    index: IndexReader | None
    rules: tuple[Rule, ...]
    num_pairs: int


def make(
    location: str,
    thresholds: Sequence[float],
    similarities: Sequence[Literal["jaccard", "containment"]],
    *,
    index: str | None = None,
    workers: int = 1,
    num_pairs: int = 10,
) -> Report:
    """Decide again. location: a work folder, or a dataset folder whose work folder is still in it. thresholds,
    similarities: for `text`; none: THRESHOLDS and the run's own. index: where the index is, if the run had one.

    Raises InputError where deduplication has not been done there, ConfigError for an index that is not named, DataError
    where files are not the stage's last ones.
    """
    work = _work_folder(location)
    stored = decided.read(work)
    if stored is None:
        raise InputError(
            f"{work.shown} holds no finished deduplication. Prepare with --stop-after dedupe (or to the end), then ask again."
        )
    reader = _index(stored, index)
    rules = tuple(_rules(stored, thresholds, similarities))
    job = _Work(work.url, stored, reader, rules, num_pairs)
    outcomes = [Outcome(rule) for rule in rules]
    for group in _groups(job, workers):
        for outcome, of_group in zip(outcomes, group, strict=True):
            outcome.add(of_group, num_pairs)
    return Report(work.shown, stored.settings, stored.sources, outcomes)


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _work_folder(location: str) -> Store:
    for folder in (location, f"{location.rstrip('/')}/.work"):
        store = open_store(folder)
        if store.size("work-folder.json") is not None:
            return store
    raise InputError(
        f"{location} is no work folder and holds none. Name the --work-dir of a run, or a dataset whose .work is still there."
    )


def _index(stored: Decided, location: str | None) -> IndexReader | None:
    if not stored.index_runs:
        return None
    if location is None:
        raise ConfigError(
            f"The run was matched against an index ({stored.settings.index}). Say with --dedupe-index where it is."
        )
    if stored.pairs is None:
        raise ConfigError(
            "The run was matched against an index without comparing texts, and what the index alone decided is not kept. "
            "Only runs with dedupe.verify: text can be decided again with an index."
        )
    return IndexReader(open_store(location).url, stored.index_runs)


def _rules(
    stored: Decided, thresholds: Sequence[float], similarities: Sequence[Literal["jaccard", "containment"]]
) -> Iterator[Rule]:
    settings = stored.settings
    yield Rule("exact", is_used=settings.method == "exact")
    if settings.method == "exact":
        return
    yield Rule("none", is_used=settings.verify != "text")
    if stored.pairs is None:
        return
    for similarity in similarities or (settings.similarity,):
        own = {settings.threshold} if similarity == settings.similarity else set()
        for threshold in sorted(own | set(thresholds or THRESHOLDS)):
            yield Rule("text", similarity, threshold, similarity == settings.similarity and threshold in own)


def _groups(job: _Work, workers: int) -> Iterator[list[Outcome]]:
    """What each group says, in order. Raises OutputError where a process is lost."""
    numbers = range(1, job.decided.num_groups + 1)
    if min(workers, len(numbers)) <= 1:
        files = _open(job)
        yield from (_decide(files, job, number) for number in numbers)
        return
    # Processes are started afresh, so that none inherits threads; each opens the files once.
    with ProcessPoolExecutor(min(workers, len(numbers)), get_context("spawn"), _start, (job,)) as pool:
        try:
            yield from pool.map(_decide_here, numbers)
        except BrokenProcessPool as error:
            raise OutputError(
                "A process of the report was killed, most likely for its memory. Use fewer --workers."
            ) from error


_here: list[tuple[TaskFiles, _Work]] = []  # of a process of the pool


def _start(job: _Work) -> None:
    _here[:] = [(_open(job), job)]


def _decide_here(number: int) -> list[Outcome]:
    return _decide(*_here[0], number)


def _open(job: _Work) -> TaskFiles:
    """The files that the report may read."""
    stored = job.decided
    named: list[Artifact] = [stored.components, stored.members, *([stored.pairs] if stored.pairs else [])]
    return TaskFiles(Locations(job.url, job.url, None).open(), Task("report", reads={"files": named}))


@dataclass(frozen=True)
class _Rows:
    """The members of a group by row, and what all rules need to know of them: (n,) each.

    root: row of the first document of its text; best: row of the copy that stays if the text does; component: its number
    among the group's, in the order of their first documents; goes_anyway: its text is in holdout, or an index has it.
    """

    group: Group
    root: Int64Array
    best: Int64Array
    component: Int64Array
    goes_anyway: BoolArray
    is_train: BoolArray

    @functools.cached_property
    def is_best(self) -> BoolArray:
        best: BoolArray = self.best == np.arange(len(self.best))
        return best


def _rows(files: TaskFiles, job: _Work, group: Group) -> _Rows:
    columns = group.columns
    ordinals, roots, best = (columns[name] for name in ("ordinal", "root", "best"))
    _, component = np.unique(columns["cluster"], return_inverse=True)
    root, best_row = np.searchsorted(ordinals, roots), np.searchsorted(ordinals, best)
    if (np.maximum(root, best_row) >= len(ordinals)).any() or not (
        (ordinals[root] == roots).all() and (ordinals[best_row] == best).all()
    ):
        raise DataError(
            f"{job.url}: the members of deduplication are not those of its components. Rerun the run."
        )
    goes_anyway = (columns["score"] == HOLDOUT) | columns["known"][root]
    return _Rows(group, root, best_row, component, goes_anyway, columns["split"] == TRAIN)


def _decide(files: TaskFiles, job: _Work, number: int) -> list[Outcome]:
    """What each rule does with one group."""
    stored = job.decided
    candidates: compare.Compared | None = None
    decisions: shingles.Decisions | None = None
    text_rules = [rule for rule in job.rules if rule.verify == "text"]
    if stored.pairs is not None:
        candidates = compare.open_group(files, stored.members, stored.pairs, number, job.index)
        if text_rules:
            kernel_rules = [
                shingles.Rule(compare.KINDS[rule.similarity or ""], rule.threshold or 0.0)
                for rule in text_rules
            ]
            floor = max(0.0, min(rule.threshold for rule in kernel_rules) - _BELOW)
            shingle = Shingle.of(stored.settings.shingle, stored.settings.shingle_size)
            decisions = candidates.decide(kernel_rules, shingle, floor)
        group = candidates.group
    else:
        group = read_group(files, stored.members, number, with_texts=False)
    rows = _rows(files, job, group)
    outcomes = []
    for rule in job.rules:
        outcome = Outcome(rule)
        if rule.verify == "exact":
            goes = rows.is_train & (rows.goes_anyway | ~rows.is_best)
        elif rule.verify == "none":
            goes = rows.is_train & ~_stays_in_component(rows, candidates)
        else:
            assert candidates is not None
            assert decisions is not None
            place = text_rules.index(rule)
            text_goes = np.zeros(len(group), np.bool_)
            foreign = len(candidates.foreign)
            text_goes[candidates.rows[decisions.anchor[place, foreign:] >= 0]] = True
            goes = rows.is_train & (rows.goes_anyway | text_goes[rows.root] | ~rows.is_best)
            outcome.compared = int(decisions.compared[place])
            outcome.nearest = list(_nearest(rows, candidates, decisions, place, rule, job.num_pairs))
        outcome.removed = _amounts(group, goes)
        outcome.largest = _largest(files, job, rows, goes)
        outcomes.append(outcome)
    return outcomes


def _stays_in_component(rows: _Rows, candidates: compare.Compared | None) -> BoolArray:
    """Which document of each component stays where components decide: the best one, if there is nothing of holdout or of
    an index. (n,).
    """
    score = rows.group.columns["score"].astype(np.int64)
    num_components = int(rows.component.max(initial=-1)) + 1
    has_other = np.zeros(num_components, np.bool_)
    has_other[rows.component[rows.goes_anyway]] = True
    if candidates is not None and len(candidates.foreign):
        owners = np.repeat(np.arange(len(candidates.bounds) - 1), np.diff(candidates.bounds))
        in_index = owners[candidates.candidates < len(candidates.foreign)] - len(candidates.foreign)
        has_other[rows.component[candidates.rows[in_index]]] = True
    highest = np.full(num_components, -1, np.int64)
    np.maximum.at(highest, rows.component, score)
    best = rows.best[score == highest[rows.component]]
    first = np.full(num_components, len(score), np.int64)
    np.minimum.at(first, rows.component[score == highest[rows.component]], best)
    stays = np.zeros(len(score), np.bool_)
    stays[first[~has_other]] = True
    return stays


def _amounts(group: Group, goes: BoolArray) -> dict[str, list[int]]:
    """Documents and bytes that go, by source."""
    codes, num_bytes = group.columns["source"][goes], group.columns["bytes"][goes].astype(np.float64)
    documents = np.bincount(codes, minlength=len(group.sources))
    amounts = np.bincount(codes, num_bytes, minlength=len(group.sources))  # exact up to 2^53
    return {
        name: [int(documents[code]), int(amounts[code])]
        for code, name in enumerate(group.sources)
        if documents[code]
    }


def _largest(files: TaskFiles, job: _Work, rows: _Rows, goes: BoolArray) -> list[dict[str, Any]]:
    """The components that lose most documents, with the place of their first one."""
    sizes = np.bincount(rows.component)
    gone = np.bincount(rows.component[goes], minlength=len(sizes))
    chosen = np.argsort(-gone, kind="stable")[:LARGEST]
    first_row = np.full(len(sizes), len(rows.component), np.int64)
    np.minimum.at(first_row, rows.component, np.arange(len(rows.component)))
    return [
        {
            "cluster": int(rows.group.columns["ordinal"][first_row[component]]),
            "documents": int(sizes[component]),
            "removed": int(gone[component]),
            **_place(rows.group, int(first_row[component])),
        }
        for component in chosen.tolist()
        if gone[component]
    ]


def _nearest(
    rows: _Rows,
    candidates: compare.Compared,
    decisions: shingles.Decisions,
    place: int,
    rule: Rule,
    num_pairs: int,
) -> Iterator[dict[str, Any]]:
    """The pairs of one rule whose similarity is nearest to its threshold: of texts that went for another, and of texts that
    stayed beside the one most like them.
    """
    foreign = len(candidates.foreign)
    closest = decisions.closest[place]
    texts = np.flatnonzero(closest >= 0)
    shared = decisions.shared[place][texts].astype(np.float64)
    sizes = decisions.sizes.astype(np.float64)
    total = sizes[texts]
    if rule.similarity == "jaccard":
        total = total + sizes[closest[texts]] - shared
    similarity = shared / total
    threshold = rule.threshold or 0.0
    ordinals = candidates.ordinals[texts]
    goes = decisions.anchor[place][texts] >= 0
    order = np.lexsort((ordinals, np.abs(similarity - threshold)))
    order = np.concatenate(
        [order[goes[order]][: num_pairs - num_pairs // 2], order[~goes[order]][: num_pairs // 2]]
    )
    for pick in order.tolist():
        text, other = int(texts[pick]), int(closest[texts[pick]])
        both = [_text(candidates, each) for each in (text, other)]
        pair: dict[str, Any] = {
            "document": int(ordinals[pick]),
            "similarity": float(similarity[pick]),
            "removed": bool(goes[pick]),
            **_place(rows.group, int(candidates.rows[text - foreign])),
        }
        kept = (
            _place(rows.group, int(rows.best[candidates.rows[other - foreign]])) if other >= foreign else {}
        )
        pair |= {f"kept_{name}": kept.get(name) for name in ("file", "line", "offset", "source", "bytes")}
        pair["text"], pair["kept_text"] = _around_first_difference(both)
        yield pair


def _place(group: Group, row: int) -> dict[str, Any]:
    """Where a document is."""
    columns = group.columns
    return {
        "file": group.files[int(columns["file"][row])],
        "line": int(columns["line"][row]),
        "offset": int(columns["offset"][row]),
        "source": group.sources[int(columns["source"][row])],
        "bytes": int(columns["bytes"][row]),
    }


def _text(candidates: compare.Compared, number: int) -> npt.NDArray[np.uint8]:
    """The normalised text number `number` of a group."""
    foreign = len(candidates.foreign)
    if number < foreign:
        return np.frombuffer(candidates.foreign[number], np.uint8)
    row = candidates.rows[number - foreign : number - foreign + 1]
    out = np.empty(int(candidates.group.texts.lengths[row[0]]), np.uint8)
    candidates.group.texts.copy(row, out, np.zeros(1, np.int64))
    return out


def _around_first_difference(both: Iterable[npt.NDArray[np.uint8]]) -> tuple[str, str]:
    """A stretch of each of two texts from shortly before they differ."""
    one, other = both
    length = min(len(one), len(other))
    differs = np.flatnonzero(one[:length] != other[:length])
    at = int(differs[0]) if len(differs) else length
    begin, end = max(0, at - _BEFORE), at + _SHOWN
    return tuple(text[begin:end].tobytes().decode(errors="ignore") for text in (one, other))  # type: ignore[return-value]
