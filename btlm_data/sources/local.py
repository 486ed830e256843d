"""Files of this machine: one file, a folder searched recursively, or a glob; and the sample corpus in the package."""

from __future__ import annotations

import glob
import os
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

from btlm_data.errors import InputError
from btlm_data.recipe.models import SourceSettings
from btlm_data.records.formats import classify
from btlm_data.sources.base import SourceFile
from btlm_data.sources.listing import Listing
from btlm_data.sources.patterns import splits_of
from btlm_data.sources.redpajama import is_layout, layout_source
from btlm_data.splits import SPLITS

SAMPLE = Path(__file__).resolve().parent.parent / "data" / "sample"
_READABLE = ".jsonl, .json, .ndjson, .txt (also with .gz or .zst) and .parquet"


def list_local(settings: SourceSettings) -> Listing:
    """List a path or glob.

    Splits are recognised by a first folder called train, validation or test; and where a file or folder says `train`, by the usual names
    of the others too (`data/validation-00000.parquet`, `dev.jsonl`), as for remote sources.

    A folder in RedPajama-1T's layout gives its seven source names. Hidden files and files of other kinds are left out
    (and counted in the provenance). Raises InputError if nothing is
    there, nothing can be read, or the folder holds no corpus file.
    """
    if settings.name == "sample":
        root, paths = SAMPLE, _walk(SAMPLE)
        shown = "the sample corpus inside the package"
    else:
        root, paths = _find(settings.name)
        shown = settings.name
    files: list[SourceFile] = []
    left_out: Counter[str] = Counter()
    names = [path.relative_to(root).as_posix() for path in paths]
    splits = splits_of([name for name in names if _is_utf8(name)], None, None)
    named = any(
        re.split(r"[-_.\d]", part, maxsplit=1)[0] == "train"
        for name in names
        for part in name.lower().split("/")
    )
    for path, name in zip(paths, names, strict=True):
        kind = classify(path.name)
        if kind is None or (
            _is_utf8(name) and name not in splits
        ):  # the latter: a description of the corpus, no part of it
            left_out[path.suffix or "(no ending)"] += 1
            continue
        if not _is_utf8(name):
            raise InputError(
                f"The file name {name!r} is not UTF-8, so it cannot be recorded. Rename the file or its folder, or name another --source."
            )
        try:
            status = path.stat()
        except OSError as error:
            raise InputError(
                f"{path} cannot be read: {error.strerror}. Mend or move it, or name another --source."
            ) from None
        if not os.access(path, os.R_OK):
            raise InputError(
                f"{path} cannot be read: no permission. Change its permissions, or name another --source."
            )
        first = name.split("/")[0]
        split = splits[name] if named else first if first in SPLITS and "/" in name else "train"
        version = f"{status.st_mtime_ns}" if settings.name != "sample" else "package"
        files.append(SourceFile(name, str(path.absolute()), status.st_size, split, version, kind[0], kind[1]))
    if not files:
        found = ", ".join(f"{n} x {ending}" for ending, n in left_out.most_common(5)) or "no files at all"
        raise InputError(f"No corpus file in {shown}: found {found}. Name a file or folder with {_READABLE}.")
    provenance: dict[str, Any] = {
        "kind": "sample" if settings.name == "sample" else "local",
        "files_left_out": sum(left_out.values()),
    }
    if is_layout([file.name for file in files]):
        files = [replace(file, source=layout_source(file.name)) for file in files]
        provenance["layout"] = "RedPajama-1T"
    return Listing(tuple(files), provenance)


def _is_utf8(name: str) -> bool:
    """False where the system's bytes for a name are none (Python then holds them as lone surrogates)."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _find(name: str) -> tuple[Path, list[Path]]:
    path = Path(name).expanduser()
    try:
        if path.is_dir():
            return path, _walk(path)
        if path.is_file():
            if classify(path.name) is None:
                raise InputError(
                    f"{path} is of no known kind ({path.suffix or 'no ending'}). Use {_READABLE}."
                )
            return path.parent, [path]
    except OSError as error:
        raise InputError(
            f"{path} cannot be read: {error.strerror}. Check the path and its permissions."
        ) from None
    if glob.has_magic(name):
        expanded = os.path.expanduser(name)
        fixed: list[str] = []
        for part in Path(expanded).parts:
            if glob.has_magic(part):
                break
            fixed.append(part)
        root = Path(*fixed) if fixed else Path()
        found = [
            p
            for p in map(Path, glob.glob(expanded, recursive=True))
            if p.is_file() and not p.name.startswith(".")
        ]
        if not found:
            raise InputError(
                f"The glob {name!r} matches no file. Quote it in the shell, and check the folder {root}."
            )
        return root, sorted(found)
    raise InputError(
        f"The source {name!r} does not exist: it is no file, folder or glob here, and no registered source. "
        "Use a path, or one of: sample, slimpajama, slimpajama-6b, redpajama, hf://datasets/ORG/NAME, s3://BUCKET/PREFIX."
    )


def _walk(root: Path) -> list[Path]:
    def failed(error: OSError) -> None:
        raise InputError(
            f"The folder {error.filename} cannot be read: {error.strerror}. Change its permissions, or name another --source."
        )

    paths: list[Path] = []
    for folder, folders, names in os.walk(root, onerror=failed):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        paths += [
            Path(folder) / name
            for name in sorted(names)
            if not name.startswith(".") and (Path(folder) / name).is_file()
        ]
    return paths
