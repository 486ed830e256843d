"""`dedupe-report`: what it says other rules would remove is what runs with those rules remove."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner, Result

from btlm_data.cli import cli
from btlm_data.dedupe import report
from btlm_data.errors import ConfigError, DataError, InputError
from btlm_data.formats import dataset
from tests.reference.shingles import features, jaccard
from tests.stages.test_dedupe_by_text import run, some_texts, tokenizer_checked_once, write

__all__ = ["tokenizer_checked_once"]  # a fixture of every test here
WIDE = {"dedupe__bands": 64, "dedupe__rows": 2, "dedupe__max_component": 1}


def corpus(folder: Path, count: int = 90, seed: int = 3) -> list[str]:
    """Two sources, and a validation split; returns the texts of train."""
    texts = some_texts(count, seed)
    lines = (
        json.dumps({"text": text, "meta": {"redpajama_set_name": ("web", "books")[k % 3 == 0]}})
        for k, text in enumerate(texts[10:])
    )
    folder.mkdir()
    (folder / "train.jsonl").write_text("".join(f"{line}\n" for line in lines))
    write(folder / "validation", texts[:10], "v.jsonl")
    return texts[10:]


def removed(out: Path) -> dict[str, list[int]]:
    """Documents and bytes by source, of a run's own table."""
    amounts: dict[str, list[int]] = {}
    for row in pq.read_table(out / "removals.parquet").to_pylist():
        held = amounts.setdefault(row["source"], [0, 0])
        held[:] = [held[0] + 1, held[1] + row["bytes"]]
    return amounts


def by_rule(made: report.Report) -> dict[tuple[Any, ...], report.Outcome]:
    return {(o.rule.verify, o.rule.similarity, o.rule.threshold): o for o in made.outcomes}


@pytest.mark.parametrize("settings", [{"keep": "first"}, {"keep": "longest"}, {"holdout": False}])
def test_what_a_rule_would_remove_is_what_a_run_with_it_removes(
    tmp_path: Path, settings: dict[str, Any]
) -> None:
    corpus(tmp_path / "in")
    options = WIDE | {f"dedupe__{key}": value for key, value in settings.items()}
    run(tmp_path / "in", tmp_path / "own", **options)
    rules: dict[tuple[Any, ...], dict[str, Any]] = {
        ("exact", None, None): {"dedupe__method": "exact"},
        ("none", None, None): {"dedupe__verify": "none"},
        ("text", "jaccard", 0.6): {"dedupe__threshold": 0.6},
        ("text", "jaccard", 0.85): {},
        ("text", "containment", 0.7): {"dedupe__threshold": 0.7, "dedupe__similarity": "containment"},
    }
    expected = {}
    for number, (rule, others) in enumerate(rules.items()):
        run(tmp_path / "in", tmp_path / f"out{number}", **(options | others))
        expected[rule] = removed(tmp_path / f"out{number}")
    total = dataset.read_set(tmp_path / "own").ledger
    shutil.rmtree(tmp_path / "in")  # nothing of it is read
    made = report.make(str(tmp_path / "own"), [0.6, 0.7], ["jaccard", "containment"])
    outcomes = by_rule(made)
    assert {rule: outcomes[rule].removed for rule in rules} == expected
    assert [o.rule.threshold for o in made.outcomes if o.rule.is_used] == [0.85]
    assert len({json.dumps(amounts) for amounts in expected.values()}) == 5, "the rules differ here"
    assert sum(documents for documents, _ in made.sources.values()) == 80
    assert total


def test_pairs_nearest_to_a_threshold_are_those_of_plain_sets(tmp_path: Path) -> None:
    texts = corpus(tmp_path / "in")
    run(tmp_path / "in", tmp_path / "out", dedupe__holdout=False, **WIDE)
    outcome = by_rule(report.make(str(tmp_path / "out"), [0.7], []))["text", "jaccard", 0.7]
    goes = [pair for pair in outcome.nearest if pair["removed"]]
    stays = [pair for pair in outcome.nearest if not pair["removed"]]
    assert len(goes) == 5
    assert stays
    for pair in outcome.nearest:
        if pair["file"] == pair["kept_file"] == "train.jsonl":
            assert pair["similarity"] == jaccard(
                *(features(texts[pair[key]]) for key in ("line", "kept_line"))
            )
        assert pair["text"] != pair["kept_text"]
    assert [pair["similarity"] for pair in goes] == sorted(pair["similarity"] for pair in goes)
    assert [pair["similarity"] for pair in stays] == sorted((p["similarity"] for p in stays), reverse=True)
    assert min(pair["similarity"] for pair in goes) >= 0.7 > max(pair["similarity"] for pair in stays)
    largest = outcome.largest
    assert [one["removed"] for one in largest] == sorted((one["removed"] for one in largest), reverse=True)
    assert all(1 <= one["removed"] < one["documents"] for one in largest)


