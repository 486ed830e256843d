"""What was read, held against what was asked for: too many unreadable records, names of sources that there are not."""

from __future__ import annotations

import difflib
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from btlm_data.errors import ConfigError, SafetyStop
from btlm_data.preparation import Inputs
from btlm_data.records.batch import FILE_REASONS
from btlm_data.records.describe import Description, describe_fields
from btlm_data.sources.base import SourceFile
from btlm_data.sources.fetch import Fetcher
from btlm_data.stages.block_writer import UNREADABLE
from btlm_data.task import Counts

SHOWN = 3
_NAME_BYTES = 16_000  # of the counts of one source name in all stages, measured with 10,000 names
_FEW_NAMES = 5_000  # no more than other data of a run
FEW = 10  # so many bad records, and no more than half of all, are bad records and no wrong setting


class RejectWords:
    """What the rejects of a run come to, in words: each damaged place, and advice for reasons that have some."""

    def __init__(self) -> None:
        self._damaged: list[str] = []
        self._num_damaged = 0
        self._undecodable: Counter[str] = Counter()

    def add(self, reject: Mapping[str, Any]) -> None:
        """Take note of one line of rejects.jsonl."""
        if reject["reason"] in FILE_REASONS:
            self._num_damaged += 1
            if len(self._damaged) < SHOWN:
                self._damaged.append(f"{reject['file']}: {reject['detail']}")
        elif reject["reason"] == "invalid_utf8":
            self._undecodable[reject["file"]] += 1

    def warnings(self) -> list[str]:
        """A sentence or two for each thing to know."""
        lines = [f"{location}." for location in self._damaged]
        if self._num_damaged > len(lines):
            lines.append(f"{self._num_damaged - len(lines):,} more damaged places; rejects.jsonl lists them.")
        if self._undecodable:
            (name, _), number = self._undecodable.most_common(1)[0], self._undecodable.total()
            subject = "record is" if number == 1 else "records are"
            lines.append(
                f"{number:,} {subject} not UTF-8, most of them in {name}. If such text is in another encoding, name it: "
                "--set source.encoding=latin-1 (all files are then read so)."
            )
        return lines


def check_rejected(
    inputs: Inputs, acquired: Counts, rejected: Iterable[Mapping[str, Any]], listed_in: str
) -> None:
    """Raise SafetyStop if more than source.max_rejected of the records could not be read, and more than a few.

    A damaged file is one reject whatever it held, and no wrong setting: it is not counted here.
    acquired: the ledger's cells of `acquire`. rejected: the lines of rejects.jsonl. listed_in: where these stand.
    """
    counted = [(source, cell, amount) for (_, source, cell), amount in acquired.cells.items()]
    num_records = sum(amount.documents for _, cell, amount in counted if cell == "in")
    num_rejected = sum(
        amount.documents
        for source, cell, amount in counted
        if source == UNREADABLE and cell.startswith("drop:") and cell[5:] not in FILE_REASONS
    )
    limit = inputs.settings.source.max_rejected
    is_few = num_rejected <= FEW and 2 * num_rejected <= num_records
    if not num_records or num_rejected <= limit * num_records or (is_few and limit > 0):
        return
    reasons: Counter[str] = Counter()
    examples: dict[str, list[Mapping[str, Any]]] = {}
    for reject in rejected:
        if reject["reason"] in FILE_REASONS:
            continue
        reasons[reject["reason"]] += 1
        if len(shown := examples.setdefault(reject["reason"], [])) < SHOWN:
            shown.append(reject)
    reason, count = reasons.most_common(1)[0]
    lines = [
        f"{num_rejected:,} of {num_records:,} records ({num_rejected / num_records:.1%}) could not be read, more than "
        f"source.max_rejected = {limit:.1%}. The commonest reason: {reason} ({count:,} records).",
        *(f"  {reject['file']} line {reject['line']}: {reject['detail']}" for reject in examples[reason]),
    ]
    lines += _advice(inputs, reason, examples[reason][0]["file"])
    lines.append(
        f"All are listed in {listed_in}. If they are to be left out, rerun the same command with --max-rejected "
        f"{min(1.0, num_rejected / num_records + 0.01):.2f}."
    )
    raise SafetyStop("\n".join(lines))


