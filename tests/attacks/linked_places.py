"""Links where later commands write: pages, indices, records of runs, texts, checkpoints. And copies that share their bytes."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

from tests.attacks.bench import MINE, Bench, probe
from tests.attacks.foreign_files import GROUP, _kept
from tests.attacks.trainer_and_exports import ANEW, EXPORTS, WEIGHTS, _train, _weights

FIRST = "train/a.jsonl#0"  # the id of a document of every dataset of the bench


@probe(
    GROUP,
    "report.html",
    "README.md",
    "croissant.json",
    "examples.jsonl",
    "clusters.parquet",
    "dropped.parquet",
    slow=True,
)
def a_page_or_table_that_is_a_link(bench: Bench, name: str) -> None:
    bench.corpus()
    bench.prepare("a.jsonl")
    theirs = bench.mine("theirs/file")
    (bench.root / "out" / name).unlink(missing_ok=True)
    (bench.root / "out" / name).symlink_to(theirs)
    bench.run("inspect", bench.root / "out", "--html")
    bench.prepare("a.jsonl", "out", code=None)
    bench.prepare("a.jsonl", "out", "--overwrite", "--seed", "3", code=None)
    _kept(theirs)


@probe(
    GROUP,
    "status.json",
    "failures/read/x.json",
    "receipts/read/x.json",
    "jobs",
    "claims",
    "run.json",
    "blocks.json",
)
def a_link_in_the_work_folder(bench: Bench, name: str) -> None:
    bench.corpus()
    bench.prepare("a.jsonl", "out", "--stop-after", "clean")
    theirs = bench.mine("theirs/file")
    path = bench.root / "out/.work" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    path.symlink_to(theirs.parent if "." not in path.name else theirs)
    bench.prepare("a.jsonl", "out", code=None)
    bench.run("status", bench.root / "out/.work")
    _kept(theirs)
    assert [entry.name for entry in theirs.parent.iterdir()] == ["file"]


@probe(
    GROUP,
    "train",
    "validation",
    ".work",
    "train/data-00000.h5",
    "train/documents.parquet",
    "forgotten.json",
    "dropped.parquet",
)
def forget_through_a_link(bench: Bench, name: str) -> None:
    """The dataset's part lies in another folder of the user, which `forget` was not asked to change."""
    root = bench.dataset()
    path, theirs = root / name, bench.root / "theirs" / Path(name).name
    theirs.parent.mkdir()
    if path.exists():
        shutil.move(path, theirs)
    elif "." in name[1:]:
        theirs.write_text(MINE)
    else:
        theirs.mkdir()
        (theirs / "read").write_text(MINE)
    path.symlink_to(theirs)
    before = _contents(bench.root / "theirs")
    bench.run("forget", root, "--id", FIRST)
    assert _contents(bench.root / "theirs") == before


