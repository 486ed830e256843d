from __future__ import annotations

import pytest

from btlm_data.formats import ledger
from btlm_data.formats.ledger import Amounts
from btlm_data.task import Amount, Counts


def balanced() -> dict[str, Counts]:
    stages = {str(name): Counts() for name in ledger.STAGES}
    stages["acquire"].add("train", "(unreadable)", "in", 1, 30)
    stages["acquire"].add("train", "(unreadable)", "drop:invalid_json", 1, 30)
    for stage in ledger.STAGES_OF_DOCUMENTS:
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
    rows = ledger.rows_of(balanced())
    assert ledger.imbalances(rows) == []
    assert [row.stage for row in rows[:3]] == ["acquire"] * 3
    assert rows[0].source == "(unreadable)"
    assert rows[0].dropped == {"invalid_json": Amounts(1, 30, 0)}
    assert rows[0].out == Amounts()
    assert ledger.total(rows, "acquire", "in") == Amount(6, 530, 0)
    assert ledger.total(rows, "pack", "out", "train") == Amount(0, 0, 49)
    assert ledger.total(rows, "pack", "out", "test") == Amount()


@pytest.mark.parametrize("stage", ledger.STAGES)
@pytest.mark.parametrize("kind", ["in", "out", "drop:odd", "add:odd"])
def test_one_too_many_anywhere_is_found(stage: str, kind: str) -> None:
    stages = balanced()
    if stage in ("pack", "shard"):
        stages[stage].add("train", "*", kind, tokens=1)
    else:
        stages[stage].add("train", "A", kind, 1)
    assert any(stage in problem for problem in ledger.imbalances(ledger.rows_of(stages)))


@pytest.mark.parametrize("stage", ledger.STAGES)
def test_a_missing_stage_is_found_although_the_rest_balances(stage: str) -> None:
    rows = [row for row in ledger.rows_of(balanced()) if row.stage != stage]
    assert f"no row of the stage {stage}" in ledger.imbalances(rows)


def test_a_document_lost_between_stages_is_found_source_by_source() -> None:
    stages = balanced()
    for kind in ("in", "out"):
        stages["clean"].add("train", "A", kind, -1, -100)
        stages["clean"].add("train", "B", kind, 1, 100)
    assert ledger.imbalances(ledger.rows_of(stages)) == [
        "train A: acquire passed on 3 documents, clean received 2",
        "train A: acquire passed on 300 bytes, clean received 200",
        "train B: acquire passed on 2 documents, clean received 3",
        "train B: acquire passed on 200 bytes, clean received 300",
        "train A: clean passed on 2 documents, dedupe received 3",
        "train A: clean passed on 200 bytes, dedupe received 300",
        "train B: clean passed on 3 documents, dedupe received 2",
        "train B: clean passed on 300 bytes, dedupe received 200",
    ]


def test_a_row_that_is_there_twice_is_found() -> None:
    rows = ledger.rows_of(balanced())
    assert "two rows for clean train A" in ledger.imbalances([*rows, rows[3]])
