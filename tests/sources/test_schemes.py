"""A new URL scheme is one file and one line; every scheme's module has the calls of the protocol."""

from __future__ import annotations

import json
import pickle
import re
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

from btlm_data.errors import SourceUnavailable
from btlm_data.recipe.models import Run, SourceSettings
from btlm_data.sources.base import Entry, SchemeListing
from btlm_data.sources.fetch import Fetcher
from btlm_data.sources.listing import list_files
from btlm_data.sources.schemes import OTHERS, SCHEMES, module_of, scheme_of
from tests.sources import toy_scheme
from tests.sources.test_end_to_end import prepare

ROOT = Path(__file__).resolve().parents[2]
TOY = "tests.sources.toy_scheme"
FETCH = """
import pickle, sys
fetcher, file = pickle.loads(bytes.fromhex(sys.argv[1]))
with fetcher.local_copy(file) as path:
    sys.stdout.write(path.read_text())
"""


@pytest.mark.parametrize("module", [*SCHEMES.values(), OTHERS, TOY])
def test_every_scheme_has_the_calls_of_the_protocol(module: str) -> None:
    scheme = scheme_of("x://y", {"x": module})
    for call in ("list_entries", "stream", "local_path"):
        assert callable(getattr(scheme, call))


def test_the_scheme_decides_the_module() -> None:
    assert module_of("a/folder") == module_of("file:///x") == SCHEMES["file"]
    assert module_of("HTTPS://h/x") == SCHEMES["https"]
    assert module_of("s3://b/x") == OTHERS


def test_no_circle_of_imports() -> None:
    """Imports inside functions count too."""
    needed: dict[str, set[str]] = {}
    for path in (ROOT / "btlm_data/sources").glob("*.py"):
        needed[path.stem] = set(
            re.findall(r"^ *from btlm_data\.sources\.(\w+) import", path.read_text(), re.MULTILINE)
        )
        for names in re.findall(r"^ *from btlm_data\.sources import (.+)", path.read_text(), re.MULTILINE):
            needed[path.stem] |= set(re.findall(r"\w+", names))
    assert sum(map(len, needed.values())) > 40
    list(TopologicalSorter(needed).static_order())  # raises CycleError


def test_a_toy_scheme_prepares(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(SCHEMES, "toy", TOY)
    out = tmp_path / "shards"
    prepare("toy://9", out, cache_dir=str(tmp_path / "cache"))
    manifest = json.loads((out / "dataset.json").read_text())
    assert {split: value["documents"] for split, value in manifest["splits"].items()} == {
        "train": 8,
        "validation": 1,
    }
    assert not list((tmp_path / "cache").rglob("*.part"))


@pytest.mark.parametrize("size", [-1, 2**61])
def test_a_size_that_no_file_has_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, size: int
) -> None:
    monkeypatch.setitem(SCHEMES, "toy", TOY)
    monkeypatch.setattr(
        toy_scheme, "list_entries", lambda query: SchemeListing([Entry("a.jsonl", "toy://1", size, "1")], {})
    )
    run = Run(cache_dir=str(tmp_path / "cache"), out=str(tmp_path / "out"))
    with pytest.raises(SourceUnavailable, match=f"gives a.jsonl the size {size}"):
        list_files(SourceSettings(name="toy://1"), run)


def test_a_fresh_interpreter_knows_it_from_the_task(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(SCHEMES, "toy", TOY)
    run = Run(cache_dir=str(tmp_path / "cache"), out=str(tmp_path / "out"))
    listing = list_files(SourceSettings(name="toy://2"), run)
    task = pickle.dumps((Fetcher.of(run, listing), listing.files[0])).hex()
    done = subprocess.run(
        [sys.executable, "-c", FETCH, task],
        cwd="/",
        env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.startswith('{"text": "Document 1 of the toy scheme.')
