"""Glob patterns over '/'-separated names."""

from __future__ import annotations

import fnmatch
import functools
import re
from collections.abc import Callable, Iterable, Sequence

from btlm_data.errors import ConfigError
from btlm_data.records.formats import classify

_BRACES = re.compile(r"\{([^{}/]*,[^{}/]*|[0-9]{1,9}\.\.[0-9]{1,9})\}")
_SPAN = re.compile(r"([0-9]+)\.\.([0-9]+)")
_MOST_CHARS = 1_000  # of a part of a pattern with braces
_MOST_NAMES = 10_000  # that the braces of a part of a pattern may stand for


@functools.lru_cache(maxsize=4096)
def matcher(pattern: str) -> Callable[[str], bool]:
    """Match whole names, part by part: `*`, `?`, `[...]`, `{a,b}` and `{00..12}` within a folder; a part that is
    `**` crosses folders (also none). Raises ConfigError where braces stand for too many names.

    Takes time linear in the name, regardless of the pattern: patterns come from files that others may have
    written.
    """
    parts = [
        None if part == "**" else re.compile("|".join(map(fnmatch.translate, _alternatives(part)))).match
        for part in pattern.split("/")
    ]
    last = len(parts) - 1
    if None not in parts:
        exact = [part for part in parts if part is not None]

        def matches_exactly(name: str) -> bool:
            segments = name.split("/")
            return len(segments) == len(exact) and all(
                part(segment) is not None for part, segment in zip(exact, segments, strict=True)
            )

        return matches_exactly

    def reachable(states: set[int]) -> set[int]:
        """The states, and those behind a `**` that stands for no folder at all."""
        for state in range(len(parts)):
            if state in states and parts[state] is None and state != last:
                states.add(state + 1)
        return states

    def matches(name: str) -> bool:
        states = reachable({0})  # how many parts of the pattern the segments so far can have used
        for segment in name.split("/"):
            after: set[int] = set()
            for state in states:
                part = parts[state] if state <= last else None
                if state <= last and part is None:
                    after |= {state, state + 1} if state == last else {state}
                elif part is not None and part(segment) is not None:
                    after.add(state + 1)
            states = reachable(after)
        return last + 1 in states

    return matches


def is_pattern(text: str) -> bool:
    """Whether `text` holds a glob character."""
    return any(character in text for character in "*?[") or _BRACES.search(text) is not None


def _alternatives(part: str) -> list[str]:
    """What the shell makes of braces: `{a,b}` is a or b, `{08..10}` is 08, 09 or 10; other braces are themselves."""
    braces = _BRACES.search(part)
    if braces is None or len(part) > _MOST_CHARS:
        return [part]
    if (span := _SPAN.fullmatch(braces[1])) is not None:
        first, last = int(span[1]), int(span[2])
        width = len(span[1]) if span[1].startswith("0") else 0
        choices = [f"{number:0{width}}" for number in range(first, min(last, first + _MOST_NAMES) + 1)]
    else:
        choices = braces[1].split(",")
    rests = _alternatives(part[braces.end() :])
    if not choices or len(choices) * len(rests) > _MOST_NAMES:
        raise ConfigError(f"The pattern {part[:100]!r} stands for no name, or for too many. Write * instead.")
    return [part[: braces.start()] + choice + rest for choice in choices for rest in rests]


def fixed_folder(pattern: str) -> str:
    """The folder that every match of `pattern` is in ("" for the root)."""
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
    """The fewest folders that hold every match: of ten chunks, only the two that are requested need to be
    listed.
    """
    folders = sorted({fixed_folder(glob) for glob in globs})
    return [
        folder
        for folder in folders
        if not any(folder != other and (not other or folder.startswith(other + "/")) for other in folders)
    ]


def select(names: Iterable[str], glob: str) -> tuple[set[str], list[str]]:
    """(the names that a glob means, the folders it matches that are not read).

    A glob means the files it matches. It may match folders too: one that is called as a file is, as Spark
    writes them (`en.parquet/part-0.parquet`), is always read whole; any other only where no file matches.
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
