"""provenance.json: how a dataset was made. Beside dataset.json, which says what the data is.

Paths, times, program versions and the whole configuration as it was given: what differs from run to run or
from machine to machine, and is not needed to read the data. `dataset` is the checksum of the dataset.json
it belongs to, `checksum` its own (as in formats/dataset.py). `btlm-data run dataset.json` takes the places of
files from here.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import msgspec

from btlm_data.errors import DataError
from btlm_data.formats.sealed_json import (
    NO_CHECKSUM,
    Sha256,
    checksum_of,
    convert,
    parse,
    read_small,
    sealed,
)

FILE_NAME = "provenance.json"
MAX_BYTES = 1 << 29


class StepTime(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a step of the run cost. seconds: by the clock, in this run. task_seconds: of all its tasks together,
    in whatever run they were done; bytes: that they wrote.
    """

    step: str
    tasks: int
    seconds: float
    task_seconds: float = 0.0
    bytes: int = 0


class InputPlace(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where an input file was read. version: its modification time, ETag or digest, as the source says it."""

    name: str
    split: str
    url: str
    version: str


class TokenizerPlace(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where the tokenizer came from. name: as the recipe names it. revision: the hub's commit, where it has
    one.
    """

    name: str
    revision: str | None


class Provenance(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How a dataset was made.

    dataset: checksum of its dataset.json. run: fingerprint of the run, with modification times (an unchanged
    run is recognised by it). program: version of btlm-data. libraries: versions of what decides bytes. workers,
    memory: of the run (bytes, None: no limit given); workers is None in files of before they were kept.
    """

    dataset: Sha256
    run: Sha256
    program: str
    libraries: dict[str, str]
    configuration: dict[str, Any]
    source: dict[str, Any]
    tokenizer: TokenizerPlace
    inputs: list[InputPlace]
    steps: list[StepTime]
    finished: str
    workers: int | None = None
    memory: int | None = None
    checksum: Sha256 = NO_CHECKSUM
    format_version: Literal[1] = 1


def encode(value: Provenance) -> bytes:
    """The file."""
    return sealed(msgspec.to_builtins(value))


def decode(data: bytes, shown: str) -> Provenance:
    """Raises DataError, naming the key, for what is not a provenance.json with the right checksum."""
    tree = parse(data, shown)
    value = convert(tree, Provenance, shown, {})
    if value.checksum != checksum_of(tree):
        raise DataError(
            f"{shown} was changed or damaged: its checksum is not that of its content. "
            "Restore it; the data itself does not need it."
        )
    return value


def read(folder: Path) -> Provenance | None:
    """The provenance beside a dataset.json, None if there is none. Raises DataError if it is damaged."""
    path = folder / FILE_NAME
    if not path.exists():
        return None
    return decode(read_small(path, MAX_BYTES), str(path))
