"""Joining the documents of a corpus that one process cannot join: as it would, in tasks over ranges of documents.

    small-1            edges of a range of documents          -> what small-star makes of them (kernels/stars.py)
    large-N, small-N   edges of small-star, of large-star     -> of the other, until they are stars: each document leads to the
                                                                 first one of its component alone
    labels             documents in components                -> records of them, by the range of their component's first one
    whole              whole components of a range            -> what follows of each (components.rank), and their sizes
    numbers            sizes of all components, in order      -> groups (groups.py). One task: 4 bytes a component, a range at a time
    places             groups of some whole components        -> records by the range of the document
    components         records of a range, and the others     -> what components.write writes of it

A task holds some 64 bytes for each document of its range; one of `whole`, 200 bytes for each member of some components, or of one. How many
rounds of stars there are follows from the edges alone. Edges lie in files by group (by_group.py; range r is group r + 1), which are
put together where a range would look into too many.

dedupe/small-N, large-N/RANGE-NUMBER.cols  tables `down` and, of small-star, `up`: edges (ranges.py) by their later, and by their earlier document
dedupe/labels/RANGE-NUMBER.cols            table `labels` of LABEL
dedupe/whole/RANGE-NUMBER.cols             of members in the order of component and document, (n,) each: `ordinal`, `root`, `cluster`, `best`, `score`,
                                           `compared`, `known` (components.py), `component` uint32; and of components `sizes` (c,) uint32
dedupe/numbers/NUMBER.cols                 of each of these files `group` (c,) uint32
dedupe/places/NUMBER-NUMBER.cols           table `places` of PLACED
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import numpy.typing as npt
from msgspec.structs import replace

from btlm_data import by_group
from btlm_data.advance import advance
from btlm_data.by_ordinal import ByOrdinal
from btlm_data.dedupe import components, groups
from btlm_data.dedupe.links import Links
from btlm_data.dedupe.parts import Parts
from btlm_data.dedupe.ranges import Ranges, damaged
from btlm_data.dedupe.settings import ClusterSettings
from btlm_data.engine.runner import Runner
from btlm_data.kernels import stars
from btlm_data.task import Artifact, Counts, Step, StoreName, Task, TaskResult
from btlm_data.task_files import TaskFiles

if TYPE_CHECKING:
    from btlm_data.dedupe.steps import Sorted, Steps

VERSION = 1
# A member of a component, in the range of the component's first document; cluster: its place there.
LABEL = np.dtype(
    [
        ("cluster", "<u4"),
        ("ordinal", "<i8"),
        ("root", "<i8"),
        ("score", "<u4"),
        ("bytes", "<u4"),
        ("known", "?"),
        ("nominated", "?"),
    ]
)
# A member in its own range; place: there.
PLACED = np.dtype(
    [
        ("place", "<u4"),
        ("root", "<i8"),
        ("cluster", "<i8"),
        ("best", "<i8"),
        ("score", "<u4"),
        ("group", "<u4"),
        ("compared", "?"),
        ("known", "?"),
    ]
)
_CODE = np.dtype("<u8")
MOST_FILES = 512  # that a range looks into: reads stay long, however many ranges there are
_EDGES = 2**21  # at once
_ROWS = 2**19  # of records at once
_MEMBER_MEMORY = 200  # of a member of whole components
Int64Array = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]
Work = Callable[[Task, Any, TaskFiles], Counts]


def plan_components(
    steps: Steps, exact: Artifact | None, places: Artifact | None, extra: Mapping[str, int]
) -> Step:
    """The last step. exact, places: lists of files; none only to see what is done. extra: what its results say besides."""
    through = {
        "exact": [exact] if exact is not None else [],
        "places": [places] if places is not None else [],
    }
    outputs = (f"{components.FOLDER}/{number:06d}.cols" for number in range(steps.ranges.count))
    tasks = _tasks(steps, through, [[("work", name)] for name in outputs], {"extra": dict(extra)})
    return _step(steps, "components", write, tasks)


def run(
    steps: Steps, runner: Runner, exact: Artifact, bands: Sorted, documents: Sequence[Artifact]
) -> list[TaskResult]:
    """Join the edges; returns the results of `components`. exact: list of the first documents of texts. documents: of
    components.plan_documents.
    """
    passes = list[Step]()
    edges = steps.list_edges(runner, "bands", bands.edges, passes)
    lengths = steps.list_documents(runner, documents)
    least = _stars(steps, runner, {"edges": [edges], "exact": [exact]}, passes)
    through = {"down": [least], "exact": [exact], "edges": [edges], "documents": [lengths]}
    labelling = _step(steps, "labels", label, _tasks(steps, through))
    labels = _listed(steps, runner, labelling, runner.run(labelling), passes)
    through = {"labels": [labels], "documents": [lengths]}
    uniting = _step(steps, "whole", unite, _tasks(steps, through))
    whole = [output for result in runner.run(uniting) for output in result.outputs]
    numbering = _step(steps, "numbers", number_groups, [_numbers(steps, whole)])
    [numbers] = runner.run(numbering)
    placing = _step(steps, "places", place, _places(steps, whole, numbers.outputs))
    places = _listed(steps, runner, placing, runner.run(placing), passes)
    results = runner.run(plan_components(steps, exact, places, bands.verified))
    runner.discard(*passes, uniting, numbering)
    return results


def _stars(
    steps: Steps, runner: Runner, through: Mapping[str, Sequence[Artifact]], passes: list[Step]
) -> Artifact:
    """Small-star and large-star until nothing changes: the list of edges. The steps are appended to `passes`: what each makes is kept
    until all is joined, so that a run that is killed goes on where it was.
    """
    for number in itertools.count(1):
        step = _step(steps, f"small-{number}", small_star, _tasks(steps, through))
        edges = _listed(steps, runner, step, runner.run(step), passes)
        step = _step(steps, f"large-{number}", large_star, _tasks(steps, {"edges": [edges]}))
        results = runner.run(step)
        if not any(result.counts.extra["changed"] for result in results):
            passes.append(step)
            return edges
        through = {"edges": [_listed(steps, runner, step, results, passes)]}
    raise AssertionError("unreachable")


def _step(steps: Steps, name: str, work: Work, tasks: Sequence[Task]) -> Step:
    named = [replace(task, hints={**task.hints, "step": name}) for task in tasks]
    return Step(f"dedupe.{name}", VERSION, work, named, steps.settings, steps.lineage, "doc")


def _tasks(
    steps: Steps,
    through: Mapping[str, Sequence[Artifact]],
    outputs: Sequence[Sequence[tuple[StoreName, str]]] | None = None,
    hints: Mapping[str, Any] | None = None,
) -> list[Task]:
    """A task per range. outputs: of each, where they are known."""
    ranges = steps.ranges
    return [
        Task(
            id=f"{number:06d}",
            args={"documents": list(ranges.bounds(number)), **ranges.args},
            inputs=[steps.lineage],
            through=through,
            outputs=outputs[number] if outputs is not None else (),
            weight=last - first,
            hints={"ranges": ranges, "range": number, **(hints or {})},
        )
        for number in range(ranges.count)
        for first, last in [ranges.bounds(number)]
    ]


def _listed(
    steps: Steps, runner: Runner, step: Step, results: Sequence[TaskResult], passes: list[Step]
) -> Artifact:
    """Put together what a step wrote by ranges where a range would look into too many files: the list of files. The step, and those
    that move what it wrote, are appended to `passes`.
    """
    memory = steps.settings.memory_bytes
    written = [output for result in results for output in result.outputs]
    passes.append(step)
    held = by_group.gathered(
        runner, step.name, written, steps.ranges.count, memory, most_files=MOST_FILES, passes=passes
    )
    runner.named.add(name := f"{step.folder}.json")
    return by_group.write_list(runner.stores.work, name, held)


# Stars ------------------------------------------------------------------------------------------------------


def small_star(task: Task, settings: ClusterSettings, files: TaskFiles) -> Counts:
    """What the edges of a range become. The first time these are what sorting has connected, and copies with their first
    document.
    """
    ranges: Ranges = task.hints["ranges"]
    first, last = task.args["documents"]
    earliest = np.arange(first, last, dtype=np.int64)
    for codes in _down(task, files):
        stars.lower(earliest, codes, ranges.bits)
    writer = _writer(task, settings, files)
    for codes in _down(task, files):
        for begin in range(0, len(codes), _EDGES):
            part = codes[begin : begin + _EDGES]
            _add_edges(writer, ranges, *stars.small_star(earliest, part, ranges.bits, first), both=True)
    writer.flush()
    advance(task.weight)
    return Counts()


def large_star(task: Task, settings: ClusterSettings, files: TaskFiles) -> Counts:
    """What the edges that lead into a range become. extra: `changed`, whether they are other ones, or a document leads to several."""
    ranges: Ranges = task.hints["ranges"]
    first, last = task.args["documents"]
    earliest = np.arange(first, last, dtype=np.int64)
    for codes in _down(task, files):
        stars.lower(earliest, codes, ranges.bits)
    changed = sum(stars.count_others(earliest, codes, ranges.bits) for codes in _down(task, files))
    writer = _writer(task, settings, files)
    for piece in by_group.of_group(files, task.through["edges"][0], task.hints["range"] + 1):
        codes = by_group.as_records(piece.of("up")[0], _CODE)
        for begin in range(0, len(codes), _EDGES):
            part = codes[begin : begin + _EDGES]
            later, earlier, others = stars.large_star(earliest, part, ranges.bits, first)
            changed += others
            _add_edges(writer, ranges, later, earlier, both=False)
    writer.flush()
    advance(task.weight)
    return Counts(extra={"changed": changed > 0})


def _down(task: Task, files: TaskFiles) -> Iterator[npt.NDArray[np.uint64]]:
    """The edges of a range, (e,) uint64, in parts."""
    ranges: Ranges = task.hints["ranges"]
    is_first = "exact" in task.through
    for piece in by_group.of_group(files, task.through["edges"][0], task.hints["range"] + 1):
        if is_first:
            [links] = _links([piece], ranges, task)
            yield ranges.pack(links.first[0], links.other[0])
        else:
            yield by_group.as_records(piece.of("down")[0], _CODE)
    if is_first:
        first, last = task.args["documents"]
        roots = ByOrdinal(files, task.through["exact"][0]).rows("root", first, last)
        ordinals = np.arange(first, last, dtype=roots.dtype)
        is_copy = roots != ordinals
        yield ranges.pack(roots[is_copy], ordinals[is_copy])


def _links(pieces: Sequence[by_group.Piece], ranges: Ranges, task: Task) -> list[Links]:
    return [Links.of_piece(piece, ranges, f"An edge of range {task.id}") for piece in pieces]


def _writer(task: Task, settings: ClusterSettings, files: TaskFiles) -> by_group.Writer:
    prefix = f"dedupe/{task.hints['step']}/{task.id}"
    return by_group.Writer(files, prefix, by_group.file_bytes_of(settings.memory_bytes))


def _add_edges(
    writer: by_group.Writer, ranges: Ranges, later: Int64Array, earlier: Int64Array, *, both: bool
) -> None:
    """Add edges by their later documents, and if `both` by their earlier ones."""
    tables = {}
    ends = {"down": (later, earlier), "up": (earlier, later)} if both else {"down": (later, earlier)}
    for table, (ordinals, others) in ends.items():
        codes, bounds = stars.by_range(ordinals, others, ranges.log, ranges.bits, ranges.count)
        numbers = np.arange(1, ranges.count + 1, dtype=np.uint32)
        tables[table] = (codes, np.repeat(numbers, np.diff(bounds)))
    writer.add(by_group.piece_of(tables))


# Components -------------------------------------------------------------------------------------------------


class _Marks(msgspec.Struct, frozen=True):
    """Of the documents of a range, (n,) bool: an index has it; it is compared with some of an index."""

    known: BoolArray
    nominated: BoolArray


def _marks(task: Task, files: TaskFiles) -> _Marks:
    ranges: Ranges = task.hints["ranges"]
    first, last = task.args["documents"]
    known, nominated = np.zeros(last - first, np.bool_), np.zeros(last - first, np.bool_)
    for held in by_group.read_list(files, task.through["exact"][0]):
        if held.first < last and first < held.end:
            files.allow([held.file])
            ordinals = files.columns(held.file)["known"].astype(np.int64)
            known[ordinals[(ordinals >= first) & (ordinals < last)] - first] = True
    for piece in by_group.of_group(files, task.through["edges"][0], task.hints["range"] + 1):
        [links] = _links([piece], ranges, task)
        known[links.known[0].astype(np.int64) - first] = True
        nominated[links.in_index[0].document - first] = True
    return _Marks(known, nominated)


def label(task: Task, settings: ClusterSettings, files: TaskFiles) -> Counts:
    """Records of the documents of a range that are in a component of several or have to do with an index, by the range of their
    component's first document.
    """
    ranges: Ranges = task.hints["ranges"]
    first, last = task.args["documents"]
    clusters = np.arange(first, last, dtype=np.int64)
    marks = _marks(task, files)
    for piece in by_group.of_group(files, task.through["down"][0], task.hints["range"] + 1):
        stars.lower(clusters, by_group.as_records(piece.of("down")[0], _CODE), ranges.bits)
    roots = ByOrdinal(files, task.through["exact"][0])
    documents = ByOrdinal(files, task.through["documents"][0])
    writer = _writer(task, settings, files)
    for begin in range(first, last, _ROWS):
        end = min(begin + _ROWS, last)
        own = slice(begin - first, end - first)
        ordinals = np.arange(begin, end, dtype=np.int64)
        known, nominated = marks.known[own], marks.nominated[own]
        rows = np.flatnonzero((clusters[own] != ordinals) | known | nominated)
        records = np.empty(len(rows), LABEL)
        cluster = clusters[own][rows]
        records["cluster"], records["ordinal"] = ranges.places_of(cluster), ordinals[rows]
        records["root"] = roots.rows("root", begin, end)[rows]
        records["score"] = documents.rows("score", begin, end)[rows]
        records["bytes"] = documents.rows("num_bytes", begin, end)[rows]
        records["known"], records["nominated"] = known[rows], nominated[rows]
        writer.add(by_group.piece_of({"labels": (records, ranges.groups_of(cluster))}))
    writer.flush()
    advance(task.weight)
    return Counts()


def unite(task: Task, settings: ClusterSettings, files: TaskFiles) -> Counts:
    """What follows of the components whose first documents are in a range: as many at a time, in a file of their own, as memory
    holds: how they are cut depends on it, so what reads them names them.
    """
    ranges: Ranges = task.hints["ranges"]
    first, last = task.args["documents"]
    counts = np.zeros(last - first + 1, np.int64)
    for records in _labels(task, files):
        if len(records) and (
            int(records["cluster"].max()) >= last - first or int(records["ordinal"].min()) < first
        ):
            raise damaged(f"dedupe.labels of range {task.id}", ranges.num_documents)
        counts += np.bincount(records["cluster"], minlength=len(counts))
    before = np.cumsum(counts) - counts
    edges = np.unique(np.searchsorted(before, np.arange(0, before[-1], _members(settings)), side="left"))
    del counts, before
    for number, (begin, end) in enumerate(pairwise([*edges.tolist(), last - first])):
        parts = (
            records[(records["cluster"] >= begin) & (records["cluster"] < end)]
            for records in _labels(task, files)
        )
        own = np.concatenate([np.empty(0, LABEL), *parts])
        if len(own):
            files.write_columns(f"dedupe/whole/{task.id}-{number:05d}.cols", _united(task, files, own))
    advance(task.weight)
    return Counts()


def _members(settings: ClusterSettings) -> int:
    """Members of components that are held at once, at least 256, unless one component has more."""
    return max(256, settings.memory_bytes // 2 // _MEMBER_MEMORY)


def _labels(task: Task, files: TaskFiles) -> Iterator[npt.NDArray[np.void]]:
    for piece in by_group.of_group(files, task.through["labels"][0], task.hints["range"] + 1):
        yield by_group.as_records(piece.of("labels")[0], LABEL)


def _united(task: Task, files: TaskFiles, records: npt.NDArray[np.void]) -> dict[str, npt.NDArray[Any]]:
    """Columns of whole components. records: (n,) of LABEL."""
    ranges: Ranges = task.hints["ranges"]
    first, _ = task.args["documents"]
    is_first = records["ordinal"] == records["cluster"].astype(np.int64) + first
    alone = np.setdiff1d(records["cluster"], records["cluster"][is_first])
    records = np.concatenate([records, _firsts(task, files, alone)])
    codes = _codes(records, "ordinal", ranges)
    order = np.argsort(codes)
    records, codes = records[order], codes[order]
    begins = np.flatnonzero(np.diff(records["cluster"].astype(np.int64), prepend=-1)).astype(np.uint32)
    component = np.repeat(np.arange(len(begins), dtype=np.uint32), np.diff(begins, append=len(records)))
    wanted = _codes(records, "root", ranges)
    roots = np.searchsorted(codes, wanted)
    if (codes[np.minimum(roots, len(codes) - 1)] != wanted).any():
        raise damaged(f"dedupe.labels of range {task.id}", ranges.num_documents)
    clusters = begins[component]
    members = components.Components(
        roots.astype(np.uint32), clusters, np.flatnonzero(records["known"]).astype(np.uint32)
    )
    one_thread = Parts(len(records), 1)
    score, num_bytes = (np.ascontiguousarray(records[name]) for name in ("score", "bytes"))
    nominated = np.flatnonzero(records["nominated"])
    ranked = components.rank(members, nominated, score, num_bytes, one_thread)
    groups.add_up(clusters, ranked.sizes, one_thread)
    return {
        "ordinal": records["ordinal"].copy(),
        "root": records["root"].copy(),
        "cluster": records["cluster"].astype(np.int64) + first,
        "best": records["ordinal"][ranked.best],
        "score": ranked.score,
        "compared": ranked.compared,
        "known": ranked.known,
        "component": component,
        "sizes": ranked.sizes[begins],
    }


def _codes(records: npt.NDArray[np.void], end: str, ranges: Ranges) -> npt.NDArray[np.uint64]:
    """Component and document as one number, by which members are put in order."""
    codes: npt.NDArray[np.uint64] = records["cluster"].astype(np.uint64) << np.uint64(ranges.bits)
    return codes | records[end].astype(np.uint64)


def _firsts(task: Task, files: TaskFiles, places: npt.NDArray[np.uint32]) -> npt.NDArray[np.void]:
    """Records of documents of a range that are the first of their components, which no other range knows of."""
    first, last = task.args["documents"]
    documents = ByOrdinal(files, task.through["documents"][0])
    out = np.zeros(len(places), LABEL)
    out["cluster"], out["ordinal"] = places, places.astype(np.int64) + first
    out["root"] = out["ordinal"]
    for name, column in (("score", "score"), ("bytes", "num_bytes")):
        out[name] = documents.rows(column, first, last)[places]
    return out


def _numbers(steps: Steps, whole: Sequence[Artifact]) -> Task:
    names = [f"dedupe/numbers/{number:06d}.cols" for number in range(len(whole))]
    return Task(
        id="all",
        inputs=[steps.lineage],
        reads={"whole": whole},
        outputs=[("work", name) for name in names],
        weight=max(1, steps.num_documents),
    )


def _places(steps: Steps, whole: Sequence[Artifact], numbers: Sequence[Artifact]) -> list[Task]:
    """A task per file of whole components."""
    return [
        Task(
            id=f"{number:06d}",
            args=steps.ranges.args,
            inputs=[steps.lineage],
            reads={"whole": [file], "numbers": [groups_of]},
            weight=max(1, steps.num_documents // len(whole)),
            hints={"ranges": steps.ranges},
        )
        for number, (file, groups_of) in enumerate(zip(whole, numbers, strict=True))
    ]


def number_groups(task: Task, settings: ClusterSettings, files: TaskFiles) -> Counts:
    """Put all components into groups, in order."""
    before = (0, 0)
    for artifact, (_, name) in zip(task.reads["whole"], task.outputs, strict=True):
        group = files.columns(artifact)["sizes"].copy()
        before = groups.number(group, before)
        files.write_columns(name, {"group": group})
    advance(task.weight)
    return Counts()


def place(task: Task, settings: ClusterSettings, files: TaskFiles) -> Counts:
    """Send what follows of the components of a range to the ranges of their documents."""
    ranges: Ranges = task.hints["ranges"]
    whole = files.columns(task.reads["whole"][0])
    group = files.columns(task.reads["numbers"][0])["group"]
    writer = _writer(task, settings, files)
    total = whole.shape("ordinal")[0]
    for begin in range(0, total, _ROWS):
        end = min(begin + _ROWS, total)
        ordinals = whole.rows("ordinal", begin, end)
        records = np.empty(len(ordinals), PLACED)
        records["place"] = ranges.places_of(ordinals)
        for name in ("root", "cluster", "best", "score", "compared", "known"):
            records[name] = whole.rows(name, begin, end)
        records["group"] = group[whole.rows("component", begin, end)]
        writer.add(by_group.piece_of({"places": (records, ranges.groups_of(ordinals))}))
    writer.flush()
    advance(task.weight)
    return Counts()


def write(task: Task, settings: ClusterSettings, files: TaskFiles) -> Counts:
    """The components of a range of documents. extra: `groups`, the last one that has a document here, and the task's own."""
    ranges: Ranges = task.hints["ranges"]
    first, last = task.args["documents"]
    total = last - first
    alone = np.arange(first, last, dtype=ranges.dtype)
    columns: dict[str, npt.NDArray[Any]] = {name: alone.copy() for name in ("root", "cluster", "best")}
    columns |= {name: np.zeros(total, np.uint32) for name in ("score", "group")}
    columns |= {name: np.zeros(total, np.bool_) for name in ("compared", "known")}
    for piece in by_group.of_group(files, task.through["places"][0], task.hints["range"] + 1):
        records = by_group.as_records(piece.of("places")[0], PLACED)
        if len(records) and int(records["place"].max()) >= total:
            raise damaged(f"dedupe.places of range {task.id}", ranges.num_documents)
        for name, column in columns.items():
            column[records["place"]] = records[name]
    files.write_columns(task.outputs[0][1], columns)
    advance(task.weight)
    return Counts(extra={"groups": int(columns["group"].max(initial=0)), **task.hints["extra"]})
