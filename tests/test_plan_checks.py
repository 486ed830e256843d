"""A plan says what the run would stop at, with the run's own words and exit code."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from btlm_data import pipeline, planning
from btlm_data.errors import BtlmError, ConfigError
from btlm_data.progress import Lines
from btlm_data.recipe.load import load
from btlm_data.recipe.models import Recipe
from tests.cases.model import byte_tokenizer, lines, text

Made = Callable[..., Recipe]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> str:
    return byte_tokenizer(tmp_path_factory.mktemp("tokenizer") / "tokenizer.json")


@pytest.fixture
def made(tmp_path: Path, tokenizer: str) -> Made:
    """A recipe of the files in tmp_path/in."""
    (tmp_path / "in").mkdir()

    def make(**options: Any) -> Recipe:
        given = {"source.name": str(tmp_path / "in"), "run.out": str(tmp_path / "out"), "run.workers": 1}
        given |= {"tokenizer.name": tokenizer, "seq_len": 64, "clean.min_chars": 0}
        given |= {key.replace("__", "."): value for key, value in options.items()}
        return load(None, {key: (value, "test") for key, value in given.items()})

    return make


def stop_of(recipe: Recipe) -> BtlmError:
    """What the run of it ends with."""
    with pytest.raises(BtlmError) as stop:
        pipeline.prepare(recipe, Lines())
    return stop.value


def write(path: Path, *records: dict[str, Any]) -> str:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return str(path)


def test_a_good_corpus_has_no_stop(tmp_path: Path, made: Made) -> None:
    (tmp_path / "in/a.jsonl").write_bytes(lines(range(30)))
    plan = planning.measure(made())
    assert (plan.stops, plan.remarks, plan.finished) == ((), (), False)


def test_a_wrong_text_field(tmp_path: Path, made: Made) -> None:
    write(tmp_path / "in/a.jsonl", *({"id": i, "body": {"content": text(i)}} for i in range(40)))
    [stop] = planning.measure(made()).stops
    error = stop_of(made())
    assert stop.exit_code == error.exit_code == 5
    for line in str(error).splitlines():
        if not line.startswith("All are listed in"):
            assert line in stop.message.splitlines()
    assert "--text-field body.content" in stop.message


@pytest.mark.parametrize(
    "option",
    [
        {"source__exclude_sources": ["Bok"]},
        {"mix": {"Bok": 2}},
        {"dedupe__keep": "source-priority", "dedupe__source_priority": ["Bok"]},
    ],
    ids=lambda option: next(iter(option)),
)
def test_a_misspelt_source(tmp_path: Path, made: Made, option: dict[str, Any]) -> None:
    (tmp_path / "in/a.jsonl").write_bytes(lines([1, 2], meta={"redpajama_set_name": "Book"}))
    [stop] = planning.measure(made(**option)).stops
    error = stop_of(made(**option))
    assert (stop.message, stop.exit_code) == (str(error), error.exit_code)
    assert 'Did you mean "Book"?' in stop.message


def test_a_source_that_the_sample_did_not_meet_is_a_remark(
    tmp_path: Path, made: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(planning, "_SAMPLE_BYTES", 1000)
    (tmp_path / "in/a.jsonl").write_bytes(
        lines(range(300), meta={"redpajama_set_name": "Book"})
        + lines([400], meta={"redpajama_set_name": "Web"})
    )
    plan = planning.measure(made(mix={"Web": 2}))
    assert not plan.stops
    [remark] = plan.remarks
    assert "looked at: mix (--mix) names the source" in remark
    assert pipeline.prepare(made(mix={"Web": 2}), Lines()).complete


@pytest.mark.parametrize(
    ("records", "words"),
    [
        ('{"text": "too short"}\n', "nothing could ever match"),
        ('{"text": "' + "one two three four five six seven " * 3 + '"}\n{cut\n', "line 2 is not JSON"),
    ],
)
def test_an_evaluation_set(tmp_path: Path, made: Made, records: str, words: str) -> None:
    (tmp_path / "in/a.jsonl").write_bytes(lines([1, 2]))
    (tmp_path / "eval.jsonl").write_text(records)
    recipe = made(holdout__decontaminate=[str(tmp_path / "eval.jsonl")])
    [stop] = planning.measure(recipe).stops
    error = stop_of(recipe)
    assert (stop.message, stop.exit_code) == (str(error), error.exit_code)
    assert words in stop.message


def test_another_dataset_in_the_output_folder_and_the_same(tmp_path: Path, made: Made) -> None:
    (tmp_path / "in/a.jsonl").write_bytes(lines([1, 2]))
    pipeline.prepare(made(), Lines())
    plan = planning.measure(made())
    assert plan.finished
    assert not plan.stops
    [stop] = planning.measure(made(seed=3)).stops
    error = stop_of(made(seed=3))
    assert (stop.message, stop.exit_code) == (str(error), error.exit_code)
    assert not planning.measure(made(seed=3, run__overwrite=True)).stops


def test_text_that_would_be_written_into_the_source(tmp_path: Path, made: Made) -> None:
    (tmp_path / "in/a.jsonl").write_bytes(lines([1, 2]))
    recipe = made(run__emit_text=str(tmp_path / "in/text"))
    [stop] = planning.measure(recipe).stops
    assert (stop.message, stop.exit_code) == (str(stop_of(recipe)), 2)


def test_nothing_left(tmp_path: Path, made: Made) -> None:
    (tmp_path / "in/a.jsonl").write_bytes(lines([1, 2]))
    [stop] = planning.measure(made(clean__min_chars=10_000)).stops
    assert stop.exit_code == stop_of(made(clean__min_chars=10_000)).exit_code == 3
    assert "2 x too_short" in stop.message


def test_strict(tmp_path: Path, made: Made) -> None:
    (tmp_path / "in/a.jsonl").write_bytes(lines(range(100)) + b"{cut\n")
    [stop] = planning.measure(made(run__strict=True)).stops
    error = stop_of(made(run__strict=True))
    assert (stop.message, stop.exit_code) == (str(error), error.exit_code)


def test_damage_is_a_remark(tmp_path: Path, made: Made) -> None:
    (tmp_path / "in/a.jsonl").write_bytes(lines(range(100)))
    (tmp_path / "in/b.parquet").write_bytes(b"PAR1" + b"x" * 100)
    plan = planning.measure(made())
    assert not plan.stops
    assert any("b.parquet" in remark for remark in plan.remarks)


def test_too_little_disk(tmp_path: Path, made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "in/a.jsonl").write_bytes(lines(range(100)))
    plenty = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda place: plenty._replace(free=1000))
    [stop] = planning.measure(made()).stops
    assert stop.exit_code == 4
    assert "1.0 kB are free" in stop.message


def test_too_little_memory_is_refused_from_python_too(tmp_path: Path, made: Made) -> None:
    (tmp_path / "in/a.jsonl").write_bytes(lines([1]))
    for call in (planning.measure, lambda recipe: pipeline.prepare(recipe, Lines())):
        with pytest.raises(ConfigError, match="Give --memory 600MB or more"):
            call(made(run__memory="100MB"))
