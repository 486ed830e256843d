"""Checkpoints that survive being killed at any moment, and that know which run they belong to.

    checkpoints/step_00000040/
      model.safetensors       parameters under their own names, float32
      optimizer.safetensors   `m.NAME` and `v.NAME`; absent where training has not begun
      state.json              written last: `State`, with bytes and xxh3-128 of the files above

A checkpoint is written in a folder `.step_00000040.PID.btlm.tmp`, synced, and renamed: a killed process
leaves no half of one. Damage by the disk is noticed by size and checksum, named, and the next older one is
taken. Randomness needs no state: every random number of step s on rank r comes from a generator seeded with
(seed, s, r).

`State.run` names the run that wrote a checkpoint. Only checkpoints of the same run are continued, replaced or
removed as the oldest; one of another run that is in the way is moved aside, never deleted.
"""

from __future__ import annotations

import logging
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
import xxhash
from msgspec import Meta
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from btlm_data.errors import DataError, OutputError
from btlm_data.formats.sealed_json import NO_CHECKSUM, Sha256, checksum_of, sealed
from btlm_data.storage.local import as_output_error
from btlm_train.files import read_bytes, refuse_link, sync, write_bytes, write_tensors
from btlm_train.parameters import ModelConfig

logger = logging.getLogger(__name__)
FORMAT_VERSION = 2
MODEL_FILE, OPTIMIZER_FILE = "model.safetensors", "optimizer.safetensors"
_NAME = re.compile(r"step_(\d{8,15})")
_TEMPORARY = re.compile(r"\.step_\d{8,15}\.\d+(\.removed)?\.btlm\.tmp")

RunId = Annotated[str, Meta(pattern="^[0-9a-f]{32}$")]
Count = Annotated[int, Meta(ge=0, le=2**62)]


class FileDigest(msgspec.Struct, frozen=True):
    """Size and checksum of one file of a checkpoint."""

    bytes: Count
    xxh3_128: Annotated[str, Meta(pattern="^[0-9a-f]{32}$")]


class State(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """state.json of a checkpoint.

    step: optimizer steps made, across stages. updates: those counted by AdamW's bias correction. tokens:
    consumed by the run and the stages before it. data: the loader's state. model, optimizer, schedule: the
    settings it was trained with.
    """

    format_version: Literal[2] = 2
    run: RunId
    step: Count
    updates: Count
    tokens: Count
    seed: int
    data: dict[str, Any] | None
    model: dict[str, Any]
    optimizer: dict[str, Any] | None = None
    schedule: list[dict[str, Any]] | None = None
    files: dict[Literal["model.safetensors", "optimizer.safetensors"], FileDigest] = {}
    checksum: Sha256 = NO_CHECKSUM  # of everything else: see formats/sealed_json.py


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint whose files are as they were written; tensors are read on request."""

    path: Path
    state: State

    @property
    def step(self) -> int:
        """Optimizer steps made, across stages."""
        return self.state.step

    def weights(self) -> dict[str, Tensor]:
        """Parameters by name, on the CPU. Raises DataError if the file cannot be read."""
        return read_tensors(self.path / MODEL_FILE)

    def optimizer(self) -> dict[str, Tensor] | None:
        """`m.NAME` and `v.NAME`, or None where training has not begun. Raises DataError."""
        return read_tensors(self.path / OPTIMIZER_FILE) if OPTIMIZER_FILE in self.state.files else None

    def model_config(self) -> ModelConfig:
        """The model it is of. Raises DataError if state.json describes none."""
        try:
            return ModelConfig.model_validate(self.state.model)
        except ValidationError as error:
            first = error.errors()[0]
            raise DataError(
                f"{self.path / 'state.json'} describes no BTLM model "
                f"({'.'.join(map(str, first['loc']))}: {first['msg']}). Use another checkpoint."
            ) from None


def save(
    folder: Path,
    state: State,
    weights: Mapping[str, Tensor],
    optimizer: Mapping[str, Tensor] | None,
    keep: int | None,
) -> Path:
    """Write a checkpoint below `folder` and remove all but the `keep` newest of the same run.

    One of the same run and step that is whole stays as it is. Raises OutputError if the disk refuses, or
    `folder` is a link.
    """
    refuse_link(folder)
    final = folder / f"step_{state.step:08d}"
    present = inspect(final) if os.path.lexists(final) else None
    if isinstance(present, Checkpoint) and present.state.run == state.run:
        return final
    temporary = folder / f".{final.name}.{os.getpid()}.btlm.tmp"
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        tensors = {MODEL_FILE: weights} | ({OPTIMIZER_FILE: optimizer} if optimizer is not None else {})
        for name, values in tensors.items():
            write_tensors(values, temporary / name)
        files = {name: _digest(temporary / name) for name in tensors}
        tree = msgspec.to_builtins(msgspec.structs.replace(state, files=files))
        write_bytes(temporary / "state.json", sealed(tree))
        if present is not None:
            _make_way(final, state.run)
        temporary.rename(final)
        sync(folder)
    except OSError as error:
        raise as_output_error(error, final) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    keep_newest(folder, state.run, keep)
    return final


def keep_newest(folder: Path, run: str, keep: int | None) -> None:
    """Remove all but the `keep` newest checkpoints of a run below `folder`; None keeps all."""
    if keep is not None:
        for old in own_steps(folder, run)[:-keep]:
            _remove(old)


def read_tensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a safetensors file. Raises DataError if it is damaged or of another kind."""
    if not path.is_file():
        raise DataError(f"{path} is missing or is not a regular file. Copy or export it again.")
    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError, RuntimeError, KeyError) as error:
        raise DataError(
            f"{path} is torn or not a safetensors file ({error}). Copy or export it again."
        ) from None


