"""A run's folder belongs to one run: its identity, its lock, and what becomes of an earlier run found there.

    run.json        which run this folder is of
    earlier/RUN/    all that an earlier run left: moved here when another run begins in the same folder

A run begins where a folder has no checkpoint yet, or where `autoload_last_checkpoint: false` asks for a new
beginning. Nothing of an earlier run is deleted, overwritten or taken for the new one's.
"""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from btlm_data.errors import DataError, OutputError
from btlm_data.formats.sealed_json import NO_CHECKSUM, Sha256, checksum_of, sealed
from btlm_data.storage.lease import Lease, hold
from btlm_data.storage.local import LocalStore, as_output_error
from btlm_train import checkpoint
from btlm_train.checkpoint import Checkpoint, RunId, State
from btlm_train.files import read_bytes, refuse_link, write_bytes

logger = logging.getLogger(__name__)
# run.json comes last: until it has moved, the next start sees that this run is still to be moved, and
# completes it.
_PARTS = ("checkpoints", "events", "metrics.jsonl", "evaluation.json", "params.json", "data.json", "run.json")
_MOVING = "moving"  # in the folder of a run that is being moved


class RunFile(msgspec.Struct, frozen=True):
    """run.json. run: the identity. earlier: the folder below earlier/ that the run before it was moved to, if
    any.
    """

    format_version: Literal[1]
    run: RunId
    earlier: Annotated[str, Meta(pattern="^[0-9a-f-]{1,64}$")] | None = None
    checksum: Sha256 = NO_CHECKSUM  # of everything else: see formats/sealed_json.py


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[Lease]:
    """One run at a time in a folder. Raises OutputError if another process trains in it, or it cannot be
    written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise as_output_error(error, folder) from error
    for name in ("checkpoints", "events", "earlier"):
        refuse_link(folder / name)
    lock = folder / "run.lock"
    if os.path.lexists(lock) and (lock.is_symlink() or not lock.is_file()):
        raise OutputError(
            f"{lock} is not a lock file, but a link, folder or pipe. Remove it and run the same command "
            "again."
        )
    with hold(LocalStore(folder), "run.lock", f"The run folder {folder} is") as lease:
        yield lease


def read_run(folder: Path) -> RunFile | None:
    """What run.json says; None if no run began there. Raises DataError if it is damaged."""
    try:
        data = read_bytes(folder / "run.json", 2**16)
    except FileNotFoundError:
        return None
    try:
        tree = msgspec.json.decode(data, type=dict[str, Any])
        if tree.get("checksum") != checksum_of(tree):
            raise ValueError("its checksum is not that of its content")  # noqa: TRY301
        return msgspec.convert(tree, type=RunFile)
    except (msgspec.MsgspecError, RecursionError, ValueError) as error:
        raise DataError(
            f"{folder / 'run.json'} is damaged ({error}). Restore it; or remove it, "
            "and the newest checkpoint there tells which run the folder is of."
        ) from None


def begin_run(folder: Path, *, continuing: bool) -> None:
    """Make run.json name the run that trains in `folder` from now on. Call it with the lock held, on one
    rank.

    continuing: take up the run that is there; else a new run begins, and what an earlier one left is moved to
    earlier/.
    """
    present = read_run(folder)
    run = present.run if present is not None else _run_of_checkpoints(folder)
    steps = checkpoint.list_steps(folder / "checkpoints")
    if run is None and not steps:
        _check_unclaimed(folder)
    interrupted = run is not None and os.path.lexists(folder / "earlier" / run / _MOVING)
    if continuing and not interrupted:
        if present is None and (run is not None or not steps):
            _write_run(folder, RunFile(1, run or secrets.token_hex(16)))
        return
    earlier = None
    if run is not None or steps:
        earlier = run or f"00000000-{secrets.token_hex(4)}"
        _move_aside(folder, earlier)
    _write_run(folder, RunFile(1, secrets.token_hex(16), earlier))


def _check_unclaimed(folder: Path) -> None:
    """Raise OutputError if a folder of no run holds files that a run would replace."""
    for name in ("metrics.jsonl", "params.json"):
        if os.path.lexists(folder / name):
            raise OutputError(
                f"{folder / name} is there, and {folder} is not the folder of a run: it would be replaced. "
                "Give another --model-dir, or move the file away."
            )


def own_checkpoint(folder: Path) -> Checkpoint | None:
    """The newest whole checkpoint of the run that a folder is of; None if it has no checkpoints.

    Raises DataError if it has some and none of them can be continued.
    """
    steps = checkpoint.list_steps(folder / "checkpoints")
    if not steps:
        return None
    present = read_run(folder)
    run = present.run if present is not None else _run_of_checkpoints(folder)
    newest = checkpoint.newest(folder / "checkpoints", run)
    if newest is None:
        reason = checkpoint.inspect(steps[-1])
        raise DataError(
            f"None of the {len(steps)} checkpoints in {folder / 'checkpoints'} can be continued (the newest: "
            f"{reason if isinstance(reason, str) else 'of another run'}). Restore one or give another "
            "--model-dir; "
            "or start again with --set runconfig.autoload_last_checkpoint=false, which keeps them in "
            "earlier/."
        )
    return newest


def moved_path(folder: Path, path: Path) -> Path:
    """Where `path` is now, if it lay in the part of `folder` that was moved to earlier/ when this run
    began.
    """
    present = read_run(folder)
    inside = Path(os.path.abspath(path))
    root = Path(os.path.abspath(folder))
    if present is None or present.earlier is None or not inside.is_relative_to(root):
        return path
    relative = inside.relative_to(root)
    if relative.parts and (relative.parts[0] not in _PARTS or os.path.lexists(path)):
        return path
    return root / "earlier" / present.earlier / relative


def new_run(folder: Path) -> str:
    """Give a folder without checkpoints a new identity."""
    run = RunFile(1, secrets.token_hex(16))
    _write_run(folder, run)
    return run.run


def _run_of_checkpoints(folder: Path) -> str | None:
    """The run of the newest checkpoint that says one."""
    for path in reversed(checkpoint.list_steps(folder / "checkpoints")):
        state = checkpoint.read_state(path)
        if isinstance(state, State):
            return state.run
    return None


def _write_run(folder: Path, run: RunFile) -> None:
    write_bytes(folder / "run.json", sealed(msgspec.to_builtins(run)))


def _move_aside(folder: Path, label: str) -> None:
    """Move what the run `label` left to earlier/LABEL; killed in between, the next start completes it."""
    target = folder / "earlier" / label
    try:
        target.mkdir(parents=True, exist_ok=True)
        (target / _MOVING).touch()
        for name in _PARTS:
            if not os.path.lexists(folder / name):
                continue
            destination = target / name
            if os.path.lexists(
                destination
            ):  # this run was moved here before, restored by hand, and continued
                destination = target / f"{name}-{secrets.token_hex(4)}"
            (folder / name).rename(destination)
        (target / _MOVING).unlink()
    except OSError as error:
        raise as_output_error(error, target) from error
    logger.warning(
        "A new run begins in %s. The checkpoints and figures of the earlier run there are kept in %s.",
        folder,
        target,
    )
