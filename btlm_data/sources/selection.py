"""Which files of a place are the corpus, and why the others are not; the same for every kind of place."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from collections.abc import Set as AbstractSet

from btlm_data.records.compression import COMPRESSIONS
from btlm_data.records.formats import classify
from btlm_data.sources.globs import matcher, select
from btlm_data.sources.names import shown

_DESCRIPTION = "description of the data"
_UNFINISHED_DOWNLOAD = "unfinished download"
_ARCHIVE = re.compile(r"\.(?:zip|tar|tgz|tar\.[a-z0-9]+|7z|rar)$")
_UNFINISHED = (".part", ".partial", ".tmp", ".temp", ".crdownload", ".incomplete", ".aria2", ".download")
# What is beside data and describes it, by the name without its ending.
_PAPERS = r"""
    readme licen[cs]es? copying copyright notices? authors contributors contributing acknowledge?ments?
    citation changelog changes code_of_conduct requirements robots checksums (?:md5|sha1|sha256|sha512)(?:sums?)?
    (?:dataset|data|model)_?card urls? (?:file|path|url)_?(?:list|names?)s? filelist merges
"""
_RECORDS = r"""
    about added_tokens config croissant dataset_dict dataset_infos? dataset-metadata features generation_config
    index manifest meta metadata package package-lock preprocessor_config schema special_tokens_map state stats
    statistics summary tokenizer tokenizer_config version vocab
