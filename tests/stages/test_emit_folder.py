"""The folder of `--emit-text`: nobody's files are overwritten, no file of an earlier run stays, a second run has nothing to do."""

from __future__ import annotations

import json
import shutil
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest

from btlm_data import pipeline
from btlm_data.errors import ConfigError, OutputError
from btlm_data.progress import Lines
from btlm_data.recipe.load import load
from btlm_data.storage import open_store
from btlm_data.storage.base import TEMPORARY_SUFFIX

SAMPLE = Path(str(files("btlm_data") / "data/sample"))


def run(out: Path, text: Path | str, source: Path | str = "sample", **options: Any) -> pipeline.Prepared:
    given = {
        "source.name": str(source),
        "run.out": str(out),
        "run.workers": 1,
        "seq_len": [512],
        "dedupe.method": "exact",
        "run.emit_text": str(text),
    }
    given |= {key.replace("__", "."): value for key, value in options.items()}
    return pipeline.prepare(load(None, {key: (value, "test") for key, value in given.items()}), Lines())


def contents(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()
    }


def test_a_second_run_has_nothing_to_do_unless_text_is_missing(tmp_path: Path) -> None:
    assert not run(tmp_path / "out", tmp_path / "text").already_done
    before = contents(tmp_path / "text")
    assert run(tmp_path / "out", tmp_path / "text").already_done
    name = next(name for name in before if name.startswith("test/"))
    (tmp_path / "text" / name).unlink()
    assert not run(tmp_path / "out", tmp_path / "text").already_done
    assert contents(tmp_path / "text") == before
    assert run(tmp_path / "out", tmp_path / "elsewhere").already_done is False
    assert contents(tmp_path / "elsewhere") == before


def test_another_datasets_text_is_replaced_only_when_asked_and_wholly(tmp_path: Path) -> None:
    run(tmp_path / "a", tmp_path / "text")
    before = set(contents(tmp_path / "text"))
    with pytest.raises(OutputError, match=r"another dataset.*--overwrite"):
        run(tmp_path / "b", tmp_path / "text", seed=7, clean__min_chars=10**6)
    run(tmp_path / "b", tmp_path / "text", run__overwrite=True, clean__min_chars=40_000)
    record = json.loads((tmp_path / "text/files.json").read_text())
    assert set(contents(tmp_path / "text")) == {"files.json", *(file["name"] for file in record["files"])}
    assert record["complete"] is True
    run(tmp_path / "c", tmp_path / "fresh", clean__min_chars=40_000)
    fresh, replaced = contents(tmp_path / "fresh"), contents(tmp_path / "text")
    assert fresh == replaced
    assert set(replaced) < before  # a holdout has no text that long, so its file went


def test_text_may_lie_beside_the_shards(tmp_path: Path) -> None:
    assert run(tmp_path / "out", tmp_path / "out").complete
    run(tmp_path / "other", tmp_path / "text")
    beside = contents(tmp_path / "out")
    assert all(beside[name] == value for name, value in contents(tmp_path / "text").items())


def test_text_may_go_to_a_url(tmp_path: Path) -> None:
    url = f"memory://{tmp_path.name}-{tmp_path.parent.name}/text"
    run(tmp_path / "out", tmp_path / "text")
    assert not run(tmp_path / "out", url).already_done
    store = open_store(url)
    assert {entry.name: store.read(entry.name) for entry in store.list()} == contents(tmp_path / "text")
    assert run(tmp_path / "out", url).already_done
    with pytest.raises(OutputError, match=r"another dataset.*--overwrite"):
        run(tmp_path / "b", url, seed=7)
    store.delete([entry.name for entry in store.list()])


def test_what_a_killed_run_left_is_cleared_away(tmp_path: Path) -> None:
    text = tmp_path / "text"
    run(tmp_path / "a", text)
    expected = contents(text)
    record = json.loads((text / "files.json").read_text())
    unfinished = record | {
        "complete": False,
        "files": [*record["files"], {"name": "train/chunk2/example_train_1.jsonl.zst"}],
    }
    (text / "files.json").write_text(json.dumps(unfinished))
    for left in (
        "train/chunk2/example_train_1.jsonl.zst",
        f"train/chunk1/.example_train_0.jsonl.zst.123-0abc{TEMPORARY_SUFFIX}",
    ):
        (text / left).parent.mkdir(exist_ok=True)
        (text / left).write_bytes(b"x")
    (text / "test/chunk1/notes.txt").write_text("mine")
    run(tmp_path / "a", text)
    assert contents(text) == expected | {"test/chunk1/notes.txt": b"mine"}


def test_a_corpus_of_ones_own_is_never_overwritten(tmp_path: Path) -> None:
    corpus = tmp_path / "corpus"
    shutil.copytree(SAMPLE, corpus)
    before = contents(corpus)
    with pytest.raises(ConfigError, match="is in the source"):
        run(tmp_path / "out", corpus, corpus)
    with pytest.raises(ConfigError, match="is in the source"):
        run(tmp_path / "out", corpus / "text", corpus)
    with pytest.raises(OutputError, match=r"did not write there .*example_holdout_0"):
        run(tmp_path / "out", corpus, run__overwrite=True)
    (corpus / "files.json").write_text("[]")
    with pytest.raises(OutputError, match=r"files\.json was not written by btlm-data"):
        run(tmp_path / "out", corpus)
    (corpus / "files.json").unlink()
    assert contents(corpus) == before
