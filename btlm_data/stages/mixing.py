"""What a mix needs to know of the whole corpus: copies of documents, and of a mix by budget the tokens of each source.

    weigh      a group of blocks -> tokens of their train documents by source and hash
    budget     all groups        -> shuffle/budget/mix.cols: for each train stream `STREAM/whole` and `STREAM/part`
                                    (mix_plan.Borders); the names of sources in its meta

balance none: nothing is moved or dropped; stages/shuffle.py does, and counts it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from btlm_data import mix_plan
from btlm_data.advance import advance
from btlm_data.blocks import Block
from btlm_data.by_ordinal import ByOrdinal
from btlm_data.estimate import Estimate, Workload
from btlm_data.fingerprint import digest
from btlm_data.mix_plan import Borders, Weights
from btlm_data.recipe.mix import MixSettings
from btlm_data.stages.stream import Stream, StreamSettings
from btlm_data.task import Artifact, Counts, Step, Task
from btlm_data.task_files import TaskFiles

VERSION = 1


class MixFiles(NamedTuple):
    """What tasks read for the mix. copies: list of files (dedupe/clusters.py), None where nothing was deduplicated. borders: mix.cols,
    None where the mix is none by budget.
    """

    copies: Artifact | None
    borders: Artifact | None

    def reads(self, mix: MixSettings) -> dict[str, Sequence[Artifact]]:
        """For a task, besides its blocks."""
        reads: dict[str, Sequence[Artifact]] = {}
        if mix.by_copies:
            assert self.copies is not None, "the recipe refuses by_copies without deduplication"
            reads["copies"] = [self.copies]
        if mix.is_budget:
            assert self.borders is not None
            reads["borders"] = [self.borders]
        return reads


class BlockMix(NamedTuple):
    """What a mix needs of one block. stands_for: (n,) documents of the source; None where the mix does not ask.
    borders: by stream, of a mix by budget.
    """

    stands_for: npt.NDArray[np.uint32] | None
    borders: Mapping[str, Borders]


def of_block(task: Task, files: TaskFiles, first: int, last: int) -> BlockMix:
    """Of the documents with ordinals [first, last), as the task reads it."""
    stands_for, borders = None, dict[str, Borders]()
    if "copies" in task.reads:
        stands_for = ByOrdinal(files, task.reads["copies"][0]).rows("copies", first, last)
    if "borders" in task.reads:
        [artifact] = task.reads["borders"]
        borders = files.kept(("borders", artifact.checksum), lambda: _read_borders(files, artifact))
    return BlockMix(stands_for, borders)


def _read_borders(files: TaskFiles, artifact: Artifact) -> dict[str, Borders]:
    opened = files.columns(artifact)
    return {
        stream: Borders(names, *(np.array(opened[f"{stream}/{column}"]) for column in ("whole", "part")))
        for stream, names in opened.meta["sources"].items()
    }


def train_streams(settings: StreamSettings) -> list[Stream]:
    """The streams that are mixed."""
    return [stream for stream in settings.streams if stream.split == "train"]


def estimate(workload: Workload, groups: int) -> list[Estimate]:
    """What counting takes; nothing where the mix is none by budget. groups: tasks."""
    if not workload.settings.mix.is_budget:
        return []
    documents, rates = workload.volume.documents, workload.rates
    cells = 16 * documents  # at most: of a small corpus every document has its own
    return [
        Estimate(
            "shuffle.weigh",
            tasks=groups,
            documents=documents,
            read_bytes=18 * documents,
            reads=6 * workload.blocks,
            work_bytes=cells,
            memory_bytes=rates.process_bytes + 64 * -(-documents // groups),
            cpu_seconds=groups * rates.task + documents * rates.scatter_document / 4,
        ),
        Estimate(
            "shuffle.budget",
            tasks=1,
            documents=documents,
            read_bytes=cells,
            reads=2 * groups,
            work_bytes=0,
            memory_bytes=rates.process_bytes + 3 * 16 * min(documents, 16 * mix_plan.BINS),
            cpu_seconds=rates.task + documents * rates.scatter_document / 8,
        ),
    ]


def plan_weigh(
    blocks: Sequence[Block], groups: Sequence[Sequence[int]], fates: Artifact, settings: StreamSettings
) -> Step:
    """A task per group of consecutive blocks."""
    tasks = [
        Task(
            id=f"{number:06d}",
            args={"blocks": [[blocks[i].first_ordinal, blocks[i].num_documents] for i in group]},
            reads={
                "docs": [blocks[i].docs for i in group],
                "tokens": [blocks[i].tokens for i in group],
                "fates": [fates],
            },
            outputs=[("work", f"shuffle/weigh/{number:06d}.cols")],
            weight=max(1, sum(blocks[i].num_documents for i in group)),
        )
        for number, group in enumerate(groups)
    ]
    s = settings.settings
    decides = digest(VERSION, s.seed, [part.share for part in s.seq_len], list(settings.splits))
    return Step("shuffle.weigh", VERSION, weigh, tasks, settings, decides, "doc")


def weigh(task: Task, settings: StreamSettings, files: TaskFiles) -> Counts:
    """Add up the tokens of one group's train documents."""
    from btlm_data.stages.places import candidates_of

    fates = ByOrdinal(files, task.reads["fates"][0])
    names: dict[str, int] = {}
    parts: dict[str, list[Weights]] = {stream.name: [] for stream in train_streams(settings)}
    described = zip(task.args["blocks"], task.reads["docs"], task.reads["tokens"], strict=True)
    for (first, count), docs_file, tokens_file in described:
        docs = files.columns(docs_file).hold("source", "key")
        lengths = files.columns(tokens_file)["lengths"]
        fate, split = (fates.rows(name, first, first + count) for name in ("fate", "split"))
        codes = np.array([names.setdefault(name, len(names)) for name in docs.meta["sources"]], np.int64)
        hashed = mix_plan.hashes(docs["key"], settings.settings.seed)
        for stream in train_streams(settings):
            candidates, member = candidates_of(docs, fate, split, stream, settings)
            chosen = candidates[member]
            tokens = lengths[chosen].astype(np.uint64) + np.uint64(1)
            parts[stream.name].append(mix_plan.weigh(codes[docs["source"][chosen]], hashed[chosen], tokens))
        advance(count)
    arrays: dict[str, npt.NDArray[Any]] = {}
    for stream_name, weights in parts.items():
        arrays[f"{stream_name}/cell"], arrays[f"{stream_name}/tokens"] = mix_plan.added(weights)
    files.write_columns(task.outputs[0][1], arrays, {"sources": list(names)})
    return Counts()


