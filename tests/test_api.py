"""The Python API, and every program in examples/."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pyarrow.parquet as pq
import pytest

import btlm_data
from btlm_data.errors import ConfigError, DataError

ROOT = Path(__file__).resolve().parents[1]
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("api") / "shards"
    recipe = {"source": "sample", "seq_len": ["256", "128"], "run": {"out": str(out), "workers": 1}}
    btlm_data.prepare(recipe, shards__samples_per_file=700, dedupe__method="exact")
    return out


def test_samples_are_those_of_the_shards(shards: Path) -> None:
    opened = btlm_data.open(shards)
    assert list(opened.sets) == ["msl256", "msl128"]
    for name, one in opened.sets.items():
        assert list(one.splits) == ["train", "validation", "test"]
        for split_name, split in one.splits.items():
            parts = []
            for path in sorted((shards / name / split_name).glob("*.h5")):
                with h5py.File(path) as file:
                    parts.append(file["data"][:])
            rows = np.concatenate(parts)
            assert len(split) == len(rows)
            np.testing.assert_array_equal(split.rows(0, len(rows)), rows)
            for index in (0, 1, len(rows) - 1, -1, 699, 700):
                if index < len(rows):
                    np.testing.assert_array_equal(split[index], rows[index])
            for part in (
                slice(3, 9),
                slice(690, 710),
                slice(-3, None),
                slice(9, 3),
                slice(0, 10, 3),
                slice(9, 2, -2),
            ):
                np.testing.assert_array_equal(split[part], rows[part])
            with pytest.raises(IndexError):
                split[len(rows)]
            np.testing.assert_array_equal(np.concatenate(list(split.batches(97))), rows)
            assert split.num_tokens == int(rows[:, 1].sum())
            table = pq.read_table(shards / name / split_name / "documents.parquet")
            assert split.documents() == table
            assert split.documents(["tokens"]).column_names == ["tokens"]
            assert split.num_documents == len(table)
    with pytest.raises(DataError, match=r"holds the sets msl256, msl128"):
        len(opened.manifest.splits)
    assert opened.sets["msl128"].configuration.dedupe.method == "exact"
    assert {row.stage for row in opened.sets["msl128"].ledger} >= {"acquire", "shard"}
    made = opened.sets["msl256"].provenance
    assert made is not None
    assert made.program
    with pytest.raises(KeyError, match="has no split 'dev'; it has train"):
        opened.sets["msl128"]["dev"]


def test_a_corpus_is_a_sequence_of_tokens(tmp_path: Path) -> None:
    opened = btlm_data.prepare(
        {"source": "sample", "format": "corpus"}, run__out=str(tmp_path / "c"), source__files=1
    )
    split = opened["validation"]
    with h5py.File(tmp_path / "c/validation/data-00000.h5") as file:
        np.testing.assert_array_equal(split[5:2000], file["data"][5:2000])
        assert split[7] == file["data"][7]


def test_a_dataset_on_s3(bucket: Any, shards: Path) -> None:
    for path in (shards / "msl128").rglob("*"):
        if path.is_file():
            bucket.put_file(str(path), f"corpus/d/{path.relative_to(shards / 'msl128').as_posix()}")
    here, there = btlm_data.open(shards / "msl128"), btlm_data.open("s3://corpus/d")
    for name, split in here.splits.items():
        np.testing.assert_array_equal(there[name][-5:], split[-5:])
        assert there[name].documents(["line"]) == split.documents(["line"])


def test_what_is_wrong_is_said(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"dedupe\.methd"):
        btlm_data.prepare({"source": "sample"}, dedupe__methd="exact")
    with pytest.raises(ConfigError, match="source"):
        btlm_data.load_recipe({"seq_len": 128})
    with pytest.raises(DataError, match=r"dataset\.json"):
        btlm_data.open(tmp_path)
    with pytest.raises(DataError, match="stop_after"):
        btlm_data.prepare(
            {"source": "sample"}, run__out=str(tmp_path / "o"), run__stop_after="clean", source__files=1
        )


def test_a_recipe_comes_in_every_form(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text("source: sample\nseq_len: 128\ndedupe: exact\n")
    from_file = btlm_data.load_recipe(path, seed=3)
    from_mapping = btlm_data.load_recipe(
        {"source": "sample", "seq_len": 128, "dedupe": {"method": "exact"}}, seed=3
    )
    assert from_file == from_mapping == btlm_data.load_recipe(from_file)


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_examples_run(path: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(path)],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={"PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout
    assert path.name in (ROOT / "examples/README.md").read_text()
