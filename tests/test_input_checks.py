"""A run over an input that is mostly unreadable, or with names that nothing has, stops and says how to go on."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from btlm_data import input_checks, pipeline
from btlm_data.errors import ConfigError, SafetyStop
from btlm_data.progress import Lines
from btlm_data.recipe.load import load


def run(source: Path, out: Path, **options: Any) -> pipeline.Prepared:
    given = {"source.name": str(source), "run.out": str(out), "run.workers": 1, "seq_len": 64}
    given |= {"clean.min_chars": 0, "run.accept_removal": True} | {
        key.replace("__", "."): value for key, value in options.items()
    }
    return pipeline.prepare(load(None, {key: (value, "test") for key, value in given.items()}), Lines())


def write(path: Path, records: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def test_a_wrong_text_field_stops_with_the_right_one(tmp_path: Path) -> None:
    text = "A document of some length, whose text is in another field. " * 5
    records = [{"id": i, "body": {"content": f"{i} {text}"}, "title": "t"} for i in range(60)]
    source = write(tmp_path / "a.jsonl", [*records, *({"text": f"{i} {text}"} for i in range(4))])
    with pytest.raises(SafetyStop) as stop:
        run(source, tmp_path / "out")
    said = str(stop.value)
    assert stop.value.exit_code == 5
    assert "60 of 64 records (93.8%) could not be read, more than source.max_rejected = 5.0%" in said
    assert "a.jsonl line 1: " in said
    assert "body.content (a string, about 2" in said
    assert "rerun with --text-field body.content" in said
    assert "--max-rejected 0.95" in said
    assert not (tmp_path / "out/dataset.json").exists()
    prepared = run(source, tmp_path / "out", source__max_rejected=0.95)
    assert prepared.num_rejects == 60
    assert run(
        source, tmp_path / "other", source__text_field="body.content", source__max_rejected=0.1
    ).complete


def test_a_few_bad_records_do_not_stop(tmp_path: Path) -> None:
    source = write(tmp_path / "a.jsonl", [{"text": f"document {i} " * 9} for i in range(100)])
    with source.open("a") as file:
        file.write("{broken\n" * 10)
    assert run(source, tmp_path / "out").num_rejects == 10
    with pytest.raises(SafetyStop, match=r"10 of 110 records"):
        run(source, tmp_path / "none", source__max_rejected=0.0)
    with source.open("a") as file:
        file.write("{broken\n")
    with pytest.raises(SafetyStop, match=r"11 of 111 records .*invalid_json \(11 records\)"):
        run(source, tmp_path / "other")


def test_most_of_a_few_records_stop_and_a_damaged_file_does_not(tmp_path: Path) -> None:
    good = [{"text": f"document {i} " * 9} for i in range(4)]
    mostly_bad = write(tmp_path / "bad.jsonl", good[:2] + [{"body": "x"}] * 3)
    with pytest.raises(SafetyStop, match="3 of 5 records"):
        run(mostly_bad, tmp_path / "out")
    (tmp_path / "src").mkdir()
    write(tmp_path / "src/a.jsonl", good[:1])
    (tmp_path / "src/b.jsonl.gz").write_bytes(gzip.compress(b"".join(b"{}" for _ in range(99)))[:-9])
    assert run(tmp_path / "src", tmp_path / "other").num_rejects >= 1


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"mix": {"Bookz": 2.0}}, r'mix \(--mix\) names the source "Bookz".*Did you mean "Books"\?'),
        ({"source__exclude_sources": ["Webb"]}, r'exclude_sources .* names the source "Webb".*"Web"'),
        (
            {"dedupe__keep": "source-priority", "dedupe__source_priority": ["Books", "Nothing like it"]},
            r'source_priority .*"Nothing like it".*Sources here: Books, Web',
        ),
    ],
    ids=["mix", "exclude", "priority"],
)
def test_a_misspelt_source_is_an_error_with_the_nearest_name(
    tmp_path: Path, options: dict[str, Any], said: str
) -> None:
    records = [
        {"text": f"document {i} " * 9, "meta": {"redpajama_set_name": ["Books", "Web"][i % 2]}}
        for i in range(40)
    ]
    source = write(tmp_path / "a.jsonl", records)
    with pytest.raises(ConfigError, match=said):
        run(source, tmp_path / "out", **options)
    assert run(source, tmp_path / "out", run__allow_missing_source=True, **options).complete


def test_a_source_that_is_excluded_is_known(tmp_path: Path) -> None:
    records = [
        {"text": f"document {i} " * 9, "meta": {"redpajama_set_name": ["Books", "Web"][i % 2]}}
        for i in range(40)
    ]
    source = write(tmp_path / "a.jsonl", records)
    assert run(source, tmp_path / "out", source__exclude_sources=["Web"], mix={"Books": 1.5}).complete


def test_a_source_inside_the_output_is_refused(tmp_path: Path) -> None:
    (tmp_path / "out/corpus").mkdir(parents=True)
    source = write(tmp_path / "out/corpus/a.jsonl", [{"text": "document " * 9}])
    with pytest.raises(ConfigError, match=r"is inside .*a folder that this run writes to"):
        run(source, tmp_path / "out")


def test_so_many_source_names_that_memory_cannot_be_kept_are_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(input_checks, "_FEW_NAMES", 5)
    records = [{"text": f"document {i}", "meta": {"redpajama_set_name": f"https://{i}"}} for i in range(20)]
    source = write(tmp_path / "a.jsonl", records)
    with pytest.raises(SafetyStop, match=r"names 20 sources, for example \"https://0\".*--memory 0\.7GB"):
        run(source, tmp_path / "out", run__memory="600MB")
    assert run(source, tmp_path / "out", run__memory="700MB").complete
    assert run(source, tmp_path / "other").complete
