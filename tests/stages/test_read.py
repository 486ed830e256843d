"""A file of the source that changes while it is read is noticed, before and after."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from btlm_data import pipeline
from btlm_data.errors import InputError
from btlm_data.progress import Lines
from btlm_data.recipe.load import load
from btlm_data.records import reader
from btlm_data.stages import read


def append(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b'{"text": "one more"}\n')


def replace(path: Path) -> None:
    """Same size, same modification time."""
    status = path.stat()
    path.write_bytes(path.read_bytes().replace(b"document", b"tnemucod"))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


@pytest.mark.parametrize("when", ["before it is read", "while it is read"])
@pytest.mark.parametrize(
    ("change", "said"),
    [
        (append, r"has changed \(from"),
        (lambda path: os.truncate(path, 100), r"has changed \(from"),
        (Path.unlink, "is gone"),
        (replace, "has changed since"),
    ],
    ids=["appended", "truncated", "deleted", "replaced"],
)
def test_a_file_that_changes_stops_the_run_which_then_starts_with_what_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: Callable[[Path], None], said: str, when: str
) -> None:
    (tmp_path / "src").mkdir()
    for name in ("a", "b"):
        lines = [json.dumps({"text": f"document {name}{i} " * 30}) for i in range(30)]
        (tmp_path / f"src/{name}.jsonl").write_text("\n".join(lines) + "\n")
    read_batches, path = reader.read_batches, tmp_path / "src/b.jsonl"
    seen: list[str] = []

    def changing(local: Path, *args: Any, **options: Any) -> Any:
        seen.append(local.name)
        if when.startswith("before") and len(seen) == 1:
            change(path)
        yield from read_batches(local, *args, **options)
        if when.startswith("while") and local == path:
            change(path)

    monkeypatch.setattr(read, "read_batches", changing)
    given = {
        "source.name": str(tmp_path / "src"),
        "run.out": str(tmp_path / "out"),
        "run.workers": 1,
        "seq_len": 64,
    }
    given |= {"dedupe.method": "none", "source.max_rejected": 1.0}
    recipe = load(None, {key: (value, "test") for key, value in given.items()})
    with pytest.raises(InputError, match=said):
        pipeline.prepare(recipe, Lines())
    monkeypatch.undo()
    pipeline.prepare(recipe, Lines())
    fresh = load(
        None, {key: (value, "test") for key, value in {**given, "run.out": str(tmp_path / "fresh")}.items()}
    )
    pipeline.prepare(fresh, Lines())
    ours, expected = ((tmp_path / name / "train/data-00000.h5").read_bytes() for name in ("out", "fresh"))
    assert ours == expected
