"""A run that goes on with another memory than it began with: what is done already must fit what is cut otherwise now."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.faults.kill_targets import hashes, write_corpus
from tests.stages.runs import prepare

OPTIONS = {
    "seq_len": 64,
    "shards__samples_per_file": 50,
    "holdout__fraction": 0.1,
    "clean__min_chars": 50,
    "run__report": False,
}


def steps_in_order(work: Path) -> list[str]:
    """The steps that left receipts, by when they ended."""
    ended = {
        folder.name: max(path.stat().st_mtime_ns for path in folder.iterdir())
        for folder in (work / "receipts").iterdir()
        if any(folder.iterdir())
    }
    return sorted(ended, key=lambda name: ended[name])


def go_on_from(tmp_path: Path, first: str, then: str, chosen: str | None) -> None:
    """Take away what follows each step (or `chosen`), go on with the memory `then`; the bytes are those of a fresh folder."""
    corpus = tmp_path / "corpus"
    write_corpus(corpus, 4, 60, 3)
    prepare(corpus, tmp_path / "fresh", run__memory=then, **OPTIONS)
    expected = hashes(tmp_path / "fresh")
    prepare(corpus, tmp_path / "begun", run__memory=first, **OPTIONS)
    steps = steps_in_order(tmp_path / "begun/.work")
    assert {"dedupe.pairs", "dedupe.compare", "shuffle.sort"} <= set(steps)
    for number, step in enumerate(steps):
        if chosen not in (None, step):
            continue
        out = tmp_path / "out"
        shutil.copytree(tmp_path / "begun", out)
        for later in steps[number + 1 :]:
            shutil.rmtree(out / ".work/receipts" / later)
        (out / "dataset.json").unlink()
        prepare(corpus, out, run__memory=then, run__overwrite=True, **OPTIONS)
        assert hashes(out) == expected, f"done up to {step} with {first}, then {then}"
        shutil.rmtree(out)


def test_pairs_of_other_partitions_are_not_taken_for_these(tmp_path: Path) -> None:
    go_on_from(tmp_path, "30KB", "80KB", "dedupe.pairs")


@pytest.mark.stress
@pytest.mark.parametrize(
    ("first", "then"), [("80KB", "30KB"), ("30KB", "80KB"), ("30KB", "2GB"), ("2GB", "30KB")]
)
def test_any_step_may_be_the_last_of_the_earlier_memory(tmp_path: Path, first: str, then: str) -> None:
    go_on_from(tmp_path, first, then, None)
