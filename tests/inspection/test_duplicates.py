"""Removed documents beside those kept for them: chosen, read from the source, and compared again."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from btlm_data import pipeline
from btlm_data.cli import cli
from btlm_data.errors import ConfigError
from btlm_data.inspection import duplicates, removed_pairs
from btlm_data.inspection.check import Check
from btlm_data.inspection.opening import open_path
from btlm_data.progress import Lines
from btlm_data.recipe.load import load
from btlm_data.sources.local import SAMPLE
from tests.reference.shingles import features, jaccard


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sample corpus, prepared."""
    out = tmp_path_factory.mktemp("prepared") / "out"
    given = {"source.name": "sample", "run.out": str(out), "run.workers": 1}
    pipeline.prepare(load(None, {key: (value, "test") for key, value in given.items()}), Lines())
    return out


def test_both_texts_are_those_that_were_compared(prepared: Path) -> None:
    rows = pq.read_table(prepared / "removals.parquet").to_pylist()
    found = duplicates.pairs(prepared, duplicates.Wanted(count=1000))
    assert [pair.row for pair in found] == rows
    for pair in found:
        assert pair.kept_text is not None
        assert jaccard(features(pair.text), features(pair.kept_text)) == pair.row["similarity"]
        assert len(pair.text.encode()) == pair.row["bytes"]


def test_conditions_choose_and_the_seed_draws(prepared: Path) -> None:
    rows = pq.read_table(prepared / "removals.parquet").to_pylist()

    def count(**conditions: Any) -> int:
        return len(duplicates.pairs(prepared, duplicates.Wanted(count=1000, **conditions)))

    source = rows[0]["source"]
    assert count(source=source) == sum(row["source"] == source for row in rows)
    assert count(reason="near_duplicate") == sum(row["reason"] == "near_duplicate" for row in rows)
    between = (0.8, 0.9)
    assert 0 < count(similarity=between) == sum(0.8 <= row["similarity"] <= 0.9 for row in rows) < len(rows)
    largest = max(row["cluster_size"] for row in rows)
    assert count(largest=True) == sum(row["cluster_size"] == largest for row in rows)
    assert count(cluster=rows[-1]["cluster"]) >= 1
    assert count(similarity=(0.0, 0.01)) == 0
    drawn = [duplicates.pairs(prepared, duplicates.Wanted(count=5, seed=seed)) for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]


def test_differences_are_marked() -> None:
    one, other = removed_pairs.side_by_side(
        "the same words here and there", "the same other words here and there now"
    )
    assert one.marked() == "the same words here and there"
    assert other.marked() == "the same «other» words here and there «now»"


def test_the_command_shows_pairs_and_json(prepared: Path) -> None:
    runner = CliRunner()
    shown = runner.invoke(cli, ["inspect", str(prepared), "--duplicates", "--similarity", "0.80-0.95"])
    assert shown.exit_code == 0, shown.output
    assert "near_duplicate: similarity 0." in shown.output
    assert "«" in shown.output
    arguments = [
        "inspect",
        str(prepared),
        "--duplicates",
        "--num-samples",
        "3",
        "--json",
        "--from",
        str(SAMPLE),
    ]
    values = json.loads(runner.invoke(cli, arguments).output)
    assert len(values) == 3
    assert {"text", "kept_text", "similarity", "file", "kept_file"} <= values[0].keys()


def test_every_condition_of_the_command_line_chooses(prepared: Path) -> None:
    """What dedupe-report and dataset.json call a component is what --cluster takes."""
    rows = pq.read_table(prepared / "removals.parquet").to_pylist()

    def shown(*words: str) -> list[dict[str, Any]]:
        arguments = ["inspect", str(prepared), "--duplicates", "--json", "--num-samples", "1000", *words]
        result = CliRunner().invoke(cli, arguments, catch_exceptions=False)
        assert result.exit_code == 0, result.output
        found: list[dict[str, Any]] = json.loads(result.output)
        return [
            {key: value for key, value in row.items() if key not in ("text", "kept_text")} for row in found
        ]

    reported = json.loads(CliRunner().invoke(cli, ["dedupe-report", str(prepared), "--json"]).output)
    named = {one["cluster"] for rule in reported["rules"] for one in rule["largest_components"]}
    summary = json.loads((prepared / "dataset.json").read_text())["dedupe"]["largest_clusters"]
    named |= {one["cluster"] for one in summary}
    gone = [row["cluster"] for row in rows]
    assert named & set(gone)
    for number in sorted(named | {rows[-1]["cluster"]}):
        assert shown("--cluster", str(number)) == [row for row in rows if row["cluster"] == number]
    largest = max(row["cluster_size"] for row in rows)
    assert shown("--largest") == [row for row in rows if row["cluster_size"] == largest]
    source, reason = rows[0]["source"], rows[0]["reason"]
    assert shown("--source", source, "--reason", reason, "--similarity", "0.9-1") == [
        row
        for row in rows
        if row["source"] == source and row["reason"] == reason and 0.9 <= row["similarity"] <= 1
    ]
    kept = pq.read_table(prepared / "clusters.parquet").to_pylist()
    unknown = max(row["document"] for row in kept) + 1
    arguments = ["inspect", str(prepared), "--duplicates", "--cluster", str(unknown)]
    assert f"no component has the number {unknown}" in str(CliRunner().invoke(cli, arguments).exception)


