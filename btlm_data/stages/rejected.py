"""Records that could not be read, and examples of dropped documents: put together from what each block has.

    rejects   a group of blocks   its records, with their lines in whole files; its examples
    listed    whole               the groups' bytes one after the other; the examples among theirs

reads   .rejects of every block (formats/rejects.py), where it has one
writes  acquire/rejects/GROUP.jsonl and GROUP.examples; acquire/listed/rejects.jsonl and examples.jsonl
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import msgspec

from btlm_data.advance import advance
from btlm_data.blocks import Block
from btlm_data.estimate import Estimate, Workload
from btlm_data.formats.rejects import Examples, read_block
from btlm_data.records.batch import FILE_REASONS, NO_TEXT_REASONS
from btlm_data.task import Artifact, Counts, Step, Task, TaskResult
from btlm_data.task_files import TaskFiles

VERSION = 1
GROUP_BLOCKS = 200  # of a task: where a whole corpus cannot be read, their rejects still fit in memory
SHOWN = 3  # damaged places that are named


def estimate(workload: Workload) -> list[Estimate]:
    """What listing the rejects takes; of how many nobody knows, and they are few."""
    groups, rates = -(-workload.blocks // GROUP_BLOCKS), workload.rates
    return [
        Estimate(
            "acquire.rejects", groups, memory_bytes=rates.process_bytes, cpu_seconds=groups * rates.task
        ),
        Estimate("acquire.listed", 1, memory_bytes=rates.process_bytes, cpu_seconds=rates.task),
    ]


class Tally(msgspec.Struct):
    """What rejects come to. damaged: the first few damaged places, of num_damaged. undecodable: records that are no
    UTF-8, by file.
    """

    damaged: list[str] = msgspec.field(default_factory=list)
    num_damaged: int = 0
    undecodable: Counter[str] = msgspec.field(default_factory=Counter)

    def add(self, reject: Mapping[str, Any]) -> None:
        """Take note of one line of rejects.jsonl."""
        if reject["reason"] in FILE_REASONS:
            self.merge([f"{reject['file']}: {reject['detail']}"], 1, {})
        elif reject["reason"] == "invalid_utf8":
            self.undecodable[reject["file"]] += 1

    def merge(self, damaged: Sequence[str], num_damaged: int, undecodable: Mapping[str, int]) -> None:
        """Add what later rejects come to."""
        self.damaged += damaged[: SHOWN - len(self.damaged)]
        self.num_damaged += num_damaged
        self.undecodable.update(undecodable)


class Listed(NamedTuple):
    """Of all blocks. rejects, examples: rejects.jsonl and examples.jsonl. first_fault: file, line (from 0, in the file),
    reason and detail of the first at which --strict stops, if any.
    """

    num_rejects: int
    tally: Tally
    first_fault: tuple[str, int, str, str] | None
    rejects: Artifact
    examples: Artifact


def run(step: Callable[[Step], list[TaskResult]], blocks: Sequence[Block], most_examples: int) -> Listed:
    """List the rejects of all blocks. step: runs a step. most_examples: kept of each reason."""
    results = step(plan(blocks, most_examples))
    tally, count, faults = Tally(), 0, []
    for result in results:
        extra = result.counts.extra
        tally.merge(*extra["tally"])
        count += extra["count"]
        faults += [extra["fault"]] if extra["fault"] is not None else []
    [whole] = step(plan_listed(results, most_examples))
    by_name = {artifact.name.rpartition("/")[2]: artifact for artifact in whole.outputs}
    first_fault = tuple(faults[0]) if faults else None
    return Listed(count, tally, first_fault, by_name["rejects.jsonl"], by_name["examples.jsonl"])


def plan(blocks: Sequence[Block], most_examples: int) -> Step:
    """A task per group of blocks."""
    tasks = []
    for number, first in enumerate(range(0, len(blocks), GROUP_BLOCKS)):
        group = blocks[first : first + GROUP_BLOCKS]
        with_rejects = [(block.first_line, block.rejects) for block in group if block.rejects is not None]
        name = f"acquire/rejects/{number:06d}"
        tasks.append(
            Task(
                id=f"{number:06d}",
                args={"first_lines": [line for line, _ in with_rejects], "examples": most_examples},
                reads={"rejects": [artifact for _, artifact in with_rejects]},
                outputs=[("work", f"{name}.jsonl"), ("work", f"{name}.examples")],
            )
        )
    return Step("acquire.rejects", VERSION, collect, tasks, None, "", "task")


def collect(task: Task, settings: None, files: TaskFiles) -> Counts:
    """The rejects and examples of a group. Raises DataError if a line of a block's file is torn."""
    tally, count, fault = Tally(), 0, None
    examples = Examples(task.args["examples"])
    (_, lines_name), (_, examples_name) = task.outputs
    with files.create(lines_name) as creating:
        for artifact, first_line in zip(task.reads["rejects"], task.args["first_lines"], strict=True):
            for value in read_block(files.read(artifact), artifact.name):
                if "hash" in value:
                    _offer(examples, value)
                    continue
                value["line"] += first_line
                if fault is None and value["reason"] not in NO_TEXT_REASONS:
                    fault = [value[key] for key in ("file", "line", "reason", "detail")]
                value["line"] += 1
                tally.add(value)
                creating.file.write((json.dumps(value, ensure_ascii=False, sort_keys=True) + "\n").encode())
                count += 1
    _write(files, examples_name, examples)
    advance(task.weight)
    tally_values = [tally.damaged, tally.num_damaged, dict(tally.undecodable)]
    return Counts(extra={"count": count, "tally": tally_values, "fault": fault})


def plan_listed(groups: Sequence[TaskResult], most_examples: int) -> Step:
    """One task: a few bytes for each reject. groups: results of `plan`."""
    task = Task(
        "all",
        args={"examples": most_examples},
        reads={
            ending: [file for group in groups for file in group.outputs if file.name.endswith(f".{ending}")]
            for ending in ("jsonl", "examples")
        },
        outputs=[("work", f"acquire/listed/{name}.jsonl") for name in ("rejects", "examples")],
    )
    return Step("acquire.listed", VERSION, put_together, [task], None, "", "task")


def put_together(task: Task, settings: None, files: TaskFiles) -> Counts:
    """The lists of all groups as one."""
    (_, lines_name), (_, examples_name) = task.outputs
    with files.create(lines_name) as creating:
        for artifact in task.reads["jsonl"]:
            creating.file.write(files.read(artifact))
    examples = Examples(task.args["examples"])
    for artifact in task.reads["examples"]:
        for value in read_block(files.read(artifact), artifact.name):
            _offer(examples, value)
    _write(files, examples_name, examples)
    advance(task.weight)
    return Counts()


def _offer(examples: Examples, value: Mapping[str, Any]) -> None:
    kept = {key: item for key, item in value.items() if key not in ("reason", "hash")}
    examples.add(value["reason"], value["hash"], kept)


def _write(files: TaskFiles, name: str, examples: Examples) -> None:
    with files.create(name) as creating:
        creating.file.write("".join(f"{line}\n" for line in examples.lines()).encode())
