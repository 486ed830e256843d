"""What a saved data state must look like, and how its data differs from the present data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from btlm_data.errors import DataError
from btlm_data.formats import forgotten

STATE_VERSION = 1
# name, rows, bytes, probe, SHA-256
FileFingerprint = tuple[str, int, int, str, str | None]


class Fingerprint(msgspec.Struct, frozen=True):
    """What one set of shards was: the layout of its rows, and its files in order."""

    layout: str
    files: list[FileFingerprint]


class LoaderState(msgspec.Struct, frozen=True):
    """A saved data state. version 0 (no key) is of the Model Zoo before 2.4, which saves its seed and no
    settings.
    """

    samples_streamed: Annotated[int, Meta(ge=0, le=2**62)]
    version: int = msgspec.field(default=0, name="__version__")
    seed: int | None = None
    dataset: dict[str, Any] | None = None


def parse_state(state: Mapping[str, Any]) -> LoaderState:
    """Check a saved data state. Raises DataError."""
    try:
        parsed = msgspec.convert(dict(state), type=LoaderState)
    except (msgspec.ValidationError, TypeError, ValueError) as error:
        raise DataError(
            f"The saved data state cannot be used ({error}; samples_streamed "
            f"{str(state.get('samples_streamed'))[:40]}). "
            "Load another one."
        ) from None
    if parsed.version not in (0, STATE_VERSION):
        raise DataError(
            f"The saved data state has version {parsed.version}, this program knows up to {STATE_VERSION}. "
            "Use a newer program."
        )
    return parsed


def after_forgetting(then: Any, now: list[dict[str, Any]], folders: Sequence[Path]) -> Any:
    """Saved fingerprints, with each shard that has since lost documents (`btlm-data forget`) as it is now.

    The certificates in the datasets' folders say which; samples are where they stood, so a run may continue.
    """
    replaced = {
        before: after for folder in folders for before, after in forgotten.read(folder).replaced().items()
    }
    if not replaced or not isinstance(then, list) or len(then) != len(now):
        return then
    renewed = []
    for old, new in zip(then, now, strict=True):
        present = {file[4]: file for file in new["files"] if file[4] is not None}
        files = [present.get(replaced.get(file[4], file[4]), file) for file in old["files"]]
        renewed.append({**old, "files": files})
    return renewed


def data_differences(then: Any, now: list[dict[str, Any]], limit: int = 8) -> list[str]:
    """What changed between two lists of fingerprints; at most `limit` lines and a count of the
    rest.

    Raises DataError if `then` holds no fingerprints.
    """
    try:
        before, after = (msgspec.convert(value, type=list[Fingerprint]) for value in (then, now))
    except msgspec.ValidationError as error:
        raise DataError(
            f"The saved data state does not describe its data ({error}). Load another one."
        ) from None
    if len(before) != len(after):
        return [f"{len(before)} data sets then, {len(after)} now"]
    lines = [line for old, new in zip(before, after, strict=True) for line in _differences(old, new)]
    return lines if len(lines) <= limit else [*lines[:limit], f"and {len(lines) - limit} more differences"]


def is_grown(then: Any, now: list[dict[str, Any]]) -> bool:
    """Whether each set begins with the files that it was then, and one has more by now."""
    try:
        before, after = (msgspec.convert(value, type=list[Fingerprint]) for value in (then, now))
    except msgspec.ValidationError:
        return False
    return len(before) == len(after) and all(
        old.files == new.files[: len(old.files)] for old, new in zip(before, after, strict=True)
    )


def _differences(then: Fingerprint, now: Fingerprint) -> list[str]:
    lines = [f"rows: {then.layout} then, {now.layout} now"] if then.layout != now.layout else []
    if then.files == now.files:
        return lines
    if [file[0] for file in then.files] == [file[0] for file in now.files]:
        for old, new in zip(then.files, now.files, strict=True):
            changes = [
                f"{label} {a} then, {b} now"
                for label, a, b in zip(("rows", "bytes", "content", "sha256"), old[1:], new[1:], strict=True)
                if a != b and a is not None and b is not None
            ]
            lines += [f"{old[0]}: {'; '.join(changes)}"] if changes else []
        return lines
    removed = [file[0] for file in then.files if file not in now.files]
    added = [file[0] for file in now.files if file not in then.files]
    lines += [f"{name}: there then, not now (or changed)" for name in removed]
    lines += [f"{name}: here now, not then (or changed)" for name in added]
    return lines if removed or added else [*lines, "the files are in another order"]
