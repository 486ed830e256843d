"""`btlm-data diff` against datasets whose differences are known."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path

from rich.console import Console

import btlm_data
from btlm_data.inspection import difference, difference_text
from tests.reference import dataset
from tests.reference.dataset import documents, edit_manifest


def shown(found: difference.Difference) -> str:
    console = Console(file=io.StringIO(), width=120, color_system=None)
    difference_text.show(found, console)
    return console.file.getvalue()  # type: ignore[attr-defined, no-any-return]


def test_a_dataset_is_equal_to_its_copy(tmp_path: Path) -> None:
    for name in ("a", "b"):
        dataset.write(tmp_path / name, {"train": documents(40, "train", 1)})
    found = difference.compare(tmp_path / "a", tmp_path / "b")
    assert found.equal
    assert [found.settings, found.counts, found.only_left, found.changed] == [[], [], [], []]
    assert found.documents == [difference.Common("train", 40, 0, 0, None)]
    assert "The same dataset" in shown(found)


def test_what_differs_is_named(tmp_path: Path) -> None:
    chosen = documents(40, "train", 1)
    dataset.write(tmp_path / "a", {"train": chosen})
    dataset.write(
        tmp_path / "b",
        {"train": [*chosen[:10], *chosen[15:]], "validation": documents(5, "validation")},
        seq_len=32,
    )
    edit_manifest(
        tmp_path / "b",
        lambda value: value["inputs"].append({**value["inputs"][0], "name": "train/new.jsonl"}),
    )
    found = difference.compare(tmp_path / "a", tmp_path / "b")
    assert not found.equal
    assert [setting.key for setting in found.settings] == ["seq_len"]
    assert found.only_right == ["train/new.jsonl", "validation/a.jsonl"]
    assert found.documents == [
        difference.Common("train", 35, 5, 0, 10),
        difference.Common("validation", 0, 0, 5, 0),
    ]
    counts = {amount.name: [amount.left, amount.right] for amount in found.counts}
    expected = {"train: documents": [40, 35], "validation: documents": [None, 5]}
    assert counts | expected == counts
    for share in found.shares["train"]:
        mine = sum(len(d.tokens) + 1 for d in chosen if d.source == share.name)
        assert share.left is not None
        assert abs(share.left - mine / sum(len(d.tokens) + 1 for d in chosen)) < 1e-9
    text = shown(found)
    assert "document 10" in text
    assert "not there" in text


def test_files_of_other_content_have_no_document_in_common(tmp_path: Path) -> None:
    for name, digest in (("a", "xxh3_128_64m:" + "0" * 32), ("b", "xxh3_128_64m:" + "1" * 32)):
        dataset.write(tmp_path / name, {"train": documents(20, "train", 1)})
        edit_manifest(tmp_path / name, lambda value, digest=digest: value["inputs"][0].update(digest=digest))  # type: ignore[misc]
    found = difference.compare(tmp_path / "a", tmp_path / "b")
    assert found.changed == ["train/a.jsonl"]
    assert found.documents == [difference.Common("train", 0, 20, 20, 0)]


def test_equal_texts_in_other_files_are_in_common(tmp_path: Path) -> None:
    texts = [f"document {number} " + "some words that are long enough " * 8 for number in range(30)]
    for name, chosen in (("a", texts), ("b", texts[:20][::-1] + ["another text " * 30])):
        (tmp_path / name).mkdir()
        path = tmp_path / name / f"{name}.jsonl"
        path.write_text("".join(json.dumps({"text": text}) + "\n" for text in chosen))
        recipe = {"source": str(path), "seq_len": 64, "shuffle": "none", "dedupe": {"method": "none"}}
        btlm_data.prepare(recipe, run__out=str(tmp_path / f"{name}-out"), run__workers=1, run__report=False)
    found = difference.compare(tmp_path / "a-out", tmp_path / "b-out")
    assert found.documents == [difference.Common("train", 20, 10, 1, 0)]
    assert found.only_left == ["a.jsonl"]


def test_the_command_speaks_json_and_words(tmp_path: Path) -> None:
    for name, count in (("a", 20), ("b", 21)):
        dataset.write(tmp_path / name, {"train": documents(count, "train", 1)})
    command = [sys.executable, "-m", "btlm_data.cli", "diff", str(tmp_path / "a"), str(tmp_path / "b")]
    done = subprocess.run([*command, "--json"], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)["documents"][0]["only_right"] == 1
    missing = subprocess.run([*command[:-1], str(tmp_path / "none")], capture_output=True, text=True)
    assert missing.returncode == 3


def test_settings_are_said_as_a_recipe_spells_them() -> None:
    lengths = [{"seq_len": 2048, "share": 0.75}, {"seq_len": 8192, "share": 0.25}]
    one = [{"seq_len": 512, "share": None}]
    assert setting("seq_len", lengths, one).in_words() == ("2048:0.75, 8192:0.25", "512")
    filters = [{"min_chars": 20}, {"name": "c4", "drop": ["a", "b"], "strict": False}]
    assert setting("clean.filters", filters, []).in_words() == (
        "min_chars: 20, name: c4; drop: a, b; strict: no",
        "none",
    )
    assert difference.Setting("seed", difference.NOT_THERE, "2").in_words() == ("(not there)", "2")


def setting(key: str, left: object, right: object) -> difference.Setting:
    return difference.Setting(key, json.dumps(left), json.dumps(right))
