"""What was requested, held against what there is: too little memory, too many unreadable records, names of
sources that no document has.
"""

from __future__ import annotations

import difflib
import json
import logging
import shlex
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from btlm_data.engine.base import is_on_this_machine
from btlm_data.errors import ConfigError, SafetyStop
from btlm_data.preparation import Inputs
from btlm_data.recipe.models import Run
from btlm_data.records.batch import FILE_REASONS, NO_TEXT_REASONS
from btlm_data.records.describe import Description, describe_fields
from btlm_data.sources.base import SourceFile
from btlm_data.sources.fetch import Fetcher
from btlm_data.stages.block_writer import UNREADABLE
from btlm_data.stages.rejected import SHOWN, Tally
from btlm_data.task import Counts
from btlm_data.wording import counted

logger = logging.getLogger(__name__)

_NAME_BYTES = 16_000  # of the counts of one source name in all stages, measured with 10,000 names
_FEW_NAMES = 5_000  # no more than other data of a run
_NO_FAULTS = FILE_REASONS | NO_TEXT_REASONS  # say nothing about the settings
FEW = 10  # so many bad records, and no more than half of all, are bad records and no wrong setting
_NO_NAME_CHARS = 60  # a longer name of a column is a row where the header should be
_FEW_SHARE = 0.05  # up to it, undecodable records say nothing about a file's encoding
# Up to so much, --memory is no limit that anybody has, but a test of the ways of a large corpus.
_LEAST_MEANT_BYTES = 10**6


def check_memory(run: Run) -> None:
    """Raise ConfigError where run.memory is less than the processes of the run take.

    Less than any process could ever have is taken for what it must be: a small corpus shall go the ways of a
    large one, in the smallest pieces. A warning says that the processes take what they take.
    """
    if not is_on_this_machine(run.engine) or run.memory is None or run.memory >= run.least_memory:
        return
    if run.memory <= _LEAST_MEANT_BYTES:
        logger.warning(
            "--memory (run.memory) is %s bytes, less than any process takes. Work is cut into the smallest pieces, as a "
            "large corpus would be; the processes of this run still take about %d MB.",
            f"{run.memory:,}",
            run.least_memory // 10**6,
        )
        return
    fewer = run.model_copy(update={"workers": 1}).least_memory
    or_fewer = f", or --workers 1 and at least {fewer // 10**6:,} MB" if run.workers > 1 else ""
    raise ConfigError(
        f"--memory (run.memory): {run.memory:,} bytes are less than a run with {counted(run.workers, 'worker')} "
        f"takes. Give --memory {run.least_memory // 10**6}MB or more{or_fewer}."
    )


def reject_warnings(tally: Tally, num_records: int) -> list[str]:
    """What the rejects of a run come to, in words: each damaged place, and advice for reasons that have some. num_records:
    all that were met.
    """
    lines = [f"{location}." for location in tally.damaged]
    if tally.num_damaged > len(lines):
        lines.append(f"{tally.num_damaged - len(lines):,} more damaged places; rejects.jsonl lists them.")
    if tally.undecodable:
        lines.append(_encoding(tally.undecodable, num_records))
    return lines


def _encoding(undecodable: Counter[str], num_records: int) -> str:
    """A few bad records among many good ones are damage; else the text is in another encoding."""
    (name, most), number = undecodable.most_common(1)[0], undecodable.total()
    where = name if most == number else f"{name} and others"
    if number <= FEW and number <= _FEW_SHARE * num_records:
        return f"{counted(number, 'record')} of {where}: not UTF-8, and left out."
    return (
        f"{counted(number, 'record')} of {where}: not UTF-8. If such text is in another encoding, name it: "
        "--set source.encoding=latin-1 (all files are then read so)."
    )


def num_records(acquired: Counts) -> int:
    """Records that were met, readable or not. acquired: the ledger's cells of `acquire`."""
    return sum(amount.documents for (_, _, cell), amount in acquired.cells.items() if cell == "in")


def first_fault(rejects: Iterable[Mapping[str, Any]]) -> Mapping[str, Any] | None:
    """The first of these lines of rejects.jsonl at which --strict stops, if any."""
    return next((reject for reject in rejects if reject["reason"] not in NO_TEXT_REASONS), None)


