"""Commands on a dataset in an object store: its report is written there; what reads folders says how to go on."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

from btlm_data.errors import InputError
from tests.pages.conftest import words

ROOT = Path(__file__).resolve().parents[2]
URL = "s3://corpus/made/shards"


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """One command line; the environment of `bucket` leads it to the store."""
    return subprocess.run(
        [sys.executable, "-m", "btlm_data.cli", *arguments],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT), "COLUMNS": "200"},
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_a_dataset_in_a_bucket_has_its_pages_there(bucket: Any, tmp_path: Path) -> None:
    chance = random.Random(3)
    lines = [json.dumps({"text": words(chance, 80)}) for _ in range(20)]
    (tmp_path / "corpus.jsonl").write_text("\n".join(lines) + "\n")
    made = run(tmp_path, "prepare", "--source", "corpus.jsonl", "--seq-len", "128", "--workers", "1",
               "--work-dir", "work", "--out", URL)  # fmt: skip
    assert made.returncode == 0, made.stderr
    assert f"Next: btlm-data inspect {URL} --html;" in made.stdout + made.stderr
    name = f"{URL.removeprefix('s3://')}/report.html"
    first = bucket.cat(name)
    bucket.rm(name)
    written = run(tmp_path, "inspect", URL, "--html")
    assert written.returncode == 0, written.stderr
    assert f"Written: {URL}/report.html." in written.stdout
    assert first.startswith(b"<!DOCTYPE html>")
    assert bucket.cat(name) == first


def test_what_reads_folders_says_how_to_go_on(tmp_path: Path) -> None:
    commands = (
        ["serve", URL, "--port", "0"],
        ["diff", URL, str(tmp_path)],
        ["inspect", URL],
        ["verify", URL],
    )
    for command in commands:
        done = run(tmp_path, *command)
        assert done.returncode == InputError.exit_code, command
        assert f"{URL} is no folder on this machine. Copy the dataset here" in done.stderr
        assert f"btlm-data inspect {URL} --html" in done.stderr
        assert done.stdout == ""
