"""Files of somebody else are not written, replaced or deleted; and one flipped bit of our own is noticed."""

from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path

from tests.attacks.bench import MINE, Bench, probe

GROUP = "somebody else's files"


def _kept(*paths: Path) -> None:
    for path in paths:
        assert path.read_text() == MINE, f"{path} was changed"


@probe(GROUP, "train", "validation", "msl64", ".work")
def a_linked_folder_in_out_is_not_written_through(bench: Bench, name: str) -> None:
    bench.corpus()
    theirs = bench.mine("theirs/data-00000.h5")
    bench.mine("theirs/read/000000-00000.docs")
    (bench.root / "out").mkdir()
    (bench.root / "out" / name).symlink_to(bench.root / "theirs")
    bench.prepare("a.jsonl", "out", "--overwrite", code=None)
    _kept(theirs, bench.root / "theirs/read/000000-00000.docs")
    assert not list(bench.root.glob("theirs/**/*.h5")) or [
        p.name for p in bench.root.glob("theirs/**/*.h5")
    ] == ["data-00000.h5"]


@probe(GROUP)
def a_work_dir_that_is_a_link_gets_work_files_only(bench: Bench) -> None:
    bench.corpus()
    theirs = bench.mine("deep/er/real/notes.txt")
    (bench.root / "work").symlink_to(theirs.parent)
    bench.prepare("a.jsonl", "out", "--work-dir", bench.root / "work")
    _kept(theirs)
    assert not list(bench.root.glob("deep/**/*.h5"))
    assert (bench.root / "out/train/data-00000.h5").exists()


@probe(GROUP, "read", "receipts", "shard/documents", "dedupe/cluster")
def a_folder_of_that_name_in_a_fresh_work_dir_is_not_ours(bench: Bench, name: str) -> None:
    bench.corpus()
    theirs = bench.mine(f"work/{name}/x.docs")
    bench.prepare("a.jsonl", "out", "--work-dir", bench.root / "work", code=None)
    _kept(theirs)


@probe(GROUP, "read", "receipts", "shard")
def a_linked_step_folder_is_not_emptied(bench: Bench, name: str) -> None:
    bench.corpus()
    bench.prepare("a.jsonl", "out", "--work-dir", bench.root / "work", "--stop-after", "clean")
    theirs = bench.mine("theirs/000000-00000.docs")
    shutil.rmtree(bench.root / "work" / name, ignore_errors=True)
    (bench.root / "work" / name).symlink_to(theirs.parent)
    bench.prepare("a.jsonl", "out", "--work-dir", bench.root / "work", "--seed", "5", code=None)
    _kept(theirs)


@probe(GROUP, ".draft.tmp", ".session.btlm.tmp", "x.btlm-tmp", ".cache.tmp")
def hidden_temporary_files_stay(bench: Bench, name: str) -> None:
    bench.corpus()
    theirs = [bench.mine(f"{folder}/{name}") for folder in ("out/notes", "work/other", "out")]
    bench.prepare("a.jsonl", "out", "--work-dir", bench.root / "work")
    _kept(*theirs)


@probe(GROUP, "out/preparing.lease", "out/preparing.json", "work/run.lease", "work/work-folder.json", "out/dataset.json",
       "out/rejects.jsonl", "work/rejects.jsonl", "out/provenance.json")  # fmt: skip
def a_linked_record_has_its_target_kept(bench: Bench, name: str) -> None:
    bench.corpus()
    theirs = bench.mine("theirs/file")
    (bench.root / name).parent.mkdir(parents=True)
    (bench.root / name).symlink_to(theirs)
    bench.prepare("a.jsonl", "out", "--work-dir", bench.root / "work", code=None)
    bench.prepare("a.jsonl", "out", "--work-dir", bench.root / "work", "--overwrite", code=None)
    _kept(theirs)