"""
_LANGUAGE = r"(?:[-_.][a-z]{2}(?:[-_][a-z]{2})?)?"  # README.de.md, LICENSE-en.txt
_PAPER = re.compile(rf"(?:{'|'.join(_PAPERS.split())}){_LANGUAGE}")
_RECORD = re.compile("|".join(_RECORDS.split()))
_DESCRIBING_ENDINGS = re.compile(r"\.(?:txt|json|csv|tsv)$")


def ignored(part: str, *, is_folder: bool) -> str | None:
    """Why a file or folder of this name (one part of a path) is never a part of a corpus; None: nothing
    against it.

    Names that begin with `.` or `_` are not data, as Spark, Hive and Arrow have it: `_SUCCESS`, `_temporary/`
    with the half files of failed tasks, `_metadata`, `_delta_log/`, `.part-0.crc`, `.git/`,
    `.ipynb_checkpoints/`.
    """
    if part.startswith("."):
        return "hidden (name begins with a dot)"
    if part == "__MACOSX":
        return "bookkeeping of an archiver"
    if part.startswith("_"):
        return "bookkeeping files, such as Spark's (name begins with _)"
    if not is_folder and part.lower().endswith(_UNFINISHED):
        return _UNFINISHED_DOWNLOAD
    return None


def choose(
    names: Iterable[str], glob: str | None, wanted: Sequence[str] | None
) -> tuple[list[str], list[tuple[str, str]]]:
    """(names of the corpus's files, (reason, name) of what is left out), of all names at a place.

    glob: from the URL; what it does not match was not requested, and is not counted. wanted: the patterns of
    a registered corpus, likewise.
    """
    left_out: list[tuple[str, str]] = []
    candidates: Iterable[str] = names
    if wanted is not None:
        matchers = [matcher(pattern) for pattern in wanted]
        candidates = [name for name in names if any(matches(name) for matches in matchers)]
    elif glob is not None:
        # What lies in a folder that is never read decides nothing; it is named as what it is.
        never = [name for name in names if _ignored_folder(name) is not None]
        chosen, folders = select(set(names).difference(never), glob)
        candidates = chosen.union(never)
        left_out += [("folder that the pattern matches beside files", f"{name}/") for name in folders]
    data: list[str] = []
    candidates = set(candidates)
    has_documents = any(f"/{name}".find("/documents/") >= 0 for name in candidates)
    for name in sorted(candidates):
        reason = _why_not(name, candidates, has_documents=has_documents)
        if reason is None:
            data.append(name)
        else:
            left_out.append((reason, name))
    if wanted is not None:
        return data, left_out
    return _without_descriptions(data, left_out)


def _ignored_folder(name: str) -> str | None:
    """Why a folder that a file is in is never read; None where it is."""
    return next((why for part in name.split("/")[:-1] if (why := ignored(part, is_folder=True))), None)


def is_archive(name: str) -> bool:
    """Whether a name is that of several files in one, which are not read."""
    return _ARCHIVE.search(name.lower()) is not None


def _why_not(name: str, names: AbstractSet[str], *, has_documents: bool) -> str | None:
    """Why a file is no part of the corpus, judging by its own name and those beside it."""
    *folders, last = name.split("/")
    reason = _ignored_folder(name) or ignored(last, is_folder=False)
    if reason is None and f"{name}.aria2" in names:  # aria2 keeps its notes there while it downloads
        reason = _UNFINISHED_DOWNLOAD
    if reason is None and has_documents and "attributes" in folders and "documents" not in folders:
        reason = "attributes of documents (dolma's layout)"
    if reason is None and classify(last) is None:
        if _is_description(last):
            reason = _DESCRIPTION
        elif is_archive(last):
            reason = "archive; unpack it first:"
        else:
            reason = f"unknown ending {_ending(last)}"
    return reason


def _without_descriptions(
    data: list[str], left_out: list[tuple[str, str]]
) -> tuple[list[str], list[tuple[str, str]]]:
    """Take out what describes the data: by its name, or because it is above the folders that hold all other
    data.

    The latter: in `stats.json, data/a.parquet, data/b.parquet` the bare .json is no document. A bare .txt,
    .json or table beside data, or in folders of its own, is.
    """
    by_name = {name for name in data if _is_description(name)}
    if len(by_name) == len(data):  # nothing else is there: then these are what is meant
        return data, left_out
    rest = [name for name in data if name not in by_name]
    bare = {name for name in rest if _DESCRIBING_ENDINGS.search(name.lower())}
    homes = {name.rpartition("/")[0] for name in rest if name not in bare}
    above = {
        name
        for name in bare
        if homes
        and all(
            home.startswith(f"{folder}/" if (folder := name.rpartition("/")[0]) else "") for home in homes
        )
        and name.rpartition("/")[0] not in homes
    }
    if (
        not homes
    ):  # only bare files: those in the root beside folders of splits describe them (about.json beside train/)
        above = _beside_split_folders(rest)
    left_out = left_out + [(_DESCRIPTION, name) for name in data if name in by_name or name in above]
    return [name for name in rest if name not in above], left_out


def _beside_split_folders(names: Sequence[str]) -> set[str]:
    if not any(name.startswith(("train/", "validation/", "test/")) for name in names):
        return set()
    return {name for name in names if "/" not in name and name.lower().endswith(".json")}


def _is_description(name: str) -> bool:
    """Whether a file describes the data beside it: papers under any ending that could be text, records as
    .json or a table.
    """
    stem, dot, ending = name.rpartition("/")[2].lower().rpartition(".")
    if not dot:
        stem, ending = ending, ""
    if _PAPER.fullmatch(stem) is not None:
        return ending in ("", "txt", "json", "md", "rst", "html", "cff", "bib", "toml", "yaml", "yml")
    return ending in ("json", "csv", "tsv") and _RECORD.fullmatch(stem) is not None


def _ending(name: str) -> str:
    """The ending of a file name as a reason names it: `.pdf`, `.arc.gz`, or `(none)`."""
    stem, _, ending = name.lower().rpartition(".")
    if not stem or not 0 < len(ending) <= 20:
        return "(none)"
    packed = any(f".{ending}" in codec.endings for codec in COMPRESSIONS.values())
    inner = stem.rpartition(".")[2] if packed and "." in stem else ""
    return shown(f".{inner}.{ending}" if 0 < len(inner) <= 20 else f".{ending}")
