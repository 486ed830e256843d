"""Checkpoints that are whole or absent, and hold all that an exact continuation needs. Nothing is ever unpickled.

    RUN/checkpoints/step_00000040/
      model.safetensors       parameters under their own names, float32
      optimizer.safetensors   `m.NAME` and `v.NAME`; absent where training has not begun
      state.json              written last: step, updates, seed, data position, model, and bytes + xxh3-128 of the files above

A checkpoint is written in a folder `.step_00000040.PID.tmp`, synced, and renamed: a killed process leaves no half of one.
What a disk tears all the same is noticed by size and checksum, named, and the next older one is taken. Randomness needs
no state: every random number of step s on rank r comes from a generator seeded with (seed, s, r).
"""

from __future__ import annotations

import errno
import json
import logging
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import xxhash
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from btlm_data.errors import DataError
from btlm_data.formats import atomic

logger = logging.getLogger(__name__)
FORMAT_VERSION = 1
_NAME = re.compile(r"step_(\d{8,})")


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint whose files are as they were written; tensors are read on request."""

    path: Path
    state: dict[str, Any]

    @property
    def step(self) -> int:
        """Optimizer steps made, across stages."""
        return int(self.state["step"])

    def weights(self) -> dict[str, Tensor]:
        """Parameters by name, on the CPU."""
        return load_file(self.path / "model.safetensors")

    def optimizer(self) -> dict[str, Tensor] | None:
        """`m.NAME` and `v.NAME`, or None where training has not begun."""
        return (
            load_file(self.path / "optimizer.safetensors")
            if "optimizer.safetensors" in self.state["files"]
            else None
        )


def save(
    folder: Path,
    step: int,
    weights: Mapping[str, Tensor],
    optimizer: Mapping[str, Tensor] | None,
    state: Mapping[str, Any],
    keep: int | None,
) -> Path:
    """Write a checkpoint below `folder` and remove all but the `keep` newest. Raises OutputError if the disk refuses.

    One that exists for this step and is whole stays as it is: the same run wrote it.
    """
    final = folder / f"step_{step:08d}"
    if final.exists() and isinstance(inspect(final), Checkpoint):
        return final
    temporary = folder / f".{final.name}.{os.getpid()}{atomic.TEMPORARY_SUFFIX}"
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        parts = {"model.safetensors": weights} | (
            {"optimizer.safetensors": optimizer} if optimizer is not None else {}
        )
        for name, tensors in parts.items():
            write_tensors(tensors, temporary / name)
            _sync(temporary / name)
        files = {name: _digest(temporary / name) for name in parts}
        atomic.write_json(
            temporary / "state.json",
            {**state, "step": step, "format_version": FORMAT_VERSION, "files": files},
        )
        if final.exists():
            remove(final)
        temporary.rename(final)
        _sync(folder)
    except OSError as error:
        raise atomic.as_output_error(error, final) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    if keep is not None:
        for old in list_steps(folder)[:-keep]:
            remove(old)
    return final


def write_tensors(tensors: Mapping[str, Tensor], path: Path, metadata: dict[str, str] | None = None) -> None:
    """A safetensors file. Raises OSError, also for what safetensors reports in words only (a full disk)."""
    try:
        save_file(dict(tensors), path, metadata=metadata)
    except SafetensorError as error:
        number = re.search(r"os error (\d+)", str(error))
        code = int(number[1]) if number else errno.EIO
        raise OSError(code, os.strerror(code) if number else str(error), str(path)) from error


def inspect(path: Path) -> Checkpoint | str:
    """The checkpoint at `path`, or why it cannot be used."""
    try:
        state = json.loads((path / "state.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        return "state.json is missing"
    except (OSError, ValueError) as error:
        return f"state.json cannot be read ({error})"
    if not isinstance(state, dict) or state.get("format_version") != FORMAT_VERSION:
        return f"its format version is {state.get('format_version') if isinstance(state, dict) else state!r}, not {FORMAT_VERSION}"
    for name, expected in state["files"].items():
        file = path / name
        if not file.is_file():
            return f"{name} is missing"
        if file.stat().st_size != expected["bytes"]:
            return f"{name} has {file.stat().st_size} bytes, not {expected['bytes']}"
        if _digest(file) != expected:
            return f"{name} does not have the checksum it was written with"
    return Checkpoint(path, state)


def newest(folder: Path) -> Checkpoint | None:
    """The newest whole checkpoint below `folder`; torn ones are named in a warning and passed over."""
    for path in reversed(list_steps(folder)):
        found = inspect(path)
        if isinstance(found, Checkpoint):
            return found
        logger.warning(
            "The checkpoint %s is torn: %s. It is passed over; the one before it is taken.", path, found
        )
    return None


def find(path: Path) -> Checkpoint | None:
    """The checkpoint meant by a path: itself, or the newest of a run's folder. None if there is none; DataError if it is torn."""
    if (path / "state.json").is_file() or _NAME.fullmatch(path.name):
        found = inspect(path)
        if isinstance(found, str):
            raise DataError(
                f"The checkpoint {path} is torn: {found}. Name an older one, or the run's folder to take the newest whole one."
            )
        return found
    folder = path / "checkpoints" if (path / "checkpoints").is_dir() else path
    return newest(folder) if folder.is_dir() else None


def list_steps(folder: Path) -> list[Path]:
    """Checkpoint folders below `folder`, oldest first; none if it does not exist."""
    if not folder.is_dir():
        return []
    found = [(int(match[1]), path) for path in folder.iterdir() if (match := _NAME.fullmatch(path.name))]
    return [path for _, path in sorted(found)]


def remove(path: Path) -> None:
    """Take a checkpoint away; killed in between, it is no longer seen as one."""
    hidden = path.with_name(f".{path.name}.{os.getpid()}.removed{atomic.TEMPORARY_SUFFIX}")
    path.rename(hidden)
    shutil.rmtree(hidden, ignore_errors=True)


def sweep(folder: Path) -> None:
    """Remove what killed processes left half-written or half-removed. Call it only while holding the run's lock."""
    for path in folder.glob(f".step_*{atomic.TEMPORARY_SUFFIX}") if folder.is_dir() else ():
        shutil.rmtree(path, ignore_errors=True)


def _digest(path: Path) -> dict[str, Any]:
    hasher = xxhash.xxh3_128()
    with path.open("rb") as file:
        while block := file.read(1 << 22):
            hasher.update(block)
    return {"bytes": path.stat().st_size, "xxh3_128": hasher.hexdigest()}


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