@probe(GROUP, "train/data-00000.h5", "dataset.json", "train/documents.parquet", "rejects.jsonl")
def a_hard_linked_output_is_replaced_not_overwritten(bench: Bench, name: str) -> None:
    bench.corpus()
    bench.prepare("a.jsonl")
    output = bench.root / "out" / name
    (bench.root / "kept").hardlink_to(output)
    before = (bench.root / "kept").read_bytes()
    bench.prepare("a.jsonl", "out", "--overwrite", "--seed", "7")
    assert (bench.root / "kept").read_bytes() == before


@probe(GROUP)
def another_dataset_in_a_set_folder_stays(bench: Bench) -> None:
    bench.corpus("a.jsonl", seed=1)
    bench.corpus("b.jsonl", seed=2)
    lengths = ["--seq-len", "32"]
    bench.prepare("a.jsonl", "out", *lengths, "--stop-after", "clean")
    bench.prepare("b.jsonl", "out/msl64")
    before = bench.hashes("out/msl64")
    bench.prepare("a.jsonl", "out", *lengths, code=None)
    assert bench.hashes("out/msl64") == before


@probe(
    GROUP, ["../theirs/file"], ["/etc/passwd"], ["train/../../theirs/file"], ["train\0x"], ["a/" * 2000 + "b"]
)
def preparing_json_names_files_outside(bench: Bench, names: list[str]) -> None:
    bench.corpus()
    theirs = bench.mine("theirs/file")
    bench.write("out/preparing.json", json.dumps({"run": "0" * 64, "files": names}))
    bench.prepare("a.jsonl", "out", code=None)
    bench.prepare("a.jsonl", "out", "--overwrite", code=None)
    _kept(theirs)


@probe(GROUP)
def the_text_folder_holds_files_of_the_user(bench: Bench) -> None:
    bench.corpus()
    theirs = [bench.mine("text/notes.txt"), bench.mine("text/train/part-00000.jsonl.zst")]
    bench.prepare("a.jsonl", "out", "--emit-text", bench.root / "text", code=None)
    bench.prepare("a.jsonl", "out", "--emit-text", bench.root / "text", "--overwrite", code=None)
    _kept(theirs[0])


@probe(GROUP)
def the_index_folder_is_another_programs(bench: Bench) -> None:
    bench.corpus()
    theirs = [
        bench.mine("index/x/data.bin"),
        bench.mine("index/index.json"),
        bench.mine("index/run/bands.txt"),
    ]
    bench.prepare("a.jsonl", "out", "--dedupe-index", bench.root / "index", code=None)
    _kept(*theirs)


@probe(GROUP)
def a_signature_that_is_a_link_has_its_target_kept(bench: Bench) -> None:
    import subprocess

    root = bench.dataset()
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", bench.root / "key"], check=True)
    theirs = bench.mine("theirs/authorized_keys")
    (root / "dataset.json.sig").symlink_to(theirs)
    bench.run("sign", root, "--key", bench.root / "key")
    _kept(theirs)


def _fifo(path: Path) -> None:
    os.mkfifo(path)


def _folder(path: Path) -> None:
    path.mkdir()


def _dangling(path: Path) -> None:
    path.symlink_to("nowhere")


def _loop(path: Path) -> None:
    path.symlink_to(path)


def _device(path: Path) -> None:
    path.symlink_to("/dev/zero")


@probe(GROUP, _fifo, _folder, _dangling, _loop, _device, slow=True)
def odd_files_where_ours_belong_never_hang(bench: Bench, make: Callable[[Path], None]) -> None:
    bench.corpus()
    for name in ("out/dataset.json", "out/preparing.json", "out/train/data-00000.h5", "out/preparing.lease", "work/run.lease",
                 "work/work-folder.json", "out/train", "out"):  # fmt: skip
        for folder in ("out", "work"):
            shutil.rmtree(bench.root / folder, ignore_errors=True)
            (bench.root / folder).unlink(missing_ok=True)
        (bench.root / name).parent.mkdir(parents=True, exist_ok=True)
        make(bench.root / name)
        arguments = [
            "prepare",
            "--source",
            "a.jsonl",
            "--out",
            "out",
            "--work-dir",
            "work",
            "--seq-len",
            "64",
            "--workers",
            "1",
        ]
        done = bench.process(*arguments, seconds=60)
        assert done.returncode in (0, 3, 4), (name, done.stderr[-800:])
        words = done.stderr.splitlines()
        assert done.returncode == 0 or any(line.startswith(b"error: ") for line in words), (name, words[-9:])


