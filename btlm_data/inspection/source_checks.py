"""Compare a dataset with the source it was made from: every input file by size and digest."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import xxhash

from btlm_data.errors import DataError
from btlm_data.formats.dataset import FILE_NAME, Dataset, InputFile
from btlm_data.inspection.check import Check, Report, plural, tell_problems
from btlm_data.inspection.opening import reading, require_regular

_PIECE_BYTES = 1 << 20


def check_inputs(manifest: Dataset, source: Path, tell: Report) -> None:
    """Every input file that dataset.json names is below `source` (or is it, where there is one) with its size and digest."""
    problems: list[str] = []
    compared = 0
    for file in manifest.inputs:
        try:
            compared += _check_input(path_of_input(source, file), file, problems)
        except DataError as error:
            problems.append(str(error))
    only_size = len(manifest.inputs) - compared
    detail = f"{plural(compared, 'input file')} with the recorded digest"
    if only_size:
        detail += f"; of {only_size:,} only the size is recorded"
    if not manifest.inputs:
        tell(Check("source", None, f"not made: {FILE_NAME} names no input file"))
    else:
        tell_problems(tell, "source", problems, detail)


def path_of_input(source: Path, file: InputFile) -> Path:
    """Where an input file is, if `source` is what was given as --source: a folder, or a single file."""
    return source if source.is_file() and source.name == file.name else source / file.name


def _check_input(path: Path, file: InputFile, problems: list[str]) -> bool:
    """Returns whether the content was compared."""
    require_regular(path)
    size = path.stat().st_size
    if size != file.size:
        problems.append(f"{path}: {size:,} bytes, {FILE_NAME} says {file.size:,}")
        return True
    algorithm, _, expected = (file.digest or "").partition(":")
    hasher = _hasher(algorithm)
    if hasher is None:
        return False
    with reading(path), path.open("rb") as stream:
        while piece := stream.read(_PIECE_BYTES):
            hasher.update(piece)
    if hasher.hexdigest() != expected:
        problems.append(f"{path}: {algorithm} {hasher.hexdigest()}, {FILE_NAME} says {expected}")
    return True


def _hasher(algorithm: str) -> Any:
    """An empty hash object; None for an algorithm that is not known."""
    if algorithm in ("sha256", "sha1", "md5"):
        return hashlib.new(algorithm, usedforsecurity=False)
    return xxhash.xxh3_128() if algorithm == "xxh3_128" else None
