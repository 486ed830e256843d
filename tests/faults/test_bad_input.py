"""Every bad input and every bad place, through the real command line: what survives, what is counted, what the user is told."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import h5py
import pyarrow.parquet as pq
import pytest
import zstandard

from btlm_data import output_folder, work_folder
from tests import forked
from tests.strategies import compress, corpus_line

ROOT = Path(__file__).resolve().parents[2]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "200"}
WORDS = [a + b for a in ("al", "be", "ga", "del", "ep", "ze") for b in ("pha", "ta", "mma", "silon")]


def text(number: int, words: int = 60) -> str:
    """A document that passes cleaning, unlike every other."""
    return f"Document {number}. " + " ".join(
        WORDS[(number * 7 + i * i + i * number) % len(WORDS)] for i in range(words)
    )


def good(count: int, first: int = 0) -> bytes:
    return b"".join(corpus_line(text(i), "Good") for i in range(first, first + count))


def command(source: Path | str, out: Path, *options: str) -> list[str]:
    base = [
        sys.executable,
        "-m",
        "btlm_data.cli",
        "prepare",
        "--source",
        str(source),
        "--seq-len",
        "64",
        "--workers",
        "1",
    ]
    return [*base, "--dedupe", "none", "--max-rejected", "1", "--out", str(out), *options]


def prepare(source: Path | str, out: Path, *options: str, code: int = 0, **more: Any) -> str:
    """Run to the end; the exit code is the one expected, and there is never a traceback. Returns what was said."""
    words = ["btlm-data", *command(source, out, *options)[3:]]
    done = forked.run(words, env=ENVIRONMENT, **more)
    said: str = done.stderr + done.stdout
    assert "Traceback" not in said, said
    assert done.returncode == code, said
    return said


def listed(out: Path) -> list[dict[str, Any]]:
    return [
        json.loads(line) for line in (out / ".work/acquire/listed/rejects.jsonl").read_text().splitlines()
    ]


def dropped(out: Path, stage: str) -> Counter[str]:
    """Documents dropped at a stage by reason, by the ledger."""
    found: Counter[str] = Counter()
    for entry in json.loads((out / "dataset.json").read_text())["ledger"]:
        if entry["stage"] == stage:
            found.update(
                {
                    reason: amount["documents"]
                    for reason, amount in entry["dropped"].items()
                    if amount["documents"]
                }
            )
    return found


def kept(out: Path, split: str = "train") -> list[tuple[str, int]]:
    """(file, 1-based line) of every document in the split, sorted."""
    table = pq.read_table(out / split / "documents.parquet")
    return sorted(
        (file, line + 1)
        for file, line in zip(table["file"].to_pylist(), table["line"].to_pylist(), strict=True)
    )


BAD_LINES = {
    "invalid_utf8": b'{"text": "caf\xe9 ' + b"x" * 300 + b'"}',
    "lone_surrogate": b'{"text": "\\ud800 ' + b"x" * 300 + b'"}',
    "invalid_json": b'{"text": "cut off',
    "not_an_object": b'["text"]',
    "missing_text": b'{"body": "x"}',
    "null_text": b'{"text": null}',
    "text_not_a_string": b'{"text": 5}',
}


def test_every_bad_record_is_listed_with_its_place_and_in_the_ledger(tmp_path: Path) -> None:
    source, out = tmp_path / "in", tmp_path / "out"
    (source / "deep").mkdir(parents=True)
    bad = b"".join(line + b"\n" for line in BAD_LINES.values())
    (source / "deep" / "a.jsonl").write_bytes(good(2) + bad + good(2, 10))
    (source / "b.jsonl.zst").write_bytes(compress(good(1, 20) + bad, "zstd"))
    said = prepare(source, out)
    assert "14 records could not be read" in said
    rejects = listed(out)
    assert [(r["file"], r["line"], r["reason"]) for r in rejects] == [
        *(("b.jsonl.zst", i + 2, reason) for i, reason in enumerate(BAD_LINES)),
        *(("deep/a.jsonl", i + 3, reason) for i, reason in enumerate(BAD_LINES)),
    ]
    data = (source / "deep" / "a.jsonl").read_bytes()
    for reject in rejects[7:]:
        line = data[reject["offset"] : reject["offset"] + reject["bytes"]]
        assert line == BAD_LINES[reject["reason"]] + b"\n"
    assert dropped(out, "acquire") == dict.fromkeys(BAD_LINES, 2)
    assert kept(out) == [("b.jsonl.zst", 1), *(("deep/a.jsonl", line) for line in (1, 2, 10, 11))]


def test_strict_stops_at_the_first_bad_record_also_where_it_was_read_before(tmp_path: Path) -> None:
    source, out = tmp_path / "a.jsonl", tmp_path / "out"
    source.write_bytes(good(2) + BAD_LINES["null_text"] + b"\n" + good(1, 5))
    assert "a.jsonl line 3: null_text" in prepare(source, out, "--strict", code=3)
    assert not (out / "dataset.json").exists()
    prepare(source, out)
    assert "a.jsonl line 3: null_text" in prepare(source, out, "--strict", "--overwrite", code=3)


@pytest.mark.parametrize(("name", "kind"), [("a.jsonl.zst", "zstd"), ("a.jsonl.gz", "gzip")])
def test_truncated_and_corrupt_files_keep_what_can_be_read(tmp_path: Path, name: str, kind: str) -> None:
    source, out = tmp_path / "in", tmp_path / "out"
    source.mkdir()
    stored = compress(
        b"".join(corpus_line(f"{i} {os.urandom(200).hex()}") for i in range(3000)), kind, 4, checksum=True
    )
    (source / f"cut-{name}").write_bytes(stored[: len(stored) * 2 // 3])
    (source / f"flipped-{name}").write_bytes(
        stored[: len(stored) // 2] + b"\xa5" * 40 + stored[len(stored) // 2 + 40 :]
    )
    (source / f"junk-{name}").write_bytes(b"\0\1 neither text nor packed")
    (source / f"whole-{name}").write_bytes(compress(good(3), kind))
    prepare(source, out)
    reasons = {r["file"].split("-")[0]: r["reason"] for r in listed(out) if r["reason"].endswith("_file")}
    assert reasons["cut"] == "truncated_file"
    assert reasons["flipped"] in ("corrupt_file", "truncated_file")
    assert reasons["junk"] in ("corrupt_file", "truncated_file")
    assert sum(dropped(out, "acquire").values()) == len(listed(out))
    found = Counter(file.split("-")[0] for file, _ in kept(out))
    assert found["whole"] == 3
    assert found["cut"] > 1500
    assert found["flipped"] > 1000


def test_empty_files_are_no_loss_and_nothing_else_is_an_error(tmp_path: Path) -> None:
    source, out = tmp_path / "in", tmp_path / "out"
    source.mkdir()
    for name in ("a.jsonl", "b.jsonl.gz", "c.txt", "d.jsonl.zst"):
        (source / name).write_bytes(b"")
    said = prepare(source, out, code=3)
    assert "4 x empty file" in said
    (source / "e.jsonl").write_bytes(good(2))
    prepare(source, out)
    assert listed(out) == []
    assert len(kept(out)) == 2


def test_an_enormous_zstd_frame_and_zero_width_characters(tmp_path: Path) -> None:
    source, out = tmp_path / "in", tmp_path / "out"
    source.mkdir()
    compressor = zstandard.ZstdCompressor(level=1).compressobj()
    piece = b"x" * 2**20
    (source / "bomb.jsonl.zst").write_bytes(
        b"".join([*(compressor.compress(piece) for _ in range(400)), compressor.flush()])
    )
    (source / "zero.jsonl").write_bytes(corpus_line("\u200b\u200d\ufeff\u2060" * 50_000) + good(2))
    prepare(source, out, "--set", "source.max_record_bytes=16MiB")
    (reject,) = listed(out)
    assert (reject["file"], reject["line"], reject["reason"]) == ("bomb.jsonl.zst", 1, "record_too_large")
    assert reject["bytes"] == 400 * 2**20
    # 200,000 zero-width characters are no white space: they are text, and stay.
    assert kept(out) == [("zero.jsonl", 1), ("zero.jsonl", 2), ("zero.jsonl", 3)]


_PEAK = """
import resource, subprocess, sys
done = subprocess.run(sys.argv[1:])
print("PEAK", resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss // 1024)
sys.exit(done.returncode)
"""


@pytest.mark.stress
@pytest.mark.parametrize("method", ["none", "minhash"])
def test_a_document_of_three_hundred_megabytes(tmp_path: Path, method: str) -> None:
    source, out = tmp_path / "a.jsonl", tmp_path / "out"
    with source.open("wb") as file:
        file.write(b'{"text": "')
        piece = text(1, 250_000).encode()
        for i in range(300):
            file.write(piece[i : 2**20 + i])
        file.write(b'"}\n' + good(2))
    run = [sys.executable, "-c", _PEAK, *command(source, out, "--dedupe", method)]
    done = subprocess.run(run, capture_output=True, text=True, env=ENVIRONMENT, timeout=280)
    assert done.returncode == 0, done.stderr
    peak = int(done.stdout.split("PEAK ")[1])
    assert len(kept(out)) == 3
    assert peak < 1500, (
        f"{peak} MB"
    )  # text, its UTF-8 and its normalised form; neither the raw line nor the tokens at the same time


def test_equal_names_in_different_folders_are_different_files(tmp_path: Path) -> None:
    source, out = tmp_path / "in", tmp_path / "out"
    for number, folder in enumerate(["a", "b", "b/c"]):
        (source / folder).mkdir(parents=True, exist_ok=True)
        (source / folder / "x.jsonl").write_bytes(good(2, number * 10))
    prepare(source, out)
    assert kept(out) == [(f"{folder}/x.jsonl", line) for folder in ("a", "b/c", "b") for line in (1, 2)]


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda folder: None, "no files at all"),
        (lambda folder: (folder / "a.pdf").write_bytes(b"%PDF"), "1 x unknown ending .pdf (a.pdf)"),
        (lambda folder: (folder / ".hidden.jsonl").write_bytes(good(1)), "1 x hidden"),
        (lambda folder: (folder / "a.jsonl").write_bytes(b"nonsense\n" * 3), "3 x invalid_json"),
        (lambda folder: (folder / "a.jsonl").write_bytes(corpus_line("short")), "1 x too_short"),
        (
            lambda folder: Path(os.fsdecode(os.fsencode(folder) + b"/\xff.jsonl")).write_bytes(good(1)),
            "is not UTF-8",
        ),
    ],
    ids=["empty", "other kinds", "hidden", "all bad", "all short", "name not UTF-8"],
)
def test_a_folder_without_documents_says_what_it_found(
    tmp_path: Path, make: Callable[[Path], Any], said: str
) -> None:
    source = tmp_path / "in"
    source.mkdir()
    make(source)
    assert said in prepare(source, tmp_path / "out", code=3)


def test_a_source_that_is_not_there(tmp_path: Path) -> None:
    assert "does not exist" in prepare(tmp_path / "nowhere", tmp_path / "out", code=3)
    assert "found no files at all" in prepare(str(tmp_path / "*.jsonl"), tmp_path / "out", code=3)
    assert not (tmp_path / "out").exists()


@pytest.mark.stress
def test_many_source_names_in_one_block(tmp_path: Path) -> None:
    source, out = tmp_path / "a.jsonl", tmp_path / "out"
    source.write_bytes(b"".join(b'{"text": "t%d", "id": "s%d"}\n' % (i, i) for i in range(66_000)))
    said = prepare(
        source, out, "--set", "source.source_field=id", "--set", "clean.min_chars=0", "--stop-after", "clean"
    )
    assert "66,000 documents" in said


# The output folder -------------------------------------------------------------------------------------------------


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "corpus.jsonl"
    path.write_bytes(good(20))
    return path


def test_an_output_folder_that_holds_something_else(tmp_path: Path, source: Path) -> None:
    out = tmp_path / "out"
    prepare(source, out)
    assert "holds this very dataset already" in prepare(source, out)
    said = prepare(source, out, "--seed", "9", code=4)
    assert "holds another dataset" in said
    assert "seed is 0 there, 9 now" in said
    before = (out / "train/data-00000.h5").read_bytes()
    prepare(source, out, "--seed", "9", "--overwrite")
    assert (out / "train/data-00000.h5").read_bytes() != before
    (out / "dataset.json").write_text('{"hello": 1}')
    assert "this program cannot use" in prepare(source, out, code=4)
    prepare(source, out, "--overwrite")
    assert (out / "train/data-00000.h5").read_bytes() == before


def test_foreign_shards_are_not_mixed_with_new_ones(tmp_path: Path, source: Path) -> None:
    out = tmp_path / "out"
    (out / "train").mkdir(parents=True)
    with h5py.File(out / "train/theirs.h5", "w") as file:
        file["data"] = [1, 2, 3]
    assert "train/theirs.h5" in prepare(source, out, code=4)
    assert (out / "train/theirs.h5").exists()
    prepare(source, out, "--overwrite")
    assert [path.name for path in (out / "train").glob("*.h5")] == ["data-00000.h5"]


def test_an_output_that_is_a_file(tmp_path: Path, source: Path) -> None:
    (tmp_path / "out").write_text("mine")
    assert "is a file" in prepare(source, tmp_path / "out", code=4)
    assert "is a file" in prepare(source, tmp_path / "out" / "below", code=4)
    assert (tmp_path / "out").read_text() == "mine"


def test_one_work_folder_serves_two_datasets(tmp_path: Path, source: Path) -> None:
    for name in ("one", "two", "one"):
        prepare(source, tmp_path / name, "--work-dir", str(tmp_path / "work"))
        assert (tmp_path / name / "train/data-00000.h5").exists()
    assert (tmp_path / "one/train/data-00000.h5").read_bytes() == (
        tmp_path / "two/train/data-00000.h5"
    ).read_bytes()
    assert (tmp_path / "one/dataset.json").read_bytes() == (tmp_path / "two/dataset.json").read_bytes()


def test_no_permission(tmp_path: Path, source: Path) -> None:
    as_others: list[str] = []
    if os.geteuid() == 0:  # root may do anything; without its capabilities it is an ordinary owner
        as_others = ["setpriv", "--bounding-set=-all", "--inh-caps=-all"]
        if (
            shutil.which("setpriv") is None
            or subprocess.run([*as_others, "true"], capture_output=True).returncode
        ):
            pytest.skip("run as root, and setpriv cannot drop root's capabilities here")
    out = tmp_path / "out"
    out.mkdir()
    out.chmod(0o555)
    done = subprocess.run(
        [*as_others, *command(source, out)], capture_output=True, text=True, env=ENVIRONMENT
    )
    assert done.returncode == 4, done.stderr
    assert "No permission to write" in done.stderr
    assert "Traceback" not in done.stderr
    out.chmod(0o755)
    source.chmod(0)
    done = subprocess.run(
        [*as_others, *command(source, out)], capture_output=True, text=True, env=ENVIRONMENT
    )
    assert done.returncode == 3, done.stderr
    assert "no permission" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 3 MB."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(place)], capture_output=True, text=True
    )
    if mounted.returncode:
        pytest.skip(f"cannot mount a tmpfs here: {mounted.stderr.strip()}")
    yield place
    subprocess.run(["umount", str(place)], check=True)


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_full_disk_says_so_and_the_run_goes_on_when_there_is_room(
    tmp_path: Path, small_disk: Path, workers: str
) -> None:
    said = prepare("sample", small_disk / "out", "--workers", workers, code=4)
    assert "The disk is full" in said
    assert "rerun the same command" in said
    assert not (small_disk / "out" / "dataset.json").exists()
    assert not [path for path in (small_disk / "out").rglob("*.h5") if h5py.File(path)["data"].shape[0] == 0]
    subprocess.run(["mount", "-o", "remount,size=200m", str(small_disk)], check=True)
    prepare("sample", small_disk / "out", "--workers", workers)
    prepare("sample", tmp_path / "roomy")
    for path in (tmp_path / "roomy").rglob("*.h5"):
        assert (small_disk / "out" / path.relative_to(tmp_path / "roomy")).read_bytes() == path.read_bytes()


@pytest.mark.parametrize(
    ("lock", "folder", "advice"),
    [
        (work_folder.LEASE, "out/.work", "choose another --work-dir"),
        (output_folder.LEASE, "out", "choose another --out"),
    ],
    ids=["work", "out"],
)
def test_two_runs_on_one_folder(tmp_path: Path, source: Path, lock: str, folder: str, advice: str) -> None:
    out = tmp_path / "out"
    holder = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import sys, time; from btlm_data.storage import lease, open_store\n"
            "with lease.hold(open_store(sys.argv[1]), sys.argv[2], 'x'): print('held', flush=True); time.sleep(60)",
            str(tmp_path / folder),
            lock,
        ],
        stdout=subprocess.PIPE,
        env=ENVIRONMENT,
    )
    try:
        assert holder.stdout is not None
        holder.stdout.readline()
        said = prepare(source, out, code=4)
        assert advice in said
        assert f"in use by process {holder.pid} on " in said
    finally:
        holder.kill()
        holder.communicate()
    prepare(source, out)


@pytest.mark.parametrize("text", ['{"format_version& 2}', "[2]", '{"format_version": null}', ""])
def test_a_work_folder_with_a_damaged_mark_is_left_alone(tmp_path: Path, source: Path, text: str) -> None:
    out = tmp_path / "out"
    prepare(source, out, "--stop-after", "clean")
    (out / ".work" / work_folder.MARK).write_text(text)
    before = sorted(path.name for path in (out / ".work").rglob("*"))
    said = prepare(source, out, code=4)
    assert f"{work_folder.MARK} does not say that the work folder is btlm-data's" in said
    assert sorted(path.name for path in (out / ".work").rglob("*")) == before


def test_ctrl_c_ends_at_once_leaves_nobody_and_says_how_to_go_on(tmp_path: Path) -> None:
    source, out = tmp_path / "big.jsonl", tmp_path / "out"
    source.write_bytes(good(250_000))
    run = subprocess.Popen(
        [*command(source, out), "--workers", "2"],
        stderr=subprocess.PIPE,
        text=True,
        env=ENVIRONMENT,
        start_new_session=True,
    )
    assert run.stderr is not None
    while "tasks" not in (line := run.stderr.readline()):
        assert line, "it ended before reading began"
    time.sleep(0.5)
    start = time.perf_counter()
    os.killpg(run.pid, signal.SIGINT)
    said = run.communicate()[1]
    assert run.returncode == 130
    assert time.perf_counter() - start < 2
    assert "Run the same command again" in said
    assert "Traceback" not in said
    deadline = time.monotonic() + 10  # the witness of the run ends when it sees that the run has
    with contextlib.suppress(ProcessLookupError):
        while time.monotonic() < deadline:
            os.killpg(run.pid, 0)
            time.sleep(0.1)
    with pytest.raises(ProcessLookupError):
        os.killpg(run.pid, 0)
    shutil.rmtree(out)


@pytest.mark.parametrize(
    ("lines", "said", "listed"),
    [
        ("\n", r"no record at all in 1 file \(a\.jsonl\)\.", None),
        ('{"text": "hi"}\n', "1 x too_short, in 1 file", "examples.jsonl"),
        ('{"content": "a text in another field"}\n', r"1 x \w+, in 1 file", "rejects.jsonl"),
    ],
)
def test_where_nothing_is_left_the_message_names_the_file_that_shows_why(
    tmp_path: Path, lines: str, said: str, listed: str | None
) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in/a.jsonl").write_text(lines)
    told = prepare(tmp_path / "in", tmp_path / "out", code=3)
    assert re.search(said, told)
    named = {name for name in ("examples.jsonl", "rejects.jsonl") if name in told}
    assert named == ({listed} if listed else set())
    assert all((tmp_path / "out/.work/acquire/listed" / name).stat().st_size for name in named)
