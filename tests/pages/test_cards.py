"""README.md and croissant.json: read by their own readers, hostile names, whose files they are; and the upload to a hub."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest

import btlm_data
from btlm_data.inspection.verify import verify
from btlm_data.pages import publish
from btlm_data.pages.card import plain
from btlm_data.recipe.yaml_file import parse_value
from tests.hub import Fault, Hub


def problems(root: Path) -> list[str]:
    return [f"{check.name}: {check.place}" for check in verify(root, lambda check: None) if check.ok is False]


def prepare(out: Path, **settings: Any) -> None:
    recipe = {
        "source": "sample",
        "seq_len": 128,
        "run": {"out": str(out), "workers": 1, "report": False, "accept_removal": True},
    }
    btlm_data.prepare(recipe, **{"source__limit": 25, **settings})


@pytest.fixture
def small(tmp_path: Path) -> Path:
    prepare(tmp_path / "out")
    return tmp_path / "out"


def test_the_head_of_the_card_is_yaml_that_agrees_with_the_dataset(shards: Path) -> None:
    from huggingface_hub import DatasetCard

    text = (shards / "README.md").read_text()
    card = DatasetCard(text)
    manifest = json.loads((shards / "dataset.json").read_text())
    split = card.data["dataset_info"][0]["splits"][0]
    assert split["name"] == "train"
    assert split["num_examples"] == manifest["splits"]["train"]["samples"]
    assert card.data["viewer"] is False
    assert card.data["license"] == "unknown"
    assert manifest["fingerprint"][:8] in card.text
    assert f"{manifest['splits']['train']['documents']:,}" in card.text


def test_names_in_the_card_are_no_markup(shards: Path) -> None:
    body = (shards / "README.md").read_text().split("---\n", 2)[2]
    body = re.sub(r"```.*?```", "", body, flags=re.S)
    assert r"\<b\>Web\</b\>" in body
    assert not re.search(r"(?<!\\)<[a-z]", body)
    assert plain("a|b\n[x](y) <script>\u202e") == r"a\|b \[x\]\(y\) \<script\>" + "\\\\u202e"


def test_croissant_is_valid_and_its_records_are_the_documents(shards: Path) -> None:
    mlcroissant = pytest.importorskip("mlcroissant")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        loaded = mlcroissant.Dataset(jsonld=str(shards / "croissant.json"))
        assert not loaded.metadata.ctx.issues.errors
        first = next(iter(loaded.records("documents-train")))
    row = btlm_data.open(shards)["train"].documents().slice(0, 1).to_pylist()[0]
    assert first["documents-train/tokens"] == row["tokens"]
    assert first["documents-train/file"] == row["file"].encode()
    listed = {
        entry["@id"]: entry["sha256"]
        for entry in json.loads((shards / "croissant.json").read_text())["distribution"]
    }
    manifest = json.loads((shards / "dataset.json").read_text())
    file = manifest["splits"]["train"]["files"][0]
    assert listed[f"train/{file['name']}"] == file["sha256"]


def test_the_same_bytes_in_another_folder(small: Path, tmp_path: Path) -> None:
    prepare(tmp_path / "another name", run__memory="700MB")
    for name in ("README.md", "croissant.json"):
        assert (small / name).read_bytes() == (tmp_path / "another name" / name).read_bytes()


def test_what_a_person_wrote_stays(small: Path) -> None:
    card = small / "README.md"
    card.write_text(card.read_text().replace("*(to be filled in by a person)*", "for our next model"))
    mine = card.read_text()
    assert problems(small) == [], "a completed card is no damage"
    prepare(small, source__limit=30, run__overwrite=True)
    assert card.read_text() == mine
    assert problems(small) == []
    croissant = small / "croissant.json"
    croissant.write_text(croissant.read_text().replace("unknown", "mine"))
    assert [problem[:22] for problem in problems(small)] == ["pages: croissant.json:"]
    prepare(small, source__limit=35, run__overwrite=True, run__card="none")
    assert "mine" in croissant.read_text()


def test_without_cards_those_of_the_dataset_before_go(small: Path) -> None:
    prepare(small, source__limit=30, run__overwrite=True, run__card="none")
    assert not (small / "README.md").exists()
    assert not (small / "croissant.json").exists()


def test_the_fields_of_the_commissions_summary(tmp_path: Path) -> None:
    filters = [{"min_chars": 10}]
    prepare(tmp_path / "out", run__card="eu", clean__filters=filters)
    text = (tmp_path / "out/README.md").read_text()
    for field in ("1.1 Provider", "1.3 Modality | Text", "less than 1 billion tokens", "2.1 Publicly available", "2.6 Other",
                  "3.1 Reservations", "3.3 Other processing", "to be filled in by a person"):  # fmt: skip
        assert field in text, field


def test_several_sets_have_one_card(tmp_path: Path) -> None:
    prepare(tmp_path / "out", seq_len=["128:0.5", "64:0.5"])
    text = (tmp_path / "out/README.md").read_text()
    head = parse_value(text.split("---\n", 2)[1])
    assert [one["config_name"] for one in head["dataset_info"]] == ["msl128", "msl64"]
    assert not (tmp_path / "out/msl128/README.md").exists()
    assert problems(tmp_path / "out") == []


# The hub ----------------------------------------------------------------------------------------------------------


def push(hub: Hub, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {
        "HF_ENDPOINT": hub.url, "HF_TOKEN": hub.token, "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1",
        "PATH": "/usr/bin:/bin",
    }  # fmt: skip
    command = [sys.executable, "-m", "btlm_data.cli", "push", *arguments]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=300, env=environment, cwd=Path(__file__).parents[2]
    )


def test_an_upload_is_whole_and_sends_nothing_twice(small: Path, tmp_path: Path) -> None:
    with Hub() as hub:
        done = push(hub, str(small), "hf://datasets/me/made")
        assert done.returncode == 0, done.stderr
        _, files = hub.repositories["me/made"].commits[-1]
        expected = {
            path.relative_to(small).as_posix(): path.read_bytes()
            for path in small.rglob("*")
            if path.is_file() and ".work" not in path.parts
        }
        assert {name: data for name, data in files.items() if name != ".gitattributes"} == expected
        last = [
            set(now) - set(before)
            for (_, before), (_, now) in zip(
                hub.repositories["me/made"].commits, hub.repositories["me/made"].commits[1:], strict=False
            )
        ]
        assert last[-1] == {"dataset.json"}, "dataset.json says that the rest is there"
        commits = hub.count("/commit/")
        again = push(hub, str(small), "hf://datasets/me/made")
        assert "Uploaded 0 files" in again.stdout
        assert hub.count("/commit/") == commits
        back = tmp_path / "back"
        for name, data in files.items():
            (back / name).parent.mkdir(parents=True, exist_ok=True)
            (back / name).write_bytes(data)
        assert problems(back) == []


def test_an_upload_that_fails_is_continued(small: Path) -> None:
    with Hub() as hub:
        hub.faults.append(Fault("upload", "/commit/", status=403))
        failed = push(hub, str(small), "hf://datasets/me/made")
        assert failed.returncode == 3
        assert "the same command continues" in failed.stderr
        hub.faults.clear()
        assert push(hub, str(small), "hf://datasets/me/made").returncode == 0
        assert "dataset.json" in hub.repositories["me/made"].commits[-1][1]


def test_what_is_not_uploaded(small: Path, tmp_path: Path) -> None:
    with Hub() as hub:
        assert push(hub, str(small), "s3://bucket/x").returncode == 2
        shutil.copytree(small, tmp_path / "cut", ignore=shutil.ignore_patterns(".work", "documents.parquet"))
        refused = push(hub, str(tmp_path / "cut"), "hf://datasets/me/cut")
        assert refused.returncode == 1
        assert "documents.parquet is missing" in refused.stderr
        assert hub.repositories == {}


def test_pages_that_cannot_be_written_cost_no_dataset(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (small / "README.md").unlink()
    monkeypatch.setattr(publish, "make_card", lambda store, eu: 1 / 0)
    assert "ZeroDivisionError" in publish.write_beside(str(small), report=False)[0]
