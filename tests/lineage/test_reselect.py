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
from btlm_data.lineage import restream
from btlm_data.lineage.forget import forget
from btlm_data.lineage.queries import make
from btlm_data.lineage.reselect import reselect
from tests.lineage.corpora import Killed, records
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
def test_shards_are_those_of_a_run_with_the_same_filter(
    tmp_path: Path, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = made(tmp_path / "a", "out", **options)
    filtered = made(tmp_path / "a", "filtered", **options, clean__filters=[{"max_chars": CHARS}])
    before = contents(whole)
    outcome = reselect(whole, f"chars <= {CHARS}", tmp_path / "new")
    assert contents(whole) == before
    made_again, expected = contents(tmp_path / "new"), contents(filtered)
    monkeypatch.setattr(restream, "_IN_MEMORY_BYTES", 0)  # a stream that is large is held in a file
    reselect(whole, f"chars <= {CHARS}", tmp_path / "by a file")
    assert contents(tmp_path / "by a file") == made_again
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
        (InputError, "tokens < 0", tmp_path / "new", "No document of .*train satisfies"),
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
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(reselecting, step, killed)
        with pytest.raises(Killed):
            reselect(whole, "chars < 200", tmp_path / "new")
    assert not (tmp_path / "new").exists()
    reselect(whole, "chars < 200", tmp_path / "new")
    reselect(whole, "chars < 200", tmp_path / "other")
    assert contents(tmp_path / "new") == contents(tmp_path / "other")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "new", "other"]


BUDGET = {"tokens": 2500, "sources": {"Books": 0.6}, "schedule": [{"until": 0.7}, {"anneal": {"Web": "80%"}}]}


@pytest.mark.parametrize(
    ("mix", "where", "options"),
    [
        ({"Web": 2.5, "Books": 0.5}, f"chars <= {CHARS}", {}),
        ({"by_copies": {"2-": 3.0, "1": 0.7}}, None, {"dedupe__method": "exact", "dedupe__max_removed": 1}),
        (BUDGET, f"chars <= {CHARS}", {"holdout__fraction": 0.1}),
        (BUDGET, None, {"format": "vsl", "seq_len": ["64:0.5", "32:0.5"], "seed": 4}),
        (BUDGET, None, {"format": "corpus", "shuffle": "none"}),
    ],
    ids=["epochs", "copies", "budget", "vsl and sets", "corpus in order"],
)
def test_a_mix_is_that_of_a_run_with_the_same_mix(
    tmp_path: Path, mix: dict[str, Any], where: str | None, options: dict[str, Any]
) -> None:
    whole = made(tmp_path / "a", "out", **options)
    filters = {"clean__filters": [{"max_chars": CHARS}]} if where else {}
    mixed = made(tmp_path / "a", "mixed", **options, **filters, mix=mix)
    before = contents(whole)
    (tmp_path / "mix.yaml").write_text(json.dumps(mix))
    arguments = ["reselect", str(whole), "--mix", str(tmp_path / "mix.yaml"), "--out", str(tmp_path / "new")]
    result = CliRunner().invoke(cli, [*arguments, *(["--where", where] if where else [])])
    assert result.exit_code == 0, result.exception
    assert contents(whole) == before
    made_again, expected = contents(tmp_path / "new"), contents(mixed)
    assert {n for n in made_again if n.endswith(".h5")} == {n for n in expected if n.endswith(".h5")}
    for name, data in expected.items():
        if name.endswith(".h5"):
            assert made_again[name] == data, name
        if name.endswith(dataset.DOCUMENTS):
            tables = [pq.read_table(root / name).to_pylist() for root in (tmp_path / "new", mixed)]
            assert tables[0] == tables[1]
    assert [check for check in verify.verify(tmp_path / "new", lambda _: None) if check.ok is False] == []
    folders = ["msl64", "msl32"] if (mixed / "msl64").exists() else [""]
    for folder in folders:
        new, old = (dataset.read_set(root / folder) for root in (tmp_path / "new", mixed))
        assert new.configuration["mix"] == old.configuration["mix"]
        for split, entry in old.splits.items():
            assert new.splits[split].phases == entry.phases
        if where is None:
            assert new.rows("shuffle") == old.rows("shuffle")
            reasons = [
                sorted(
                    (r["line"], r["reason"])
                    for r in pq.read_table(root / folder / dataset.DROPPED).to_pylist()
                )
                for root in (tmp_path / "new", mixed)
            ]
            assert reasons[0] == reasons[1] or folder  # of several sets the run has one table for all


def test_a_mix_that_cannot_be_had_leaves_nothing(tmp_path: Path) -> None:
    whole = made(tmp_path / "a", "out")
    mixed = made(tmp_path / "a", "mixed", mix=BUDGET)
    cases: list[tuple[Path, str | None, dict[str, Any], type[BtlmError], str]] = [
        (whole, None, {}, ConfigError, "Give --where with an expression, or --mix"),
        (whole, None, {"tokens": "1M"}, ConfigError, "more than 4 times"),
        (whole, None, {"sources": {"Boks": 0.1}}, ConfigError, "the source 'Boks', and no document"),
        (whole, None, {"sources": {"Books": 2}}, ConfigError, "--mix: mix.sources.Books"),
        (whole, None, {"by_copies": {"1": 2.0}}, ConfigError, "dedupe: none removes none"),
        (whole, None, {"Web": 0.0, "Books": 0.0}, InputError, "leaves no document"),
        (mixed, None, {"Web": 2.0}, InputError, "has a mix already"),
        (mixed, "tokens > 3", {}, InputError, "mixed by a budget"),
    ]
    for path, where, mix, kind, words in cases:
        with pytest.raises(kind, match=words):
            reselect(path, where, tmp_path / "new", mix)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a"]
