"""Which split a file belongs to. The only rule, wherever the files are.

A part of the name (a folder, or the file without its endings) that begins or ends with a word for a split
decides; the outermost such part does. Words end where letters end, so `dev-00.jsonl`,
`data/validation/a.parquet` and `c4-validation.00000-of-00008.json.gz` are validation, and `contest.jsonl`,
`latest/a.jsonl` are train.

    train        train, training
    validation   validation, valid, val, dev, development, eval, evaluation, held-out, holdout
    test         test, testing         (each also with `set` or `split` after it)

A word within a name (`wmt-dev-en.jsonl`) decides where a file is there that differs in having `train` in its
place (`wmt-train-en.jsonl`).

A `.txt` file whose name has spaces is a document with its title: there the file's name only decides if it
consists of the word and numbers (`test 2.txt`, not `Test cricket.txt`).

Where every file would be of one split and none for training (`--source test.jsonl`), the source as a whole is
what the user wants to prepare: all files are train.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from btlm_data.records.formats import classify
from btlm_data.sources.globs import matcher
from btlm_data.splits import Split

_WORDS: dict[Split, str] = {
    "train": r"train|training",
    "validation": r"validation|valid|val|dev|development|eval|evaluation|held[-_ .]?out|hold[-_ .]?out",
    "test": r"test|testing",
}
_WORD = "|".join(f"(?P<{split}>(?:{words}))" for split, words in _WORDS.items())
_FIRST = re.compile(rf"(?:{_WORD})(?:[-_ .]?(?:set|split))?(?![^\W\d_])")
_LAST = re.compile(rf".*(?<![^\W\d_])(?:{_WORD})(?:[-_ .]?(?:set|split))?", re.DOTALL)
_INSIDE = re.compile(rf"(?<![^\W\d_])(?:{_WORD})(?![^\W\d_])")
_NO_WORD = "no name of a split in its path"
_NUMBERS = re.compile(r"(?:[-_. ]*(?<![^\W\d_])(?:part|shard|of|\d+|[0-9a-f]{8,}))+$|\d+$")


class Placed(NamedTuple):
    """A file's split and, the rule that put it there."""

    split: Split
    rule: str


def split_of(name: str) -> Placed:
    """The split of one file by its name, '/'-separated and relative to the source."""
    *folders, last = name.lower().split("/")
    for folder in folders:
        if (placed := _by_word(folder, "folder name")) is not None:
            return placed
    stem = _without_endings(last)
    form = classify(last)
    if (placed := _by_word(stem, "file name")) is not None and (
        " " not in stem
        or form is None
        or form[0] != "txt"
        or _FIRST.fullmatch(_NUMBERS.sub("", stem)) is not None
    ):
        return placed
    return Placed("train", _NO_WORD)


def assign_splits(names: Iterable[str], globs: Mapping[Split, Sequence[str]]) -> dict[str, Placed]:
    """The split of every file. globs: what the user says (source.splits): first match; the others are then
    train.
    """
    if globs:
        matchers = [
            (split, pattern, matcher(pattern)) for split, patterns in globs.items() for pattern in patterns
        ]
        rest = Placed("train", "matches no pattern of source.splits")
        return {
            name: next(
                (
                    Placed(split, f"source.splits: {pattern}")
                    for split, pattern, matches in matchers
                    if matches(name)
                ),
                rest,
            )
            for name in names
        }
    placed = {name: split_of(name) for name in names}
    placed |= _in_place_of_train([name for name, placement in placed.items() if placement.rule == _NO_WORD])
    if len(splits := {placement.split for placement in placed.values()}) == 1 and "train" not in splits:
        rule = f"every file is named {splits.pop()}: what is named alone is train"
        return {name: Placed("train", rule) for name in placed}
    return placed


def words_inside(name: str) -> bool:
    """Whether a file that no word has placed has a word for validation or test within its name."""
    stem = _without_endings(name.rpartition("/")[2].lower())
    return " " not in stem and any(match["train"] is None for match in _INSIDE.finditer(stem))


def _in_place_of_train(names: Sequence[str]) -> dict[str, Placed]:
    """Of these files, those whose name has the word of another split where another file's has `train`."""
    stems = {name: re.sub(r"\d+", "0", _without_endings(name.lower())) for name in names}
    all_stems = set(stems.values())
    placed = {}
    for name, stem in stems.items():
        for match in _INSIDE.finditer(stem):
            if match["train"] is None and any(
                f"{stem[: match.start()]}{word}{stem[match.end() :]}" in all_stems
                for word in _WORDS["train"].split("|")
            ):
                split = next(split for split in _WORDS if match[split])
                placed[name] = Placed(split, f"has `{match[split]}` where another name has `train`")
    return placed


def _by_word(part: str, kind: str) -> Placed | None:
    for position, match in (
        ("begins", _FIRST.match(part)),
        ("ends", _LAST.fullmatch(_NUMBERS.sub("", part))),
    ):
        if match is not None:
            split = next(split for split in _WORDS if match[split])
            return Placed(split, f"{kind} {position} with `{match[split]}`")
    return None


def _without_endings(name: str) -> str:
    """The file name without the endings that say its format and compression (two of them in `.warc.wet`,
    `.jsonl.zst`).
    """
    while classify(name) is not None and (shorter := name.rpartition(".")[0]):
        name = shorter
    return name