def ask(*arguments: str) -> Result:
    return CliRunner().invoke(cli, ["dedupe-report", *arguments])


def test_the_command_after_a_stop_for_any_number_of_processes(tmp_path: Path) -> None:
    corpus(tmp_path / "in")
    run_options = {"run__stop_after": "dedupe"}
    with pytest.raises(DataError, match=r"dataset\.json"):
        run(tmp_path / "in", tmp_path / "out", **(WIDE | run_options))
    work = str(tmp_path / "out/.work")
    before = sorted((p, p.stat().st_mtime_ns) for p in Path(work).rglob("*"))
    one = ask(work, "--json", "--workers", "1", "--threshold", "0.8")
    assert one.exit_code == 0, one.output
    assert [rule["threshold"] for rule in json.loads(one.output)["rules"]] == [None, None, 0.8, 0.85]
    assert sorted((p, p.stat().st_mtime_ns) for p in Path(work).rglob("*")) == before, "it only reads"
    shown = ask(str(tmp_path / "out"), "--workers", "1", "--similarity", "containment", "--pairs", "3")
    assert shown.exit_code == 0, shown.output
    for words in ("components", "containment 0.95", "removed for", "kept beside", "books", "«"):
        assert words in shown.output, words


def test_groups_are_added_up_over_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    corpus(tmp_path / "in")
    monkeypatch.setattr("btlm_data.dedupe.groups.GROUP_BYTES", 6000)
    run(tmp_path / "in", tmp_path / "out", **WIDE)
    assert len(list((tmp_path / "out/.work/dedupe/compare").iterdir())) > 2
    made = [report.make(str(tmp_path / "out"), [], [], workers=workers) for workers in (1, 2)]
    assert made[0] == made[1]
    assert by_rule(made[0])["text", "jaccard", 0.85].removed == removed(tmp_path / "out")


def test_a_run_that_was_matched_against_an_index_names_it(tmp_path: Path) -> None:
    texts = corpus(tmp_path / "in")
    write(tmp_path / "first", texts[:30])
    index = str(tmp_path / "index")
    run(tmp_path / "first", tmp_path / "one", dedupe__index=index, **WIDE)
    run(tmp_path / "in", tmp_path / "two", dedupe__index=index, **WIDE)
    with pytest.raises(ConfigError, match="--dedupe-index"):
        report.make(str(tmp_path / "two"), [], [])
    made = by_rule(report.make(str(tmp_path / "two"), [], [], index=index))
    assert made["text", "jaccard", 0.85].removed == removed(tmp_path / "two")
    assert made["exact", None, None].removed != {}


def test_mistakes_are_answered_in_words(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="no work folder"):
        report.make(str(tmp_path / "empty"), [], [])
    corpus(tmp_path / "in")
    run(tmp_path / "in", tmp_path / "out", dedupe__verify="none", **WIDE)
    shown = ask(str(tmp_path / "out"))
    assert "kept no texts" in shown.output
    assert "jaccard" not in shown.output
    record = tmp_path / "out/.work/dedupe/decided.json"
    for damage in (b"{}", b"[" * 100_000, record.read_bytes()[:-40]):
        record.write_bytes(damage)
        with pytest.raises(DataError, match="cannot be read"):
            report.make(str(tmp_path / "out"), [], [])
    record.unlink()
    with pytest.raises(InputError, match="no finished deduplication"):
        report.make(str(tmp_path / "out"), [], [])
    assert isinstance(ask(str(tmp_path / "out"), "--threshold", "nan").exception, ConfigError)