def test_verify_reads_pairs_again_from_the_source(prepared: Path, tmp_path: Path) -> None:
    def ask(*words: str) -> Any:
        return CliRunner().invoke(cli, ["verify", str(prepared), "--json", *words])

    num_rows = pq.read_metadata(prepared / "removals.parquet").num_rows
    for source in ([], ["--source", str(SAMPLE)]):
        done = ask("--removals", "1000", *source)
        assert done.exit_code == 0, done.output
        [check] = [
            one for one in map(json.loads, done.output.splitlines()) if one["name"] == "removals again"
        ]
        assert check["ok"] is True
        assert check["detail"].startswith(f"{num_rows} pairs read")
    (tmp_path / "other").mkdir()
    assert ask("--removals", "3", "--source", str(tmp_path / "other")).exit_code != 0


def test_mistakes_are_answered_in_words(prepared: Path, tmp_path: Path) -> None:
    for text in ("0.9", "0.9-0.8", "a-b", "0-2"):
        with pytest.raises(ConfigError, match=r"is not a range. Write for example"):
            duplicates.parse_range(text)
    result = CliRunner().invoke(cli, ["inspect", str(prepared), "--reason", "near_duplicate"])
    assert "Add --duplicates" in str(result.exception)
    source = pq.read_table(prepared / "removals.parquet")["source"][0].as_py()
    with pytest.raises(ConfigError, match=rf"no source '{source}s'. Did you mean {source}\?"):
        duplicates.pairs(prepared, duplicates.Wanted(source=f"{source}s"))
    with pytest.raises(ConfigError, match=r"'near-duplicate'. Did you mean near_duplicate\?"):
        duplicates.pairs(prepared, duplicates.Wanted(reason="near-duplicate"))
    with pytest.raises(Exception, match=r"nowhere"):
        duplicates.pairs(prepared, duplicates.Wanted(), tmp_path / "nowhere")


def test_a_wrong_similarity_is_noticed_by_reading_the_texts(prepared: Path, tmp_path: Path) -> None:
    def checks(root: Path) -> list[Check]:
        told: list[Check] = []
        opened = open_path(root)
        assert opened.manifest is not None
        duplicates.check_removals(opened, opened.manifest, SAMPLE, 1000, told.append)
        return told

    assert [check.ok for check in checks(prepared)] == [True]
    for name in ("dataset.json", "provenance.json"):
        (tmp_path / name).write_bytes((prepared / name).read_bytes())
    table = pq.read_table(prepared / "removals.parquet")
    values = table["containment"].to_pylist()
    values[3] -= 1e-9
    changed = table.set_column(table.schema.names.index("containment"), "containment", pa.array(values))
    pq.write_table(changed, tmp_path / "removals.parquet")
    [check] = [check for check in checks(tmp_path) if check.ok is False]
    assert "containment is" in f"{check.detail} {check.place}"


@pytest.mark.parametrize("value", [1.5, -0.1, 1e300])
def test_similarities_that_cannot_be_are_named_by_inspect(
    prepared: Path, tmp_path: Path, value: float
) -> None:
    copied = Path(shutil.copytree(prepared, tmp_path / "copied", ignore=shutil.ignore_patterns(".work")))
    table = pq.read_table(copied / "removals.parquet")
    column = pa.array([value] * len(table), table.schema.field("similarity").type)
    place = table.schema.get_field_index("similarity")
    pq.write_table(
        table.set_column(place, table.schema.field("similarity"), column), copied / "removals.parquet"
    )
    result = CliRunner().invoke(cli, ["inspect", str(copied), "--json"])
    assert "outside the range from 0 to 1" in result.output
