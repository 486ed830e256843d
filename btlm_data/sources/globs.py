"""Glob patterns over '/'-separated names."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterable, Sequence

from btlm_data.records.formats import classify


@functools.lru_cache(maxsize=4096)
def matcher(pattern: str) -> Callable[[str], bool]:
    """Match whole names: `*` and `?` stay within a folder, `**` crosses folders (also none), `[...]` is a set of characters."""
    parts = []
    at = 0
    while at < len(pattern):
        if pattern.startswith("**/", at):
            parts.append(r"(?:[^/]+/)*")
            at += 3
        elif pattern.startswith("**", at):
            parts.append(r".*")
            at += 2
        elif pattern[at] == "*":
            parts.append(r"[^/]*")
            at += 1
        elif pattern[at] == "?":
            parts.append(r"[^/]")
            at += 1
        elif pattern[at] == "[" and (end := pattern.find("]", at + 2)) > 0:
            body = pattern[at + 1 : end].replace("\\", r"\\")
            parts.append("[" + ("^" + body[1:] if body[0] == "!" else body) + "]")
            at = end + 1
        else:
            parts.append(re.escape(pattern[at]))
            at += 1
    match = re.compile("".join(parts), re.DOTALL).fullmatch
    return lambda name: match(name) is not None


def is_pattern(text: str) -> bool:
    """Whether `text` holds a glob character."""
    return any(character in text for character in "*?[")


def fixed_folder(pattern: str) -> str:
    """The folder that every match of `pattern` lies in ("" for the root)."""
    parts = pattern.split("/")[:-1]
    fixed = []
    for part in parts:
        if is_pattern(part):
            break
        fixed.append(part)
    return "/".join(fixed)


def split_pattern(path: str) -> tuple[str, str | None]:
    """(root, glob below it) of a path; without glob characters the path itself and None."""
    if not is_pattern(path):
        return path, None
    root = fixed_folder(path)
    return root, path[len(root) :].lstrip("/")


def enclosing_folders(globs: Sequence[str]) -> list[str]:
    """The fewest folders that hold every match: of ten chunks, only the two that are asked for need to be listed."""
    folders = sorted({fixed_folder(glob) for glob in globs})
    return [
        folder
        for folder in folders
        if not any(folder != other and (not other or folder.startswith(other + "/")) for other in folders)
    ]


def select(names: Iterable[str], glob: str) -> tuple[set[str], list[str]]:
    """(the names that a glob means, the folders it matches that are not read).

    A glob means the files it matches. It may match folders too: one that is called as a file is, as Spark writes them
    (`en.parquet/part-0.parquet`), is always read whole; any other only where no file matches.
    """
    matches = matcher(glob)
    files: set[str] = set()
    below: dict[str, list[str]] = {}
    for name in names:
        if matches(name):
            files.add(name)
            continue
        folder = name.rpartition("/")[0]
        while folder:
            if matches(folder):
                below.setdefault(folder, []).append(name)
                break
            folder = folder.rpartition("/")[0]
    called_as_files = {folder for folder in below if classify(folder) is not None}
    chosen = called_as_files if files or called_as_files else set(below)
    for folder in chosen:
        files.update(below[folder])
    return files, sorted(set(below) - chosen)