@probe(GROUP)
def names_that_differ_only_in_case_are_two_files(bench: Bench) -> None:
    bench.corpus("src/a.jsonl", seed=1)
    bench.corpus("src/A.jsonl", seed=2)
    ended = bench.prepare("src", "out", "--json")
    inputs = json.loads((bench.root / "out/dataset.json").read_bytes())["inputs"]
    assert len(inputs) == len(list((bench.root / "src").iterdir())), ended.words


# Flipped bits -----------------------------------------------------------------------------------------------------

WORK_FILES = ("read/*.tokens", "read/*.docs", "read/*.sketch", "read/*.rejects", "dedupe/fates/*.cols",
              "dedupe/components/*.cols", "dedupe/table/clusters.parquet", "holdout/draw/*", "shuffle/sort/*",
              "receipts/read/*", "receipts/shuffle.sort/*", "blocks.json", "work-folder.json")  # fmt: skip


@probe("flipped bits", *WORK_FILES)
def of_a_work_file_are_noticed_or_without_effect(bench: Bench, pattern: str) -> None:
    bench.corpus()
    with (bench.root / "a.jsonl").open("a") as file:
        file.write("{broken\n")
    options = ("--set", "dedupe.max_removed=1.0", "--set", "source.max_rejected=1.0")
    bench.prepare("a.jsonl", "sound", *options)
    expected = bench.hashes("sound")
    bench.prepare("a.jsonl", "out", *options, "--stop-after", "pack")
    chance = random.Random(pattern)
    paths = sorted((bench.root / "out/.work").glob(pattern))
    assert paths
    for _ in range(4):
        path = chance.choice([path for path in paths if path.exists() and path.stat().st_size] or paths)
        if not path.exists():
            break
        data = bytearray(path.read_bytes())
        data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
        path.write_bytes(data)
        ended = bench.prepare("a.jsonl", "out", *options, code=None)
        if ended.code == 0:
            assert bench.hashes("out") == expected
            shutil.rmtree(bench.root / "out")
            bench.prepare("a.jsonl", "out", *options, "--stop-after", "pack")
    if (bench.root / "out/.work/work-folder.json").read_bytes() == b'{"format_version": 2}\n':
        bench.prepare("a.jsonl", "out", *options)
        assert bench.hashes("out") == expected


@probe("flipped bits", "*/exact-*", "*/bands-*", "*/signatures-*", "*/index.json")
def of_an_index_are_noticed(bench: Bench, pattern: str) -> None:
    bench.corpus("a.jsonl")
    bench.corpus("b.jsonl", 20)  # the first documents again
    index = ("--dedupe-index", bench.root / "index", "--accept-removal", "--set", "dedupe.verify=signature")
    bench.prepare("a.jsonl", "first", *index)
    shutil.copytree(bench.root / "index", bench.root / "kept")
    bench.corpus("c.jsonl", 60)
    bench.prepare("c.jsonl", "sound", *index)
    expected = bench.hashes("sound")
    chance = random.Random(pattern)
    for number in range(4):
        shutil.rmtree(bench.root / "index")
        shutil.copytree(bench.root / "kept", bench.root / "index")
        path = chance.choice(sorted((bench.root / "index").glob(pattern)))
        data = bytearray(path.read_bytes())
        data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
        path.write_bytes(data)
        ended = bench.prepare("c.jsonl", f"out{number}", *index, code=None)
        assert ended.code == 1 or bench.hashes(f"out{number}") == expected, ended.words[-500:]