def _advice(inputs: Inputs, reason: str, file_name: str) -> list[str]:
    """What the file that the first example is from holds, and the option that would read it."""
    if "text" not in reason:
        return []
    file = next((file for file in inputs.listing.files if file.name == file_name), None)
    if file is None:
        return []
    with Fetcher.of(inputs.run, inputs.listing).local_copy(file) as path:
        description = describe_fields(path, file, inputs.options)
    tried = file.text_field or inputs.options.fields.text
    return _fields_in_words(description, file, tried)


def _fields_in_words(description: Description, file: SourceFile, tried: str) -> list[str]:
    if not description.fields:
        return []
    shown = ", ".join(
        f"{summary.name} ({summary.kinds[0]}{f', about {summary.median_chars:,} characters' if summary.max_chars else ''})"
        for summary in description.fields[:6]
    )
    lines = [f"The text is looked for in the field {tried!r}. {file.name} has: {shown}."]
    if candidates := description.text_candidates(tried):
        lines.append(f"If the text is in {candidates[0]!r}, rerun with --text-field {candidates[0]}.")
    return lines


def check_memory_of_names(inputs: Inputs, acquired: Counts) -> None:
    """Raise SafetyStop if the accounts of so many source names take more than the --memory given."""
    run = inputs.run
    names = {source for (_, source, cell) in acquired.cells if cell == "in"}
    needed = run.least_memory + len(names) * _NAME_BYTES
    if run.memory is None or needed <= max(run.memory, run.least_memory + _FEW_NAMES * _NAME_BYTES):
        return
    example = json.dumps(min(names), ensure_ascii=False)
    raise SafetyStop(
        f"The field {inputs.options.fields.source!r} names {len(names):,} sources, for example {example}; the accounts of so "
        f"many take {needed / 1e9:.1f} GB together with the rest, more than --memory. If the field is no name of a source, "
        f"name another with --source-field; else rerun with --memory {-(-needed // 10**8) / 10:.1f}GB."
    )


def check_source_names(inputs: Inputs, acquired: Counts) -> None:
    """Raise ConfigError if a setting names a source that no document has, unless run.allow_missing_source.

    What is misspelt in mix, exclude_sources or source_priority would otherwise do nothing, without a word.
    """
    if inputs.run.allow_missing_source:
        return
    names = sorted({source for (_, source, cell) in acquired.cells if cell == "in" and source != UNREADABLE})
    settings = inputs.settings
    by_place = any(
        file.source is not None for file in inputs.listing.files
    )  # the listing has checked exclusions
    used: list[tuple[str, Sequence[str]]] = [
        ("source.exclude_sources (--exclude-source)", () if by_place else settings.source.exclude_sources),
        ("mix (--mix)", tuple(settings.mix)),
        ("dedupe.source_priority (--source-priority)", settings.dedupe.source_priority),
        ("dedupe.expected_removed", tuple(settings.dedupe.expected_removed)),
        ("run.accept_removal_of (--accept-removal-of)", inputs.run.accept_removal_of),
    ]
    for key, wanted in used:
        for name in wanted:
            if name not in names:
                nearest = difflib.get_close_matches(name, names, 1, 0.5)
                guess = f"Did you mean {json.dumps(nearest[0], ensure_ascii=False)}? " if nearest else ""
                shown = ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
                raise ConfigError(
                    f"{key} names the source {json.dumps(name, ensure_ascii=False)}, and no document has it. {guess}"
                    f"Sources here: {shown or 'none'}. Correct the name, or pass --allow-missing-source."
                )