def _contents(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@probe(GROUP)
def forget_in_a_copy_of_hard_links(bench: Bench) -> None:
    root = bench.dataset()
    shutil.copytree(root, bench.root / "copy", copy_function=os.link)
    before = _contents(root)
    bench.run("forget", bench.root / "copy", "--id", FIRST, code=0)
    assert _contents(root) == before


@probe(GROUP, "train", "text.json", "train/part-00000.jsonl.zst")
def a_link_in_the_text_folder(bench: Bench, name: str) -> None:
    bench.corpus()
    theirs = bench.mine("theirs/part-00000.jsonl.zst")
    (bench.root / "text" / name).parent.mkdir(parents=True)
    (bench.root / "text" / name).symlink_to(theirs.parent if name == "train" else theirs)
    bench.prepare("a.jsonl", "out", "--emit-text", bench.root / "text", code=None)
    bench.prepare("a.jsonl", "out", "--emit-text", bench.root / "text", "--overwrite", code=None)
    _kept(theirs)
    assert [entry.name for entry in theirs.parent.iterdir()] == ["part-00000.jsonl.zst"]


@probe(GROUP, "index", "lease", "run", slow=True)
def a_link_in_the_index(bench: Bench, what: str) -> None:
    bench.corpus("a.jsonl")
    bench.corpus("b.jsonl", seed=2)
    index = ("--dedupe-index", bench.root / "index")
    bench.prepare("a.jsonl", "first", *index)
    theirs = bench.mine("theirs/index.json")
    if what == "index":  # the whole index lies elsewhere: that is the user's wish
        shutil.move(bench.root / "index", bench.root / "theirs/real")
        (bench.root / "index").symlink_to(bench.root / "theirs/real")
    elif what == "lease":
        (bench.root / "index/index.lease").unlink(missing_ok=True)
        (bench.root / "index/index.lease").symlink_to(theirs)
    else:
        run = next(path for path in (bench.root / "index").iterdir() if path.is_dir())
        shutil.move(run, bench.root / "theirs/run")
        run.symlink_to(bench.root / "theirs/run")
    before = _contents(bench.root / "theirs")
    bench.prepare("b.jsonl", "second", *index, code=None)
    bench.prepare("b.jsonl", "second", *index, "--overwrite", "--seed", "4", code=None)
    after = _contents(bench.root / "theirs")
    assert before.items() <= after.items()
    assert what == "index" or after == before


# The trainer -------------------------------------------------------------------------------------------------------


@probe(WEIGHTS, "checkpoints/step_00000002", "checkpoints/step_00000009", "earlier", "tensorboard", slow=True)
def a_link_among_checkpoints_is_not_rotated_away(bench: Bench, name: str) -> None:
    _train(bench, "other", 4)
    _train(bench, "run", 4)
    theirs = bench.root / "other/checkpoints/step_00000004"
    path = bench.root / "run" / name
    shutil.rmtree(path, ignore_errors=True)
    path.symlink_to(theirs)
    before = _contents(bench.root / "other")
    for more in (("--set", "runconfig.max_checkpoints=1"), (*ANEW, "--set", "runconfig.max_checkpoints=1")):
        _train(bench, "run", 10, *more, code=None)
    assert _contents(bench.root / "other") == before


@probe(WEIGHTS, "step_99999999", "step_00000006.txt", "notes", ".step_00000008", "step_00000008.btlm-tmp")
def a_folder_of_the_user_among_checkpoints_stays(bench: Bench, name: str) -> None:
    _train(bench, "run", 4)
    theirs = bench.mine(f"run/checkpoints/{name}/notes.txt")
    _train(bench, "run", 8, "--set", "runconfig.max_checkpoints=1", code=None)
    _train(bench, "run", 4, *ANEW, code=None)
    found = [path for path in (bench.root / "run").rglob("notes.txt") if path.read_text() == MINE]
    assert found, theirs


@probe(WEIGHTS, "state.json", "model.safetensors", "optimizer.safetensors")
def every_checkpoint_is_damaged(bench: Bench, name: str) -> None:
    """The run says so; it does not begin anew and write over them."""
    _train(bench, "run", 4)
    for path in (bench.root / "run/checkpoints").glob(f"*/{name}"):
        data = bytearray(path.read_bytes())
        data[len(data) // 3] ^= 16
        path.write_bytes(data)
    before = _contents(bench.root / "run/checkpoints")
    words = _train(bench, "run", 8, "--set", "runconfig.max_checkpoints=1", code=None)
    after = _contents(bench.root / "run")
    assert set(before.values()) <= set(after.values()), words


@probe(WEIGHTS)
def a_checkpoint_that_is_nearly_gone(bench: Bench) -> None:
    """Files are missing from the newest: the one before it goes on, and nothing that is left is removed unsaid."""
    _train(bench, "whole", 8)
    _train(bench, "run", 6)
    (bench.root / "run/checkpoints/step_00000006/model.safetensors").unlink()
    words = _train(bench, "run", 8)
    assert "step_00000006" in words
    ours, theirs = _weights(bench.root / "run/checkpoints"), _weights(bench.root / "whole/checkpoints")
    assert ours["step_00000008"] == theirs["step_00000008"]


@probe(WEIGHTS, slow=True)
def a_full_disk_at_a_checkpoint_keeps_the_one_before(bench: Bench) -> None:
    _train(bench, "run", 4)
    before = _weights(bench.root / "run/checkpoints")
    arguments = ["run", "--params", "params.yaml", "--mode", "train", "--model-dir", "run", "--device", "cpu", "--max-steps", "8",
                 "--set", "runconfig.max_checkpoints=1"]  # fmt: skip
    limited = ["bash", "-c", 'ulimit -f 4; trap "" XFSZ; exec "$@"', "-"]
    done = bench.process(*arguments, program="btlm_train.cli", prefix=limited)
    assert done.returncode == 4, done.stderr[-800:]
    assert b"Traceback" not in done.stderr
    assert before.items() <= _weights(bench.root / "run/checkpoints").items()


# Exports -----------------------------------------------------------------------------------------------------------


@probe(EXPORTS, "npy", "megatron", "mds")
def a_linked_split_folder_in_the_exports_out(bench: Bench, to: str) -> None:
    root = bench.dataset()
    theirs = bench.mine("theirs/index.json")
    (bench.root / "out").mkdir()
    for name in ("train", "validation"):
        (bench.root / "out" / name).symlink_to(theirs.parent)
    bench.run("export", root, "--to", to, "--out", bench.root / "out")
    bench.run("export", root, "--to", to, "--out", bench.root / "out", "--overwrite")
    _kept(theirs)
    assert [entry.name for entry in theirs.parent.iterdir()] == ["index.json"]


@probe(EXPORTS, "data", "data/train", ".", "data/exported")
def into_the_dataset_itself(bench: Bench, out: str) -> None:
    root = bench.dataset()
    before = bench.hashes("data")
    for to in ("npy", "mds"):
        bench.run("export", root, "--to", to, "--out", bench.root / out)
        bench.run("export", root, "--to", to, "--out", bench.root / out, "--overwrite")
        assert before.items() <= bench.hashes("data").items()
    shutil.rmtree(root / "exported", ignore_errors=True)
    assert out == "." or not bench.failing_checks(root)


@probe(EXPORTS, "npy", "megatron", "mds", slow=True)
def of_a_dataset_that_was_made_anew_meanwhile(bench: Bench, to: str) -> None:
    """Half of the old and half of the new is never called an export."""
    bench.corpus("a.jsonl", 60)
    bench.prepare("a.jsonl", "data", "--samples-per-file", "20")
    bench.run("export", bench.root / "data", "--to", to, "--out", bench.root / "out", code=0)
    (bench.root / "out/export.json").rename(bench.root / "out/kept")
    tree = json.loads((bench.root / "out/kept").read_bytes())
    bench.prepare("a.jsonl", "data", "--samples-per-file", "20", "--seed", "9", "--overwrite")
    bench.run("export", bench.root / "data", "--to", to, "--out", bench.root / "sound", code=0)
    (bench.root / "out/kept").rename(bench.root / "out/export.json")
    assert bench.run("export", bench.root / "data", "--to", to, "--out", bench.root / "out").code == 4
    assert json.loads((bench.root / "out/export.json").read_bytes()) == tree
    bench.run("export", bench.root / "data", "--to", to, "--out", bench.root / "out", "--overwrite", code=0)
    shutil.rmtree(bench.root / "out/export.lock", ignore_errors=True)
    assert bench.hashes("out") == bench.hashes("sound")


@probe(EXPORTS)
def in_another_format_into_the_same_folder(bench: Bench) -> None:
    root = bench.dataset()
    bench.run("export", root, "--to", "npy", "--out", bench.root / "out", code=0)
    before = bench.hashes("out")
    assert bench.run("export", root, "--to", "megatron", "--out", bench.root / "out").code == 4
    assert bench.hashes("out") == before
    bench.run("export", root, "--to", "megatron", "--out", bench.root / "out", "--overwrite", code=0)
    bench.run("export", root, "--to", "megatron", "--out", bench.root / "sound", code=0)
    assert bench.hashes("out") == bench.hashes("sound")
