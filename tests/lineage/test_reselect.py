"""`btlm-data reselect`: what `prepare` makes of the same documents, and a dataset that stays as it was."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from btlm_data.cli import cli
from btlm_data.errors import BtlmError, ConfigError, InputError, OutputError
from btlm_data.formats import dataset, ledger
from btlm_data.inspection import verify
from btlm_data.lineage import reselect as reselecting
from btlm_data.lineage.forget import forget
from btlm_data.lineage.queries import make
from btlm_data.lineage.reselect import reselect
from tests.lineage.corpora import records
from tests.stages.runs import prepare

CHARS = 120


def made(folder: Path, name: str, **options: Any) -> Path:
    folder.mkdir(exist_ok=True)
    source = folder / "docs.jsonl"
    source.write_text("".join(json.dumps(record) + "\n" for record in records(150, 3)))
    given = {"clean__min_chars": 0, "source__id_field": "id", "source__keep_fields": ["url"], "dedupe__method": "none",
             "seq_len": 32, "shards__samples_per_file": 20, **options}  # fmt: skip
    prepare(source, folder / name, **given)
    return folder / name


def contents(root: Path) -> dict[str, bytes]:
    return {
        path.relative_to(root).as_posix(): path.read_bytes()
        for path in sorted(root.rglob("*"))
        if path.is_file() and ".work" not in path.parts
    }


@pytest.mark.parametrize(
    "options",
    [
        {"holdout__fraction": 0.2, "annotate": ["gopher"]},
        {"shuffle": "none", "format": "corpus"},
        {"format": "vsl", "seq_len": 64, "seed": 9},
        {"mix": {"Web": 2.5}, "seq_len": ["32:0.5", "16:0.5"], "shuffle": "documents"},
    ],
    ids=["samples", "corpus", "vsl", "mix and sets"],
)
def test_shards_are_those_of_a_run_with_the_same_filter(tmp_path: Path, options: dict[str, Any]) -> None:
    whole = made(tmp_path / "a", "out", **options)
    filtered = made(tmp_path / "a", "filtered", **options, clean__filters=[{"max_chars": CHARS}])
    before = contents(whole)
    outcome = reselect(whole, f"chars <= {CHARS}", tmp_path / "new")
    assert contents(whole) == before
    made_again, expected = contents(tmp_path / "new"), contents(filtered)
    assert {n for n in made_again if n.endswith(".h5")} == {n for n in expected if n.endswith(".h5")}
    for name, data in expected.items():
        if name.endswith(".h5"):
            assert made_again[name] == data, name
        if name.endswith(dataset.DOCUMENTS):
            tables = [pq.read_table(root / name).to_pylist() for root in (tmp_path / "new", filtered)]
            assert tables[0] == tables[1]
    assert [check for check in verify.verify(tmp_path / "new", lambda _: None) if check.ok is False] == []
    top = dataset.read(tmp_path / "new")
    folders = (
        [tmp_path / "new" / name for name in top.names]
        if isinstance(top, dataset.SetList)
        else [tmp_path / "new"]
    )
    total = 0
    for folder in folders:
        manifest = dataset.read_set(folder)
        assert ledger.imbalances(manifest.ledger) == []
        assert manifest.other_inputs["where"] == f"chars <= {CHARS}"
        counted = sum(
            row.dropped[reselecting.REASON].documents
            for row in manifest.rows("shuffle")
            if reselecting.REASON in row.dropped
        )
        listed = pq.read_table(folder / dataset.DROPPED).to_pylist()
        assert sum(row["reason"] == reselecting.REASON for row in listed) == counted > 0
        total += counted
    assert outcome.left_out == total


def test_by_fields_and_signals_once_more_and_by_the_command(tmp_path: Path) -> None:
    whole = made(tmp_path / "a", "out", annotate=["gopher"])
    expression = "fields.url LIKE 'https://one.%' AND gopher_words < 40"
    result = CliRunner().invoke(
        cli, ["reselect", str(whole), "--where", expression, "--out", str(tmp_path / "new"), "--json"]
    )
    wanted = [
        row["id"]
        for row in pq.read_table(whole / "train" / dataset.DOCUMENTS).to_pylist()
        if row["fields.url"].startswith("https://one.") and row["gopher_words"] < 40
    ]
    assert json.loads(result.output)["documents"] == len(wanted)
    chosen = pq.read_table(tmp_path / "new/train" / dataset.DOCUMENTS).column("id").to_pylist()
    assert chosen == wanted
    reselect(tmp_path / "new", "tokens > 60", tmp_path / "newer")
    assert dataset.read_set(tmp_path / "newer").other_inputs["where"] == f"({expression}) AND (tokens > 60)"
    once = tmp_path / "at once"
    words = CliRunner().invoke(
        cli, ["reselect", str(whole), "--where", f"({expression}) AND tokens > 60", "--out", str(once)]
    )
    assert re.match(r"Taken: \d+ documents?; left out: \d+\. Dataset: ", words.output)
    assert f"btlm-data verify '{once}'" in words.output
    for path in (tmp_path / "newer/train").glob("*.h5"):
        assert path.read_bytes() == (once / "train" / path.name).read_bytes()
    assert [check for check in verify.verify(tmp_path / "newer", lambda _: None) if check.ok is False] == []


def test_what_is_refused_leaves_nothing(tmp_path: Path) -> None:
    whole = made(tmp_path / "a", "out")
    before = contents(whole)
    cases: list[tuple[type[BtlmError], str, Path, str]] = [
        (InputError, "tokens < 0", tmp_path / "new", "No document of the split train"),
        (ConfigError, "tokenz < 0", tmp_path / "new", "Did you mean tokens"),
        (OutputError, "true", whole, "is there already"),
        (OutputError, "true", whole / "train" / "x", "is inside the dataset"),
        (InputError, "true" + " " * 5000, tmp_path / "new", "records at most 4,096"),
    ]
    for kind, expression, out, words in cases:
        with pytest.raises(kind, match=words):
            reselect(whole, expression, out)
    assert contents(whole) == before
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    forget(whole, [make("id", "doc-3")])
    with pytest.raises(InputError, match="--how remove"):
        reselect(whole, "true", tmp_path / "new")
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


@pytest.mark.parametrize("step", ["copy", "_write_dropped", "publish", "write_list", "sync"])
def test_a_kill_leaves_no_dataset_and_the_next_call_makes_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    whole = made(tmp_path / "a", "out")

    def killed(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(reselecting, step, killed)
        with pytest.raises(KeyboardInterrupt):
            reselect(whole, "chars < 200", tmp_path / "new")
    assert not (tmp_path / "new").exists()
    reselect(whole, "chars < 200", tmp_path / "new")
    reselect(whole, "chars < 200", tmp_path / "other")
    assert contents(tmp_path / "new") == contents(tmp_path / "other")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "new", "other"]
