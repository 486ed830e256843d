"""Check what dataset.json and provenance.json say against each other and against what they imply: no shard is
read here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import msgspec

from btlm_data.errors import DataError
from btlm_data.formats import provenance
from btlm_data.formats.dataset import FILE_NAME, Dataset, SetList, Split, Tokenizer, without_locations
from btlm_data.formats.guarded import reading, require_regular
from btlm_data.formats.ledger import SPLITS, total
from btlm_data.formats.shard_formats import get_format
from btlm_data.formats.shard_formats.base import StreamSize
from btlm_data.inspection.check import Check, Report, tell_problems
from btlm_data.inspection.opening import Opened
from btlm_data.recipe.models import Settings
from btlm_data.recipe.recorded import settings_of
from btlm_data.stages.pack import packing_of

GPT2 = Tokenizer(
    name="gpt2",
    fingerprint="7bb6c2d311d1a2f4599b90686e2f095394fe5e6c4509924c54a0a5c19c7a96d2",
    eos_id=50256,
    vocab_size=50257,
)
MAX_LINE_BYTES = 1 << 20  # of rejects.jsonl and examples.jsonl


def check_description(opened: Opened, manifest: Dataset, tell: Report) -> None:
    """The checks of dataset.json that need no shard."""
    expected = manifest.expected_fingerprint()
    tell_problems(
        tell,
        "fingerprint",
        []
        if manifest.fingerprint == expected
        else [f"{FILE_NAME} fingerprint: {manifest.fingerprint}, what it describes gives {expected}"],
        "of configuration, inputs and tokenizer, as recomputed",
    )
    problems = [f"{FILE_NAME} {problem}" for problem in _configuration_problems(manifest)]
    tell_problems(
        tell, "configuration", problems, "every setting is valid, and agrees with the rest of the file"
    )
    _check_tokenizer(manifest, tell)
    if opened.chosen is None:
        _check_outputs(opened, manifest, tell)
        check_provenance(opened.root, manifest, manifest, tell)


# Configuration ----------------------------------------------------------------------------------------------


def _configuration_problems(manifest: Dataset) -> Iterator[str]:
    settings = settings_of(manifest.configuration)
    if isinstance(settings, str):
        yield f"configuration: {settings}"
        return
    for key in ("format", "shuffle", "seed"):
        if (stated := getattr(manifest, key)) != (set_to := getattr(settings, key)):
            yield f"{key}: {stated!r}, configuration.{key} is {set_to!r}"
    position, lengths = manifest.set, settings.seq_len
    names = [part.name for part in lengths] if len(lengths) > 1 else [""]
    if position.names != names:
        yield f"set.names: {position.names}, configuration.seq_len makes {names}"
    else:
        part = lengths[position.index]
        if (manifest.seq_len, position.share) != (part.seq_len, part.share):
            yield (
                f"seq_len and set.share: {manifest.seq_len} and {position.share}, "
                f"configuration.seq_len[{position.index}] is {part.seq_len} and {part.share}"
            )
    dtype = "uint16" if manifest.tokenizer.vocab_size <= 2**16 else "uint32"
    if manifest.dtype != dtype:
        yield f"dtype: {manifest.dtype}, {manifest.tokenizer.vocab_size} ids need {dtype}"
    yield from _ledger_contradictions(manifest, settings)
    for name, entry in manifest.splits.items():
        yield from _packing_contradictions(manifest, settings, name, entry)
    splits_with_input = {file.split for file in manifest.inputs}
    names_of_inputs = Counter((file.split, file.name) for file in manifest.inputs)
    yield from (f"inputs: {name} is listed {n} times" for (_, name), n in names_of_inputs.items() if n > 1)
    for split in SPLITS:
        if any(total(manifest.ledger, "acquire", "in", split)) and split not in splits_with_input:
            yield f"inputs: none of {split}, from which the ledger acquires documents"
        if any(total(manifest.ledger, "shuffle", "out", split)) and split not in manifest.splits:
            yield f"splits: no {split}, which the ledger has after the shuffle"


def _packing_contradictions(manifest: Dataset, settings: Settings, name: str, split: Split) -> Iterator[str]:
    """Whether the files of a split are those that its stream becomes in this format, with these settings."""
    if manifest.format != settings.format:
        return  # said before
    tokenizer, size = manifest.tokenizer, StreamSize(split.stream_tokens, split.documents)
    if size.tokens < 2:  # such a stream has no label to learn, and no shard is written of it
        if split.files:
            yield f"splits.{name}.files: {len(split.files)}, a stream of {size.tokens} tokens makes none"
        return
    shard_format = get_format(manifest.format)
    packing = packing_of(settings, manifest.seq_len, name, manifest.dtype, tokenizer.eos_id, split.borders)
    kept = shard_format.balance(size, packing).kept
    if split.label_tokens != kept:
        yield f"splits.{name}.label_tokens: {split.label_tokens}, {size.tokens} tokens make {kept}"
    if shard_format.plans_by_packing:
        return
    plan = shard_format.plan(size, packing, ())
    rows = sum(file.n_examples for file in split.files)
    if rows != plan.rows:
        yield f"splits.{name}: {rows} rows in files, {size.tokens} tokens make {plan.rows}"
    elif len(split.files) != plan.num_files:
        yield f"splits.{name}: {len(split.files)} files, {plan.rows} rows make {plan.num_files}"
    else:
        for number, file in enumerate(split.files):
            first, last = plan.rows_of(number)
            if (file.name, file.n_examples) != (plan.file_name(number), last - first):
                yield (
                    f"splits.{name}.files[{number}]: {file.name} of {file.n_examples} rows, "
                    f"expected {plan.file_name(number)} of {last - first}"
                )
                return


def _ledger_contradictions(manifest: Dataset, settings: Settings) -> Iterator[str]:
    """What the ledger says was dropped although the configuration has nothing drop it."""
    reasons = {
        stage: {reason for row in manifest.rows(stage) for reason in row.dropped}
        for stage in ("clean", "dedupe", "holdout")
    }
    if settings.dedupe.method == "none" and reasons["dedupe"]:
        yield f"ledger, dedupe: drops {sorted(reasons['dedupe'])}, configuration.dedupe.method is 'none'"
    if settings.clean.min_chars == 0 and "too_short" in reasons["clean"]:
        yield "ledger, clean: drops too_short, configuration.clean.min_chars is 0"
    if not manifest.configuration.get("mix") and any(row.added for row in manifest.rows("shuffle")):
        yield "ledger, shuffle: documents are added, configuration.mix is empty"


def _check_tokenizer(manifest: Dataset, tell: Report) -> None:
    """The tokenizer that is inside the package is known; any other is compared where it is used."""
    stated = manifest.tokenizer
    if stated.name != GPT2.name:
        tell(Check("tokenizer", None, f"not made: {stated.name} is not inside the package"))
        return
    chosen = manifest.configuration.get("tokenizer")
    own_eos = isinstance(chosen, dict) and chosen.get("eos") is not None
    problems = [
        f"{FILE_NAME} tokenizer.{key}: {getattr(stated, key)!r}, expected {getattr(GPT2, key)!r} of gpt2"
        for key in ("fingerprint", "vocab_size", "eos_id")
        if getattr(stated, key) != getattr(GPT2, key) and not (own_eos and key == "eos_id")
    ]
    tell_problems(tell, "tokenizer", problems, "gpt2: its fingerprint, vocabulary and end of document")


# Outputs ----------------------------------------------------------------------------------------------------


def _check_outputs(opened: Opened, manifest: Dataset, tell: Report) -> None:
    """Files beside the shards: those that the configuration implies, with as many rows as the ledger says."""
    listed = {file.name for file in manifest.outputs}
    problems = [
        f"{FILE_NAME} outputs: no {name}, which {reason}"
        for name, reason in _implied_outputs(manifest)
        if name not in listed
    ]
    counts: list[str] = []
    for name in sorted(listed & {"rejects.jsonl", "examples.jsonl", "clusters.parquet", "removals.parquet"}):
        try:
            counts.append(_count_output(opened.root / name, name, manifest, problems))
        except DataError as error:
            problems.append(str(error))
    tell_problems(tell, "outputs", problems, ", ".join(counts) or "none has rows to count")


def _implied_outputs(manifest: Dataset) -> Iterator[tuple[str, str]]:
    yield "rejects.jsonl", "every dataset has"
    yield "examples.jsonl", "every dataset has"
    dedupe, holdout = (manifest.configuration.get(key) for key in ("dedupe", "holdout"))
    if not isinstance(dedupe, dict) or dedupe.get("method") != "none":
        yield "clusters.parquet", "deduplication writes"
        yield "removals.parquet", "deduplication writes"
    if isinstance(holdout, dict) and holdout.get("decontaminate"):
        yield "contamination.parquet", "decontamination writes"


def _count_output(path: Path, name: str, manifest: Dataset, problems: list[str]) -> str:
    """Compare the rows of one output with the ledger; returns what was counted."""
    if name == "rejects.jsonl":
        reasons = _reasons(path, name)
        expected = Counter[str]()
        for row in manifest.rows("acquire"):
            expected.update({reason: amounts.documents for reason, amounts in row.dropped.items()})
        problems += [
            f"{name}: {reasons[reason]} records of {reason}, the ledger says {expected[reason]}"
            for reason in sorted({*reasons, *expected})
            if reasons[reason] != expected[reason]
        ]
        return f"{reasons.total()} rejected records"
    if name == "examples.jsonl":
        reasons = _reasons(path, name)
        dropped = {reason for row in manifest.rows("clean") for reason in row.dropped}
        clean = manifest.configuration.get("clean")
        if not isinstance(clean, dict) or clean.get("rejected_sample") != 0:
            missing = sorted(
                reason for reason in dropped if not reasons[reason] and not reason.endswith("_by_cleaning")
            )
            problems += [f"{name}: no example of {reason}, which the ledger drops" for reason in missing]
        return f"{reasons.total()} examples"
    import pyarrow.parquet as pq

    require_regular(path)
    with reading(path), pq.ParquetFile(path) as table:
        rows = int(table.metadata.num_rows)
    if name == "removals.parquet":
        dropped_documents = sum(
            amounts.documents for row in manifest.rows("dedupe") for amounts in row.dropped.values()
        )
        if rows != dropped_documents:
            problems.append(f"{name}: {rows} rows, the ledger's dedupe drops {dropped_documents} documents")
        return f"{rows} removals"
    stated = (manifest.dedupe or {}).get("documents_in_clusters")
    if isinstance(stated, int) and rows != stated:
        problems.append(f"{name}: {rows} rows, {FILE_NAME} dedupe.documents_in_clusters is {stated}")
    return f"{rows} documents in clusters"


def _reasons(path: Path, name: str) -> Counter[str]:
    """How many lines of a JSON Lines file there are of each `reason`. Raises DataError naming the line."""
    require_regular(path)
    reasons = Counter[str]()
    decoder = msgspec.json.Decoder(_Line)
    with reading(path), path.open("rb") as file:
        number = 0
        while line := file.readline(MAX_LINE_BYTES + 1):
            number += 1
            try:
                if len(line) > MAX_LINE_BYTES:
                    raise DataError(f"{name} line {number}: longer than {MAX_LINE_BYTES:,} bytes")
                reasons[decoder.decode(line).reason] += 1
            except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
                raise DataError(f"{name} line {number}: {error}") from None
    return reasons


class _Line(msgspec.Struct):
    reason: str


# Provenance -------------------------------------------------------------------------------------------------


def check_provenance(
    root: Path, described: Dataset | SetList, manifest: Dataset | None, tell: Report
) -> None:
    """provenance.json belongs to the dataset.json beside it, and says the same where both say something."""
    name = provenance.FILE_NAME
    try:
        made = provenance.read(root)
    except DataError as error:
        tell(Check("provenance", False, f"{name} cannot be used", str(error)))
        return
    if made is None:
        tell(Check("provenance", None, f"not made: no {name}; the data does not need it"))
        return
    problems = []
    if made.dataset != described.checksum:
        problems.append(
            f"{name} dataset: {made.dataset}, the checksum of {FILE_NAME} is {described.checksum}"
        )
    if manifest is not None and without_locations(made.configuration) != manifest.configuration:
        problems.append(f"{name} configuration: not that of {FILE_NAME}")
    files = [(file.split, file.name) for file in manifest.inputs] if manifest is not None else []
    if manifest is not None and [(file.split, file.name) for file in made.inputs] != files:
        problems.append(f"{name} inputs: not those of {FILE_NAME}")
    tell_problems(tell, "provenance", problems, f"made by btlm-data {made.program}, finished {made.finished}")
