"""Check what the generations of a dataset are to each other: listed as they are, of one kind, without a document in
common.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from btlm_data.errors import DataError
from btlm_data.formats import dataset, generations
from btlm_data.formats.dataset import Dataset
from btlm_data.formats.generations import FILE_NAME, Generation
from btlm_data.inspection.check import Check, Report, tell_problems
from btlm_data.lineage.overlap import GenerationDocuments, first_shared


def check_listed(root: Path, tell: Report) -> list[Generation]:
    """generations.json lists what is there, and all of it is of one kind. Returns the generations that can be read."""
    try:
        listed = generations.listed(root)
    except DataError as error:
        tell(Check("generations", False, f"{FILE_NAME} cannot be used", str(error)))
        return []
    problems: list[str] = []
    readable: list[Generation] = []
    first: dict[str, Dataset] | None = None
    for number, entry in enumerate(listed, 1):
        folder = root / entry.folder
        try:
            manifest, sets = dataset.read(folder), dataset.read_sets(folder)
        except DataError as error:
            problems.append(str(error))
            continue
        if manifest.checksum != entry.checksum:
            problems.append(
                f"{folder.relative_to(root) / dataset.FILE_NAME}: checksum is {manifest.checksum}, {FILE_NAME} says "
                f"{entry.checksum}"
            )
        first = first or sets
        problems += [f"generation {number}: {words}" for words in _differences(first, sets)]
        readable.append(Generation(number, folder, manifest))
    tell_problems(tell, "generations", problems, f"{len(listed)} generations, as listed")
    return readable


def _differences(first: dict[str, Dataset], other: dict[str, Dataset]) -> list[str]:
    """Where one reader could not read both."""
    if list(first) != list(other):
        return [f"its sets are {', '.join(other)}, those of the first {', '.join(first)}"]
    problems = []
    for name, value in other.items():
        for key in ("seq_len", "format", "shard_dtype"):
            expected, stated = getattr(first[name], key), getattr(value, key)
            if expected != stated:
                problems.append(f"{key} is {stated}, {expected} in the first")
        if value.tokenizer.fingerprint != first[name].tokenizer.fingerprint:
            problems.append("another tokenizer made its ids")
    return problems


def check_generations_disjoint(listed: Sequence[Generation], tell: Report) -> None:
    """No text is for training in one generation and for measuring in another; where generations are deduplicated,
    none that is trained on is in an earlier one.
    """
    name = "generations disjoint"
    try:
        earlier: list[GenerationDocuments] = []
        for generation in listed:
            own = GenerationDocuments.of(generation)
            is_deduplicated = _is_deduplicated(generation)
            for old in earlier:
                pairs = [(own.train, old.holdout), (own.holdout, old.train)]
                pairs += [(own.train, old.train)] if is_deduplicated else []
                for one, other in pairs:
                    if (shared := first_shared(one, other)) is not None:
                        (table, row), (old_table, old_row) = shared
                        where = f"{table.path} row {row:,} and {old_table.path} row {old_row:,}"
                        tell(Check(name, False, "a text is in both", where))
                        return
            earlier.append(own)
    except DataError as error:
        tell(Check(name, None, f"not checked: {error}"))
        return
    total = sum(table.num_rows for own in earlier for table in (*own.train, *own.holdout))
    tell(Check(name, True, f"no text of one is in another ({total:,} compared)"))


def _is_deduplicated(generation: Generation) -> bool:
    value = next(iter(dataset.read_sets(generation.root).values()))
    dedupe = value.configuration.get("dedupe")
    return isinstance(dedupe, dict) and dedupe.get("method") != "none"
