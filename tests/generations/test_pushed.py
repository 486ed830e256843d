"""What a hub shows of a dataset that grew."""

from __future__ import annotations

import re
import shutil
import warnings
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from btlm_data.formats import dataset, generations, pages
from btlm_data.pages import publish
from tests.hub import Hub
from tests.pages.test_cards import problems, push


def test_the_pages_on_the_hub_list_all_generations(grown: Path, tmp_path: Path) -> None:
    root = Path(shutil.copytree(grown, tmp_path / "grown"))
    assert publish.pages_of_generations(root) == {}, "it has none"
    assert publish.write_beside(str(root), report=False) == []
    own = (root / pages.CARD).read_bytes()
    with Hub() as hub:
        assert push(hub, str(root), "hf://datasets/me/grown").returncode == 0
        _, files = hub.repositories["me/grown"].commits[-1]
        assert "Uploaded 0 files" in push(hub, str(root), "hf://datasets/me/grown").stdout
    assert (root / pages.CARD).read_bytes() == own
    assert {name for name in files if name.endswith("dataset.json")} == {
        "dataset.json", "generation-0002/dataset.json", "generation-0003/dataset.json",
    }  # fmt: skip
    card = files[pages.CARD].decode()
    sets = generations.read_sets(root)
    for folder, value in sets.items():
        prefix = f"{folder}/" if folder else ""
        for name, split in value.splits.items():
            assert f"| `{prefix}{name}` | {split.samples:,} | 32 | {split.documents:,} |" in card
    assert "it has 3 generations" in card
    documents = sum(split.documents for value in sets.values() for split in value.splits.values())
    [(_, listed)] = re.findall(r"^\| (docs|[^|]*?) \| ([\d,]+) \| [\d.]+ .?B \| ", card, re.M)
    assert int(listed.replace(",", "")) == documents
    in_index = sum(
        amounts.documents for value in sets.values() for row in value.rows("dedupe")
        for reason, amounts in row.dropped.items() if reason == "in_index"
    )  # fmt: skip
    assert in_index > 0
    assert f"{in_index:,} in index" in card
    seal = pages.seal_of(files[pages.CARD])
    assert seal is not None
    assert seal.holds
    assert seal.dataset == dataset.read(root).checksum
    for name in (pages.CARD, pages.CROISSANT):
        (root / name).write_bytes(files[name])  # as somebody who fetches it has it
    assert problems(root) == []
    check_croissant(root, sets)
    (root / pages.CARD).write_text("my own words")
    (root / pages.CROISSANT).unlink()
    assert publish.pages_of_generations(root) == {}


def check_croissant(root: Path, sets: dict[str, dataset.Dataset]) -> None:
    """With Croissant's own library: all files, and the documents of every generation."""
    mlcroissant = pytest.importorskip("mlcroissant")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        loaded = mlcroissant.Dataset(jsonld=str(root / pages.CROISSANT))
        assert not loaded.metadata.ctx.issues.errors
        listed = {entry.id: entry.sha256 for entry in loaded.metadata.distribution}
        for folder, value in sets.items():
            prefix = f"{folder}/" if folder else ""
            for file in value.stored():
                assert listed.pop(f"{prefix}{file.name}") == file.sha256
            name = f"documents-{folder}-train" if folder else "documents-train"
            table = pq.read_table(root / folder / "train" / "documents.parquet")
            tokens = [record[f"{name}/tokens"] for record in loaded.records(name)]
            assert tokens == table["tokens"].to_pylist()
    assert listed == {}
