"""What a run ends with: what there is now, what was kept and dropped and why, where it is, and what to do
next.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterable
from pathlib import Path

import msgspec
from rich.console import Console

from btlm_data.pipeline import Prepared
from btlm_data.recipe.models import Recipe
from btlm_data.records.batch import FILE_REASONS, NO_TEXT_REASONS
from btlm_data.storage import is_remote
from btlm_data.task import Amount
from btlm_data.wording import amount, counted, duration

_DROPPING = ("acquire", "clean", "dedupe", "holdout")  # the stages that drop documents, in order


class SplitOutcome(msgspec.Struct, frozen=True):
    """One split of one set. samples: None for a corpus. bytes: of its shards on disk."""

    set: str
    split: str
    samples: int | None
    tokens: int
    documents: int
    shards: int
    bytes: int


class Outcome(msgspec.Struct, frozen=True):
    """The end of a run, for people and (as JSON) for programs.

    complete: False where --stop-after ended the run. unchanged: the dataset was there before, nothing was
    done. read, kept: documents and bytes of text before and after all stages that drop; None where nothing
    was read. dropped: documents by stage and reason. rejected: records that could not be read. without_text:
    records that are no text by what they are. damaged: places in files where an unknown number of records could
    not be read. not_read: files of the source that were
    not read, by reason (known once complete). generation: its number in the dataset `added_to`, where it was added
    to one. seconds: wall time of this run.
    """

    out: str
    folder: str
    work_dir: str
    complete: bool
    unchanged: bool
    stopped_after: str | None
    seconds: float
    read: dict[str, int] | None
    kept: dict[str, int] | None
    dropped: dict[str, dict[str, int]]
    rejected: int
    without_text: int = 0
    damaged: int = 0
    not_read: dict[str, int] = msgspec.field(default_factory=dict)
    generation: int | None = None
    added_to: str | None = None
    splits: list[SplitOutcome] = msgspec.field(default_factory=list)
    warnings: list[str] = msgspec.field(default_factory=list)

    def total(self, name: str) -> int:
        """The sum of one field over all splits and sets."""
        return sum(getattr(split, name) or 0 for split in self.splits)


def summarise(prepared: Prepared, recipe: Recipe, seconds: float) -> Outcome:
    """What the run did and what is there now. seconds: wall time.

    Raises DataError if dataset.json cannot be read.
    """
    amounts: dict[str, tuple[Amount, Amount]] = {}
    dropped: dict[str, dict[str, int]] = {}
    damaged = Amount()
    for stage in _DROPPING:
        came, left = Amount(), Amount()
        for (_, _, kind), value in prepared.stages[stage].cells.items():
            came = came.plus(value) if kind == "in" else came
            left = left.plus(value) if kind == "out" else left
            if kind.removeprefix("drop:") in FILE_REASONS:
                damaged = damaged.plus(value)
            elif kind.startswith("drop:") and value.documents:
                reasons = dropped.setdefault(stage, {})
                reasons[kind[5:]] = reasons.get(kind[5:], 0) + value.documents
        if came.documents:
            amounts[stage] = came, left
    first = next(iter(amounts.values()), (Amount(), Amount()))[0]
    acquired = dropped.get("acquire", {})
    without_text = sum(acquired[reason] for reason in NO_TEXT_REASONS if reason in acquired)
    last = list(amounts.values())[-1][1] if amounts else Amount()
    return Outcome(
        out=recipe.run.out,
        folder=str(prepared.out),
        work_dir=str(prepared.work_dir),
        complete=prepared.complete,
        unchanged=prepared.already_done,
        stopped_after=None if prepared.complete else recipe.run.stop_after,
        seconds=round(seconds, 3),
        read=_counted(first.minus(damaged)) if amounts else None,
        kept=_counted(last) if amounts else None,
        dropped=dropped,
        rejected=prepared.num_rejects - damaged.documents - without_text,
        without_text=without_text,
        damaged=damaged.documents,
        not_read=_not_read(prepared),
        generation=prepared.generation,
        added_to=prepared.added_to,
        splits=list(_splits(prepared)) if prepared.complete else [],
        warnings=list(prepared.warnings),
    )


def _counted(value: Amount) -> dict[str, int]:
    return {"documents": value.documents, "bytes": value.bytes}


def _not_read(prepared: Prepared) -> dict[str, int]:
    first = next(iter(prepared.datasets.values()), None)
    return {entry.reason: entry.files for entry in first.left_out} if first is not None else {}


def _splits(prepared: Prepared) -> Iterable[SplitOutcome]:
    for name, set_outcome in prepared.datasets.items():
        for split_name, split in set_outcome.splits.items():
            yield SplitOutcome(
                set=name,
                split=split_name,
                samples=split.samples,
                tokens=split.label_tokens if split.samples is not None else split.stream_tokens,
                documents=split.documents,
                shards=len(split.files),
                bytes=sum(file.bytes for file in split.files),
            )


def render(outcome: Outcome, console: Console) -> None:
    """Print the outcome on `console`: four lines, and one for each thing to know besides."""

    def line(text: str, style: str | None = None) -> None:
        console.print(text, soft_wrap=not console.is_terminal, style=style)

    shown = _shown(outcome.folder)
    folder = shlex.quote(shown)
    if outcome.unchanged and outcome.added_to is not None:
        line(f"Nothing to do: this source was added before, as {_generation(outcome)}.")
        line(_next(outcome.added_to))
        return
    if outcome.unchanged:
        line(f"Nothing to do: {shown} holds this very dataset already.")
        line(f"Next: {_report_command(folder) if is_remote(shown) else f'btlm-data verify {folder}'}")
        return
    if outcome.complete:
        line(f"Prepared {_amounts(outcome)} in {duration(outcome.seconds)}.", "bold green")
    else:
        line(
            f"Stopped after {outcome.stopped_after}, as asked, in {duration(outcome.seconds)}. "
            "The same command without --stop-after continues from here."
        )
    if outcome.read is not None and outcome.kept is not None:
        line(_documents(outcome.read, outcome.kept, outcome.dropped))
    if outcome.not_read:
        reasons = ", ".join(f"{number:,} x {reason}" for reason, number in outcome.not_read.items())
        line(f"Not read: {counted(sum(outcome.not_read.values()), 'file')} of the source ({reasons}).")
    for warning in outcome.warnings:
        line(f"Warning: {warning}", "yellow")
    if not outcome.complete:
        return
    line(_locations_line(outcome))
    if outcome.added_to is not None:
        line(f"It is {_generation(outcome)} now.")
    if is_remote(shown):
        line(f"Next: {_report_command(folder)}; btlm-data verify of a copy on this machine")
    else:
        line(_next(outcome.added_to or outcome.folder))


def _generation(outcome: Outcome) -> str:
    """Which part of a dataset this is."""
    assert outcome.added_to is not None
    return f"generation {outcome.generation} of {_shown(outcome.added_to)}"


def _next(folder: str) -> str:
    """What to do with a dataset on this machine."""
    named = shlex.quote(_shown(folder))
    return f"Next: btlm-data inspect {named}; btlm-data verify {named}"


def _report_command(folder: str) -> str:
    """What shows a dataset in an object store."""
    return f"btlm-data inspect {folder} --html"


def _amounts(outcome: Outcome) -> str:
    """20 samples, 40,960 tokens, 3 shards (63.6 kB)."""
    parts = []
    for name, sets in _by_set(outcome).items():
        samples = sum(split.samples or 0 for split in sets)
        tokens = sum(split.tokens for split in sets)
        shown = [counted(samples, "sample")] if any(split.samples is not None for split in sets) else []
        shown.append(counted(tokens, "token"))
        parts.append(f"{name}: {', '.join(shown)}" if name else ", ".join(shown))
    shards, size = counted(outcome.total("shards"), "shard"), amount(outcome.total("bytes"), "B")
    return f"{'; '.join(parts)}, {shards} ({size})"


def _by_set(outcome: Outcome) -> dict[str, list[SplitOutcome]]:
    sets: dict[str, list[SplitOutcome]] = {}
    for split in outcome.splits:
        sets.setdefault(split.set, []).append(split)
    return sets


def _documents(read: dict[str, int], kept: dict[str, int], dropped: dict[str, dict[str, int]]) -> str:
    """Kept 120 of 130 documents (597 kB of 630 kB of text); dropped: too short 7, duplicate 3."""
    text = (
        f"Kept {kept['documents']:,} of {counted(read['documents'], 'document')} "
        f"({amount(kept['bytes'], 'B')} of {amount(read['bytes'], 'B')} of text)"
    )
    reasons: dict[str, int] = {}
    for stage in dropped.values():
        for reason, number in stage.items():
            reasons[reason] = reasons.get(reason, 0) + number
    if not reasons:
        return text + "."
    listed = sorted(reasons.items(), key=lambda item: (-item[1], item[0]))
    shown = ", ".join(f"{reason.replace('_', ' ')} {number:,}" for reason, number in listed[:6])
    rest = sum(number for _, number in listed[6:])
    return f"{text}; dropped: {shown}{f', other reasons {rest:,}' if rest else ''}."


def _locations_line(outcome: Outcome) -> str:
    """Where the dataset is, and where the rest is."""
    text = f"Dataset: {_shown(outcome.folder)}; work files, safe to delete: {_shown(outcome.work_dir)}"
    missing = [counted(outcome.rejected, "record")] * bool(outcome.rejected)
    missing += [counted(outcome.damaged, "damaged place")] * bool(outcome.damaged)
    kinds = [f"{' and '.join(missing)} could not be read"] * bool(missing)
    if outcome.without_text:
        kinds.append(f"{counted(outcome.without_text, 'record')} without text left out")
    if kinds:
        listed = _shown(f"{outcome.folder}/rejects.jsonl")
        text += f"; {', '.join(kinds)}, listed in {listed}"
    return text + "."


def _shown(path: str) -> str:
    """A path as one would type it: relative where it is below the current folder; a URL as it is."""
    if "://" in path or not Path(path).is_relative_to(Path.cwd()):
        return path
    return os.path.relpath(path)
