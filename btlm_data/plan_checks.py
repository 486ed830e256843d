"""What a run would stop at, looked up without running it: output, disk, evaluation sets, and what a sample of
the records shows.

How much deduplication would remove is known only after it, and is not looked at.
"""

from __future__ import annotations

import os
import shutil
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from btlm_data import input_checks, mix_plan, pipeline, work_folder
from btlm_data.cleaning.evaluation_ngrams import EvalNgrams
from btlm_data.cleaning.evaluation_sets import EvaluationFile
from btlm_data.errors import BtlmError, ConfigError, InputError, OutputError
from btlm_data.locations import Stores
from btlm_data.preparation import Inputs
from btlm_data.stages.block_writer import strict_error
from btlm_data.stages.rejected import Tally
from btlm_data.task import Counts
from btlm_data.wording import amount, counted

_MOST_EVALUATION_BYTES = 64_000_000  # of evaluation sets that a plan reads


class Stop(msgspec.Struct, frozen=True):
    """Why a run would end before its dataset is made. exit_code: of that run."""

    message: str
    exit_code: int


class Looked(msgspec.Struct):
    """What the sample of a plan showed. acquire, clean: cells of the ledger. rejects: lines as in
    rejects.jsonl; `line` is None where it is not known. whole: everything that a run would read was looked
    at. tokens: of each source; scale: how many times as much there is in all.
    """

    acquire: Counts = msgspec.field(default_factory=Counts)
    clean: Counts = msgspec.field(default_factory=Counts)
    rejects: list[Mapping[str, Any]] = msgspec.field(default_factory=list)
    whole: bool = False
    tokens: Counter[str] = msgspec.field(default_factory=Counter)
    scale: float = 1.0


class Findings(msgspec.Struct, frozen=True):
    """stops: what ends the run; remarks: what may be a mistake, as far as the sample shows; finished: the
    dataset is there already.
    """

    stops: tuple[Stop, ...]
    remarks: tuple[str, ...]
    finished: bool


def look(inputs: Inputs, stores: Stores, looked: Looked, out_bytes: int, work_bytes: int) -> Findings:
    """Everything that can be known before. out_bytes, work_bytes: what the run is expected to hold at most."""
    stops: list[Stop] = []

    def tried(check: Callable[[], Any], collected: list[Stop]) -> Any:
        try:
            return check()
        except BtlmError as error:
            collected.append(Stop(str(error), error.exit_code))
            return None

    tried(lambda: work_folder.is_ours(stores.work), stops)
    finished = bool(tried(lambda: pipeline.is_finished(inputs, stores), stops))
    tried(lambda: _check_evaluation(inputs.evaluation), stops)
    if not finished:
        tried(lambda: _check_disk(stores, out_bytes, work_bytes), stops)
    tried(lambda: _check_strict(inputs, looked), stops)
    tried(lambda: input_checks.check_rejected(inputs, looked.acquire, looked.rejects, None), stops)
    tried(lambda: input_checks.check_memory_of_names(inputs, looked.acquire), stops)
    tried(lambda: _check_mix(inputs, looked), stops)
    unknown: list[Stop] = []
    tried(lambda: input_checks.check_source_names(inputs, looked.acquire), unknown)
    num_records = input_checks.num_records(looked.acquire)
    tally = Tally()
    for reject in looked.rejects:
        tally.add(reject)
    remarks = input_checks.reject_warnings(tally, num_records)
    if not looked.whole:
        remarks += [f"In the {counted(num_records, 'record')} looked at: {stop.message}" for stop in unknown]
        return Findings(tuple(stops), tuple(remarks), finished)
    stops += unknown
    if not stops:
        tried(lambda: _check_left(inputs, looked), stops)
    return Findings(tuple(stops), tuple(remarks), finished)


def _check_evaluation(files: Sequence[EvaluationFile]) -> None:
    """Read the evaluation sets, up to so many bytes of whole files. Raises InputError as the run would."""
    chosen, num_bytes = [], 0
    for file in files:
        num_bytes += os.path.getsize(file.name)
        if num_bytes <= _MOST_EVALUATION_BYTES:
            chosen.append(file)
    if chosen:
        EvalNgrams.read(chosen)


def _check_strict(inputs: Inputs, looked: Looked) -> None:
    """Raise InputError for the first record that cannot be read, under --strict."""
    if inputs.run.strict and (first := input_checks.first_fault(looked.rejects)) is not None:
        raise strict_error(first["file"], (first["line"] or 1) - 1, first["reason"], first["detail"])


def _check_mix(inputs: Inputs, looked: Looked) -> None:
    """Raise ConfigError, as the run would, where a mix by budget cannot be had of so many tokens of each source. What
    deduplication and the holdout take away is not known, and not counted.
    """
    mix = inputs.settings.mix
    available = {source: round(count * looked.scale) for source, count in looked.tokens.items() if count}
    if not mix.is_budget or not available or not (looked.whole or available.keys() >= set(mix.named_sources)):
        return
    for set_ in inputs.settings.seq_len:
        part = 1.0 if set_.share is None else set_.share
        tokens = {source: round(count * part) for source, count in available.items()}
        try:
            mix_plan.allocate(mix, tokens, part)
        except ConfigError as error:
            how = "counted" if looked.whole else "estimated from a sample"
            raise ConfigError(f"{error}\n(Tokens are {how}, before deduplication and holdout.)") from None


def _check_disk(stores: Stores, out_bytes: int, work_bytes: int) -> None:
    """Raise OutputError where a local disk has less room than is expected to be needed beside what is there
    already.
    """
    needed: dict[int, tuple[int, Path]] = {}
    for store, num_bytes in ((stores.out, out_bytes), (stores.work, work_bytes)):
        if store.is_local:
            folder = _existing(Path(store.url))
            device = os.stat(folder).st_dev
            before, first = needed.get(device, (0, folder))
            needed[device] = before + max(0, num_bytes - _held(Path(store.url))), first
    for num_bytes, folder in needed.values():
        free = shutil.disk_usage(folder).free
        if num_bytes > free:
            raise OutputError(
                f"The run is expected to need up to {amount(num_bytes, 'B')} on the disk of {folder}, and "
                f"{amount(free, 'B')} are free. Make room, or choose a --work-dir or an --out on another disk."
            )


def _existing(path: Path) -> Path:
    """The path, or the folder above it that is there."""
    while not path.exists():
        path = path.parent
    return path


def _held(folder: Path) -> int:
    """Bytes of the files below a folder; 0 where it is not there."""
    return sum(
        os.lstat(os.path.join(above, name)).st_size for above, _, names in os.walk(folder) for name in names
    )


def _check_left(inputs: Inputs, looked: Looked) -> None:
    """Raise InputError where every record that was looked at is dropped."""
    left = sum(value.documents for (_, _, cell), value in looked.clean.cells.items() if cell == "out")
    if left:
        return
    reasons: Counter[str] = Counter()
    for counts in (looked.acquire, looked.clean):
        for (_, _, cell), value in counts.cells.items():
            if cell.startswith("drop:"):
                reasons[cell.removeprefix("drop:")] += value.documents
    listed = ", ".join(f"{number:,} x {reason}" for reason, number in reasons.most_common() if number)
    if not listed:
        raise InputError("There is no record at all in the files.")
    words = (
        f"No document is left after cleaning: {listed}. Check --text-field, clean.min_chars and the filters."
    )
    raise InputError("\n".join([words, *input_checks.advise_on_empty_texts(inputs, looked.clean)]))
