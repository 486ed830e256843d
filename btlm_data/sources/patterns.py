"""Glob patterns over '/'-separated names, and which names a remote listing may have."""

from __future__ import annotations

import functools
import re
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence

from btlm_data.records.formats import classify
from btlm_data.splits import SPLITS

MAX_NAME_BYTES = 1024


@functools.lru_cache(maxsize=4096)
def matcher(pattern: str) -> Callable[[str], bool]:
    """Match whole names: `*` and `?` stay within a folder, `**` crosses folders (also none), `[...]` is a set of characters."""
    out = []
    at = 0
    while at < len(pattern):
        if pattern.startswith("**/", at):
            out.append(r"(?:[^/]+/)*")
            at += 3
        elif pattern.startswith("**", at):
            out.append(r".*")
            at += 2
        elif pattern[at] == "*":
            out.append(r"[^/]*")
            at += 1
        elif pattern[at] == "?":
            out.append(r"[^/]")
            at += 1
        elif pattern[at] == "[" and (end := pattern.find("]", at + 2)) > 0:
            body = pattern[at + 1 : end].replace("\\", r"\\")
            out.append("[" + ("^" + body[1:] if body[0] == "!" else body) + "]")
            at = end + 1
        else:
            out.append(re.escape(pattern[at]))
            at += 1
    found = re.compile("".join(out), re.DOTALL).fullmatch
    return lambda name: found(name) is not None


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


def is_safe_name(name: str) -> bool:
    """Whether a name from a listing is a plain relative path: no `..`, no root, no drive, no control characters, not over-long."""
    if (
        not name
        or len(name.encode("utf-8", "surrogatepass")) > MAX_NAME_BYTES
        or name.startswith("/")
        or "\\" in name
    ):
        return False
    if any(part in ("", ".", "..") for part in name.split("/")) or (len(name) > 1 and name[1] == ":"):
        return False
    return not any(unicodedata.category(character) in ("Cc", "Cs") for character in name)


def usual_split(name: str) -> str:
    """The split a file belongs to by the usual names of folders and files; train where nothing says otherwise.

    `validation/...`, `data/valid-00000.parquet`, `dev.jsonl` are validation; `test/...` is test.
    """
    for part in name.lower().split("/"):
        word = re.split(r"[-_.\d]", part, maxsplit=1)[0]
        if word in ("validation", "valid", "val", "dev", "eval"):
            return "validation"
        if word in ("test", "train"):
            return word
    return "train"


def splits_of(
    names: Iterable[str], patterns: Mapping[str, Sequence[str]] | None, glob: str | None
) -> dict[str, str]:
    """Of all names in a listing, those of input files, each with its split.

    patterns: split -> globs, where a registered entry decides (first match). Otherwise every input file that matches `glob` (or any), with
    its usual split; a bare .json beside folders of splits, or one of the hub's own descriptions, is no part of a corpus.
    """
    if patterns is not None:
        found = (
            (name, next((s for s, globs in patterns.items() if any(matcher(g)(name) for g in globs)), None))
            for name in names
        )
        return {name: split for name, split in found if split is not None and classify(name) is not None}
    chosen = [name for name in names if classify(name) is not None and (glob is None or matcher(glob)(name))]
    has_split_folders = any(name.startswith(_SPLIT_FOLDERS) for name in chosen)
    return {name: usual_split(name) for name in chosen if not _is_description(name, has_split_folders)}


_SPLIT_FOLDERS = tuple(f"{split}/" for split in SPLITS)
_DESCRIPTIONS = frozenset({"dataset_infos.json", "dataset_dict.json", "dataset_info.json", "state.json"})


def _is_description(name: str, has_split_folders: bool) -> bool:
    return name.rpartition("/")[2] in _DESCRIPTIONS or (
        has_split_folders and "/" not in name and name.endswith(".json")
    )