def check_rejected(
    inputs: Inputs, acquired: Counts, rejected: Iterable[Mapping[str, Any]], listed_in: str | None
) -> None:
    """Raise SafetyStop if more than source.max_rejected of the records could not be read, and more than a
    few.

    A damaged file is one reject whatever it held, and no wrong setting: it is not counted here; nor is a record
    that is no text by what it is. acquired: the
    ledger's cells of `acquire`. rejected: the lines of rejects.jsonl (`line` None: not known). listed_in:
    where these stand, if anywhere.
    """
    cells = [(source, cell, amount) for (_, source, cell), amount in acquired.cells.items()]
    met = num_records(acquired)
    num_rejected = sum(
        amount.documents
        for source, cell, amount in cells
        if source == UNREADABLE and cell.startswith("drop:") and cell[5:] not in _NO_FAULTS
    )
    limit = inputs.settings.source.max_rejected
    is_few = num_rejected <= FEW and 2 * num_rejected <= met
    if not met or num_rejected <= limit * met or (is_few and limit > 0):
        return
    reasons: Counter[str] = Counter()
    examples: dict[str, list[Mapping[str, Any]]] = {}
    for reject in rejected:
        if reject["reason"] in _NO_FAULTS:
            continue
        reasons[reject["reason"]] += 1
        if len(shown := examples.setdefault(reject["reason"], [])) < SHOWN:
            shown.append(reject)
    reason, count = reasons.most_common(1)[0]
    lines = [
        f"{num_rejected:,} of {counted(met, 'record')} ({num_rejected / met:.1%}) could not be read, more than "
        f"source.max_rejected = {limit:.1%}. The commonest reason: {reason} ({counted(count, 'record')}).",
        *(f"  {_location(reject)}: {reject['detail']}" for reject in examples[reason]),
    ]
    lines += _advice(inputs, reason, examples[reason][0]["file"])
    lines.append(
        (f"All are listed in {listed_in}. " if listed_in else "")
        + "If they are to be left out, rerun the same command with --max-rejected "
        f"{min(1.0, num_rejected / met + 0.01):.2f}."
    )
    raise SafetyStop("\n".join(lines))


def _location(reject: Mapping[str, Any]) -> str:
    """Where a rejected record begins."""
    where = f"byte {reject['offset']:,}" if reject["line"] is None else f"line {reject['line']}"
    return f"{reject['file']} {where}"


def _advice(inputs: Inputs, reason: str, file_name: str) -> list[str]:
    """What the file that the first example is from holds, and the option that would read it."""
    return describe_texts(inputs, file_name) if "text" in reason else []


def advise_on_empty_texts(inputs: Inputs, cleaned: Counts) -> list[str]:
    """Where the texts that `clean` has dropped have no bytes: what else the first file's records hold."""
    dropped = [amount for (_, _, cell), amount in cleaned.cells.items() if cell.startswith("drop:")]
    if not dropped or any(amount.bytes for amount in dropped):
        return []
    return ["The texts are empty.", *describe_texts(inputs, inputs.listing.files[0].name)]


def describe_texts(inputs: Inputs, file_name: str) -> list[str]:
    """The fields of a file's records, and the option that names the one which may hold the text."""
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
        f"{summary.name[:_NO_NAME_CHARS]} ({summary.kinds[0]}{f', about {summary.median_chars:,} characters' if summary.max_chars else ''})"
        for summary in description.fields[:6]
    )
    lines = [f"The text is looked for in the field {tried!r}. {file.name} has: {shown}."]
    candidates = description.text_candidates(tried)
    if file.format in ("csv", "tsv") and any(
        len(field.name) > _NO_NAME_CHARS for field in description.fields
    ):
        lines.append(
            f"The first line of {file.name} seems to be a row; it has to name the columns, one of them {tried!r}."
        )
    elif candidates:
        lines.append(
            f"If the text is in {candidates[0]!r}, rerun with --text-field {shlex.quote(candidates[0])}."
        )
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
        ("mix (--mix)", tuple(settings.mix.named_sources)),
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