def read_state(path: Path) -> State | str:
    """state.json of the checkpoint at `path`, or why it cannot be used."""
    try:
        data = read_bytes(path / "state.json")
    except FileNotFoundError:
        return "state.json is missing"
    except DataError as error:
        return str(error)
    try:
        tree = msgspec.json.decode(data, type=dict[str, Any])
        version = tree.get("format_version")
        if version != FORMAT_VERSION:
            return f"its format version is {str(version)[:40]}, not {FORMAT_VERSION}"
        if tree.get("checksum") != checksum_of(tree):
            return "state.json does not have the checksum it was written with"
        return msgspec.convert(tree, type=State)
    except (msgspec.MsgspecError, RecursionError, ValueError) as error:
        return f"state.json cannot be read ({error})"


def inspect(path: Path) -> Checkpoint | str:
    """The checkpoint at `path`, or why it cannot be used."""
    state = read_state(path)
    if isinstance(state, str):
        return state
    if MODEL_FILE not in state.files:
        return f"state.json does not name {MODEL_FILE}"
    for name, expected in state.files.items():
        file = path / name
        if not file.is_file():
            return f"{name} is missing"
        if file.stat().st_size != expected.bytes:
            return f"{name} has {file.stat().st_size} bytes, not {expected.bytes}"
        try:
            if _digest(file) != expected:
                return f"{name} does not have the checksum it was written with"
        except OSError as error:
            return f"{name} cannot be read ({error.strerror})"
    return Checkpoint(path, state)


def newest(folder: Path, run: str | None = None) -> Checkpoint | None:
    """The newest whole checkpoint below `folder`, of the run `run` if given.

    Those that are torn or of another run are named in a warning and passed over.
    """
    for path in reversed(list_steps(folder)):
        state = read_state(path)
        if isinstance(state, State) and run is not None and state.run != run:
            logger.warning(
                "The checkpoint %s is of another run (%s). It is passed over and kept.", path, state.run[:8]
            )
            continue
        checkpoint = inspect(path)
        if isinstance(checkpoint, Checkpoint):
            return checkpoint
        logger.warning("The checkpoint %s is torn: %s. It is passed over.", path, checkpoint)
    return None


def find(path: Path) -> Checkpoint | None:
    """The checkpoint meant by a path: itself, or the newest of a run's folder.

    None if there is none; DataError if it is torn.
    """
    if os.path.lexists(path / "state.json") or _NAME.fullmatch(path.name):
        checkpoint = inspect(path)
        if isinstance(checkpoint, str):
            raise DataError(
                f"The checkpoint {path} is torn: {checkpoint}. "
                "Name an older one, or the run's folder to take the newest whole one."
            )
        return checkpoint
    folder = path / "checkpoints" if (path / "checkpoints").is_dir() else path
    return newest(folder) if folder.is_dir() else None


def list_steps(folder: Path) -> list[Path]:
    """Checkpoint folders below `folder`, oldest first; none if it does not exist."""
    try:
        names = [path for path in folder.iterdir() if _NAME.fullmatch(path.name)]
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise OutputError(f"{folder} cannot be listed ({error.strerror}). Check its permissions.") from None
    return sorted(names, key=lambda path: (len(path.name), path.name))


def own_steps(folder: Path, run: str) -> list[Path]:
    """The checkpoint folders of one run, oldest first; links are never among them."""
    return [
        path
        for path in list_steps(folder)
        if not path.is_symlink() and isinstance(state := read_state(path), State) and state.run == run
    ]


def sweep(folder: Path) -> None:
    """Remove what killed processes left half-written or half-removed. Call it only while holding the run's
    lock.
    """
    if folder.is_dir() and not folder.is_symlink():
        for path in folder.iterdir():
            if _TEMPORARY.fullmatch(path.name) and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)


def _make_way(path: Path, run: str) -> None:
    """Free the name `path`: a torn checkpoint of the same run is removed, anything else is moved aside."""
    state = read_state(path)
    if isinstance(state, State) and state.run == run and not path.is_symlink():
        _remove(path)
        return
    label = state.run[:8] if isinstance(state, State) else "unreadable"
    aside = next(
        candidate
        for number in range(1, 10**6)
        if not os.path.lexists(candidate := path.with_name(f"other-{label}-{path.name}-{number}"))
    )
    path.rename(aside)
    logger.warning("%s is not a checkpoint of this run. It was moved to %s.", path, aside)


def _remove(path: Path) -> None:
    """Remove a checkpoint; killed in between, it is no longer seen as one."""
    hidden = path.with_name(f".{path.name}.{os.getpid()}.removed.btlm.tmp")
    path.rename(hidden)
    shutil.rmtree(hidden, ignore_errors=True)


def _digest(path: Path) -> FileDigest:
    hasher = xxhash.xxh3_128()
    with path.open("rb") as file:
        while block := file.read(1 << 22):
            hasher.update(block)
    return FileDigest(path.stat().st_size, hasher.hexdigest())
