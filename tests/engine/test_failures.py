"""Files that kill whatever reads them, and workers that die for no reason of their own."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from btlm_data import pipeline
from btlm_data.engine import failures
from btlm_data.errors import SafetyStop
from btlm_data.formats.dataset import Dataset
from btlm_data.progress import Lines
from btlm_data.recipe.load import load
from btlm_data.stages import file_ranges
from btlm_data.storage import open_store

POISON = "this text kills the process that reads it"
FILTER = f"""
import os, signal
from pathlib import Path

def deadly(document):
    if {POISON!r} in document["text"]:
        with Path(__file__).with_name("tries").open("a") as file:
            file.write("x")
        os.kill(os.getpid(), signal.SIGKILL)
    return True
"""


def write_corpus(folder: Path, files: int = 6, *, poison: int | None = 2) -> Path:
    """Files of unlike documents; one of them is poison."""
    corpus = folder / "corpus"
    corpus.mkdir()
    (folder / "my_filters.py").write_text(FILTER)
    for number in range(files):
        lines = [
            json.dumps(
                {
                    "text": f"Document {number} {i}: "
                    + " ".join(f"w{(i * 31 + k * 7 + number) % 997}" for k in range(80))
                }
            )
            for i in range(60)
        ]
        if number == poison:
            lines.insert(30, json.dumps({"text": POISON * 10}))
        (corpus / f"part-{number}.jsonl").write_text("\n".join(lines) + "\n")
    return corpus


@pytest.fixture(autouse=True)
def modules_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(file_ranges, "GROUP_BYTES", 1000)  # a task for each file


def prepare(corpus: Path, out: Path, **options: Any) -> pipeline.Prepared:
    given = {
        "source.name": str(corpus),
        "run.out": str(out),
        "run.workers": 2,
        "seq_len": 64,
        "clean.filters": [{"name": "deadly", "function": "my_filters:deadly"}],
        "dedupe.max_removed": 1.0,
    }
    given |= {key.replace("__", "."): value for key, value in options.items()}
    return pipeline.prepare(load(None, {key: (value, "test") for key, value in given.items()}), Lines())


def contents(out: Path) -> dict[str, bytes]:
    return {
        path.relative_to(out).as_posix(): path.read_bytes()
        for path in sorted(out.rglob("*"))
        if path.is_file() and ".work" not in path.parts and path.name != "provenance.json"
    }


def test_a_poison_file_is_tried_three_times_named_and_then_left_out_if_asked(tmp_path: Path) -> None:
    corpus, out, tries = write_corpus(tmp_path), tmp_path / "out", tmp_path / "tries"
    with pytest.raises(SafetyStop) as caught:
        prepare(corpus, out)
    message = str(caught.value)
    assert message.startswith("1 task of the step read failed 3 times each")
    assert "  part-2.jsonl: its worker was killed" in message
    assert "--skip-failed" in message
    assert caught.value.exit_code == 5
    assert len(tries.read_text()) == failures.MOST_TRIES
    assert len(list((out / ".work/receipts/read").iterdir())) == 5, "the other files are done"
    [failure] = failures.read_all(open_store(out / ".work"))
    assert (failure.step, failure.title, len(failure.reasons)) == ("read", "part-2.jsonl", 3)
    assert f"failures/read/{failure.task}.json" in message

    prepared = prepare(corpus, out, run__skip_failed=True)
    assert len(tries.read_text()) == failures.MOST_TRIES, "what was put aside is not tried again"
    dataset = prepared.datasets[""]
    assert dropped(dataset) == {"unreadable_file": 1}
    rejects = [json.loads(line) for line in (out / "rejects.jsonl").read_text().splitlines()]
    assert [(reject["file"], reject["reason"]) for reject in rejects] == [("part-2.jsonl", "unreadable_file")]
    assert "skip-failed" in rejects[0]["detail"]
    assert [file.name for file in dataset.inputs if file.digest is None] == ["part-2.jsonl"]

    (corpus / "part-2.jsonl").unlink()
    prepare(corpus, tmp_path / "without")
    kept, without = contents(out), contents(tmp_path / "without")
    shards = [name for name in without if name.endswith(".h5")]
    assert shards
    assert all(kept[name] == without[name] for name in shards)


def dropped(dataset: Dataset) -> dict[str, int]:
    """Documents dropped by `acquire`, by reason."""
    found: dict[str, int] = {}
    for row in dataset.ledger:
        if row.stage == "acquire":
            for reason, amount in row.dropped.items():
                found[reason] = found.get(reason, 0) + amount.documents
    return found


KILLER = """
import sys, time, psutil
driver, every, most = psutil.Process(int(sys.argv[1])), float(sys.argv[2]), int(sys.argv[3])
me, killed = psutil.Process().pid, 0
while killed < most:
    time.sleep(every)
    try:
        workers = set(driver.children(recursive=True)) - set(driver.children())
        sorted(workers, key=lambda process: process.pid)[killed % 2].kill()
        killed += 1
        print(killed, flush=True)
    except (psutil.Error, IndexError):
        continue
"""


@contextlib.contextmanager
def killing_workers(every: float, most: int) -> Iterator[Callable[[], int]]:
    """SIGKILL one worker of this process after the other; gives how many so far."""
    command = [sys.executable, "-c", KILLER, str(os.getpid()), str(every), str(most)]
    killer = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:

        def count() -> int:
            killer.terminate()
            return len(killer.communicate()[0].split())

        yield count
    finally:
        killer.kill()
        killer.wait()


def test_workers_killed_on_the_way_change_nothing(tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path, poison=None)
    prepare(corpus, tmp_path / "undisturbed")
    with killing_workers(0.1, 3) as killed:
        prepare(corpus, tmp_path / "out")
        assert killed() > 0
    assert contents(tmp_path / "out") == contents(tmp_path / "undisturbed")