def plan_budget(weighed: Sequence[Artifact], settings: StreamSettings) -> Step:
    """One task. weighed: what `weigh` wrote."""
    task = Task(id="all", reads={"groups": weighed}, outputs=[("work", "shuffle/budget/mix.cols")])
    s = settings.settings
    decides = digest(VERSION, s.mix.model_dump(mode="json"), [part.share for part in s.seq_len])
    return Step("shuffle.budget", VERSION, budget, [task], settings, decides, "task")


def budget(task: Task, settings: StreamSettings, files: TaskFiles) -> Counts:
    """Turn the mix into borders. Raises ConfigError, with the arithmetic, where it cannot be had."""
    s = settings.settings
    groups = [files.columns(artifact) for artifact in task.reads["groups"]]
    names = sorted({name for group in groups for name in group.meta["sources"]})
    numbers = {name: number for number, name in enumerate(names)}
    weights: dict[str, Weights] = {stream.name: mix_plan.added([]) for stream in train_streams(settings)}
    for group in groups:
        codes = np.array([numbers[name] for name in group.meta["sources"]], np.uint64)
        for stream_name, before in weights.items():
            cell, tokens = group[f"{stream_name}/cell"], group[f"{stream_name}/tokens"]
            weights[stream_name] = mix_plan.added([before, Weights(mix_plan.renumbered(cell, codes), tokens)])
    arrays: dict[str, npt.NDArray[Any]] = {}
    asked: dict[str, dict[str, list[int]]] = {}
    for stream in train_streams(settings):
        share = s.seq_len[stream.set_index].share
        borders, wanted = Borders.of(s.mix, names, weights[stream.name], 1.0 if share is None else share)
        arrays |= {
            f"{stream.name}/whole": borders.whole,
            f"{stream.name}/part": borders.part,
        }
        tokens = wanted.tolist()
        asked[stream.name] = {name: tokens[row] for row, name in enumerate(names) if any(tokens[row])}
    files.write_columns(task.outputs[0][1], arrays, {"sources": dict.fromkeys(asked, names)})
    advance(1)
    return Counts(extra={"asked": asked})
