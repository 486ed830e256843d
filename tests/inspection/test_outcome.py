"""The end of `prepare` says in four lines what one waited for."""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from btlm_data.inspection.outcome import Outcome, SplitOutcome, render

BASE: dict[str, Any] = {
    "out": "shards/",
    "folder": "shards",
    "work_dir": "shards/.work",
    "complete": True,
    "unchanged": False,
    "stopped_after": None,
    "seconds": 192.4,
    "read": {"documents": 130, "bytes": 630_000},
    "kept": {"documents": 120, "bytes": 597_000},
    "dropped": {"clean": {"too_short": 7}, "dedupe": {"duplicate": 2, "duplicate_of_holdout": 1}},
    "rejected": 0,
    "splits": [
        SplitOutcome("", "train", 20, 40_000, 110, 1, 60_000),
        SplitOutcome("", "test", 1, 960, 10, 1, 3_600),
    ],
}


def shown(**changes: Any) -> list[str]:
    out = io.StringIO()
    render(Outcome(**(BASE | changes)), Console(file=out, width=80, markup=False, highlight=False))
    return out.getvalue().splitlines()


def test_four_lines_say_what_was_made_kept_where_and_what_next() -> None:
    assert shown() == [
        "Prepared 21 samples, 40,960 tokens, 2 shards (63.6 kB) in 3 min 12 s.",
        "Kept 120 of 130 documents (597 kB of 630 kB of text); dropped: too short 7, duplicate 2, duplicate of holdout 1.",
        "Dataset: shards; work files, safe to delete: shards/.work.",
        "Next: btlm-data inspect shards; btlm-data verify shards",
    ]


def test_singular_plural_sets_and_a_corpus_without_samples() -> None:
    one = [SplitOutcome("", "train", 1, 1, 1, 1, 1)]
    assert "Prepared 1 sample, 1 token, 1 shard (1 B)" in shown(splits=one)[0]
    two = [
        SplitOutcome("msl512", "train", 4, 2048, 9, 1, 9),
        SplitOutcome("msl2048", "train", 1, 2048, 9, 1, 9),
    ]
    assert (
        "msl512: 4 samples, 2,048 tokens; msl2048: 1 sample, 2,048 tokens, 2 shards" in shown(splits=two)[0]
    )
    corpus = [SplitOutcome("", "train", None, 5000, 9, 1, 9)]
    assert shown(splits=corpus)[0].startswith("Prepared 5,000 tokens, 1 shard")


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"unchanged": True, "read": None, "kept": None}, "Nothing to do: shards holds this very dataset already."),
        ({"complete": False, "stopped_after": "dedupe"}, "Stopped after dedupe, as asked"),
        ({"out": "s3://bucket/x", "folder": "s3://bucket/x"}, "Dataset: s3://bucket/x; work files"),
        ({"out": "s3://bucket/x", "folder": "s3://bucket/x"}, "Next: btlm-data inspect s3://bucket/x --html; btlm-data verify of a copy"),
        ({"unchanged": True, "out": "s3://bucket/x", "folder": "s3://bucket/x"}, "Next: btlm-data inspect s3://bucket/x --html"),
        ({"folder": f"{Path.cwd()}/a/b"}, "Next: btlm-data inspect a/b;"),
        ({"folder": "/elsewhere/b"}, "Next: btlm-data inspect /elsewhere/b;"),
        ({"rejected": 1}, "1 record could not be read, listed in"),
        ({"rejected": 2000}, "2,000 records could not be read"),
        ({"rejected": 1, "without_text": 1, "damaged": 1},
         "1 record and 1 damaged place could not be read, 1 record without text left out, listed in"),
        ({"warnings": ["The index is old."]}, "Warning: The index is old."),
        ({"folder": "my shards"}, "Next: btlm-data inspect 'my shards'; btlm-data verify 'my shards'"),
        ({"dropped": {}}, "Kept 120 of 130 documents (597 kB of 630 kB of text)."),
    ],
)  # fmt: skip
def test_each_case_says_its_own(changes: dict[str, Any], line: str) -> None:
    lines = shown(**changes)
    assert any(line in text for text in lines), lines
    assert not any("uploaded" in text for text in lines)


def test_paths_are_shown_as_they_are() -> None:
    lines = shown(folder="o[/b]", work_dir="[red]w")
    assert "Dataset: o[/b]; work files, safe to delete: [red]w." in lines
    assert not re.search(r"\x1b", "".join(lines))


def test_on_a_narrow_terminal_words_stay_whole() -> None:
    out = io.StringIO()
    console = Console(
        file=out, width=60, force_terminal=True, color_system=None, markup=False, highlight=False
    )
    render(Outcome(**BASE), console)
    lines = [line.rstrip() for line in out.getvalue().splitlines()]
    assert max(map(len, lines)) <= 60
    assert " ".join(lines).split() == " ".join(shown()).split()
