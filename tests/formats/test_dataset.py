from __future__ import annotations

from pathlib import Path

import pytest

from btlm_data.errors import DataError
from btlm_data.formats import manifest
from btlm_data.task import Counts


def balanced() -> dict[str, Counts]:
    stages = {name: Counts() for name in manifest.STAGES}
    stages["acquire"].add("train", "(unreadable)", "in", 1, 30)
    stages["acquire"].add("train", "(unreadable)", "drop:invalid_json", 1, 30)
    for stage in manifest.STAGES[:6]:
        for source, documents in (("A", 3), ("B", 2)):
            tokens = documents * 10 if stage in ("tokenize", "shuffle") else 0
            stages[stage].add(
                "train", source, "in", documents, documents * 100, tokens if stage == "shuffle" else 0
            )
            stages[stage].add("train", source, "out", documents, documents * 100, tokens)
    stages["pack"].add("train", "*", "in", tokens=50)
    stages["pack"].add("train", "*", "drop:first_token_is_no_label", tokens=1)
    stages["pack"].add("train", "*", "out", tokens=49)
    stages["shard"].add("train", "*", "in", tokens=49)
    stages["shard"].add("train", "*", "out", tokens=49)
    return stages


def test_a_balanced_ledger_has_no_problem_and_says_where_everything_went() -> None:
    entries = manifest.ledger(balanced())
    assert manifest.imbalances(entries) == []
    assert [entry["stage"] for entry in entries[:3]] == ["acquire"] * 3
    assert entries[0]["source"] == "(unreadable)"
    assert entries[0]["dropped"] == {"invalid_json": {"documents": 1, "bytes": 30, "tokens": 0}}
    assert entries[0]["out"] == {"documents": 0, "bytes": 0, "tokens": 0}


@pytest.mark.parametrize("stage", manifest.STAGES)
@pytest.mark.parametrize("what", ["in", "out", "drop:odd"])
def test_one_too_many_anywhere_is_found(stage: str, what: str) -> None:
    stages = balanced()
    if stage in ("pack", "shard"):
        stages[stage].add("train", "*", what, tokens=1)
    else:
        stages[stage].add("train", "A", what, 1)
    problems = manifest.imbalances(manifest.ledger(stages))
    assert any(stage in problem for problem in problems)


def test_a_lost_stage_to_stage_document_is_found() -> None:
    stages = balanced()
    for what in ("in", "out"):
        stages["clean"].add("train", "A", what, -1, -100)
    assert manifest.imbalances(manifest.ledger(stages)) == [
        "acquire gave 5 documents, clean took 4",
        "acquire gave 500 bytes, clean took 400",
        "clean gave 4 documents, dedupe took 5",
        "clean gave 400 bytes, dedupe took 500",
    ]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "There is no"),
        (b"{", "cannot be read"),
        (b"\xff", "cannot be read"),
        (b"[]", "version 'list'"),
        (b'{"format_version": 99}', "version 99"),
    ],
)
def test_what_is_no_manifest_is_refused(tmp_path: Path, content: bytes | None, said: str) -> None:
    path = tmp_path / "dataset.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError, match=said):
        manifest.read(path)
    path.write_bytes(b'{"format_version": 1, "a": 2}')
    assert manifest.read(path)["a"] == 2
