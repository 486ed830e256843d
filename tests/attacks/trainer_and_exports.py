"""The trainer never loses weights of this or of another run; exports can be stopped, repeated and replaced."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

from tests.attacks.bench import MINE, Bench, probe
from tests.train import tiny

WEIGHTS = "the trainer loses weights"
EXPORTS = "exports"
ANEW = ("--set", "runconfig.autoload_last_checkpoint=false")


def _train(bench: Bench, folder: str, steps: int, *more: str, code: int | None = 0) -> str:
    """Train so many steps, with a checkpoint every two; what was said."""
    params = bench.root / "params.yaml"
    if not params.exists():
        tiny.write_params(params, tiny.write_shards(bench.root / "train"), runconfig={"checkpoint_steps": 2})
    ended = bench.run("run", "--params", params, "--mode", "train", "--model-dir", bench.root / folder, "--device", "cpu",
                      "--max-steps", steps, *more, program="btlm_train", code=code)  # fmt: skip
    return ended.words


def _weights(folder: Path) -> dict[str, bytes]:
    return {path.parent.name: path.read_bytes() for path in sorted(folder.rglob("model.safetensors"))}


@probe(WEIGHTS, (), ("--set", "runconfig.max_checkpoints=1"))
def a_new_run_in_the_folder_of_another(bench: Bench, more: tuple[str, ...]) -> None:
    _train(bench, "run", 6)
    before = _weights(bench.root / "run/checkpoints")
    _train(bench, "run", 4, *ANEW, "--set", "runconfig.seed=7", *more)
    _train(bench, "alone", 4, "--set", "runconfig.seed=7", *more)
    assert _weights(bench.root / "run/checkpoints") == _weights(bench.root / "alone/checkpoints")
    assert _weights(bench.root / "run/earlier") == before


@probe(WEIGHTS)
def a_checkpoint_of_another_run_copied_in(bench: Bench) -> None:
    _train(bench, "other", 8)
    _train(bench, "run", 4)
    shutil.copytree(
        bench.root / "other/checkpoints/step_00000008", bench.root / "run/checkpoints/step_00000008"
    )
    theirs = (bench.root / "run/checkpoints/step_00000008/model.safetensors").read_bytes()
    _train(bench, "run", 10, "--set", "runconfig.max_checkpoints=1", code=None)
    assert theirs in _weights(bench.root / "run").values()


@probe(WEIGHTS, "model.safetensors", "optimizer.safetensors", "state.json")
def the_newest_checkpoint_is_damaged(bench: Bench, name: str) -> None:
    _train(bench, "whole", 8)
    _train(bench, "run", 6)
    path = bench.root / "run/checkpoints/step_00000006" / name
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)
    words = _train(bench, "run", 8)
    assert "step_00000006" in words
    assert (
        _weights(bench.root / "run/checkpoints")["step_00000008"]
        == _weights(bench.root / "whole")["step_00000008"]
    )


@probe(WEIGHTS, "checkpoints", "run.json", "run.lock", "metrics.jsonl", "params.json")
def links_and_strangers_files_in_the_run_folder(bench: Bench, name: str) -> None:
    theirs = bench.mine("theirs/file")
    (bench.root / "run").mkdir()
    (bench.root / "run" / name).symlink_to(theirs.parent if name == "checkpoints" else theirs)
    _train(bench, "run", 2, code=None)
    _train(bench, "run", 2, *ANEW, code=None)
    assert theirs.read_text() == MINE
    assert [path.name for path in theirs.parent.iterdir()] == ["file"]


@probe(WEIGHTS)
def a_stage_from_another_runs_checkpoint_keeps_that_run(bench: Bench) -> None:
    _train(bench, "first", 4)
    before = _weights(bench.root / "first")
    _train(bench, "second", 6, "--checkpoint", str(bench.root / "first"))
    assert _weights(bench.root / "first") == before


@probe(WEIGHTS)
def temporary_files_of_a_killed_run_go_and_others_stay(bench: Bench) -> None:
    _train(bench, "run", 2)
    ours = bench.write("run/.metrics.jsonl.1-00.btlm-tmp", "half")
    theirs = bench.mine("run/.draft.tmp")
    _train(bench, "run", 4)
    assert not ours.exists()
    assert theirs.read_text() == MINE


# Exports -----------------------------------------------------------------------------------------------------------


@probe(EXPORTS, "npy", "megatron", "mds")
def into_a_folder_with_files_of_the_user(bench: Bench, to: str) -> None:
    root = bench.dataset()
    bench.run("export", root, "--to", to, "--out", bench.root / "sound", code=0)
    names = [
        path.relative_to(bench.root / "sound") for path in (bench.root / "sound").rglob("*") if path.is_file()
    ]
    for name in names:
        theirs = bench.mine(f"out-{name.name}/{name}")
        for more in ([], ["--overwrite"]):
            assert (
                bench.run("export", root, "--to", to, "--out", bench.root / f"out-{name.name}", *more).code
                == 4
            )
        assert theirs.read_text() == MINE


@probe(EXPORTS, "../theirs/file", "/tmp/x", "..", "a\0b", "train/../../theirs/file")
def an_export_json_that_names_files_outside(bench: Bench, name: str) -> None:
    root = bench.dataset()
    theirs = bench.mine("theirs/file")
    bench.run("export", root, "--to", "npy", "--out", bench.root / "out", code=0)
    path = bench.root / "out/export.json"
    tree = json.loads(path.read_bytes())
    next(iter(tree["sets"][""]["splits"].values()))["files"][0]["name"] = name
    path.write_text(json.dumps(tree))
    bench.run("export", root, "--to", "npy", "--out", bench.root / "out", "--overwrite")
    assert theirs.read_text() == MINE


@probe(EXPORTS, "{", "[]", "null", '{"format_version": 2}', "[" * 100_000, "\ufeff{}", '{"a":' * 5000)
def a_record_of_an_export_that_is_damaged(bench: Bench, text: str) -> None:
    root = bench.dataset()
    for name in ("export.json", "exporting.json"):
        theirs = bench.mine(f"{name}-out/train.bin")
        bench.write(f"{name}-out/{name}", text)
        for more in ([], ["--overwrite"]):
            assert (
                bench.run("export", root, "--to", "npy", "--out", bench.root / f"{name}-out", *more).code == 4
            )
        assert theirs.read_text() == MINE


@probe(EXPORTS, "npy", "megatron", "mds", slow=True)
def onto_a_full_disk_and_again(bench: Bench, to: str) -> None:
    """A limit on the size of files stands for the full disk: both are an OSError when bytes are written."""
    root = bench.dataset()
    bench.run("export", root, "--to", to, "--out", bench.root / "sound", code=0)
    arguments = ["export", root, "--to", to, "--out", bench.root / "out"]
    done = bench.process(*arguments, prefix=["bash", "-c", 'ulimit -f 4; trap "" XFSZ; exec "$@"', "-"])
    assert done.returncode == 4, done.stderr[-500:]
    assert done.stderr.startswith(b"error: "), done.stderr[-500:]
    assert bench.process(*arguments).returncode == 0
    expected = bench.hashes("sound")
    assert bench.hashes("out") == expected


@probe(EXPORTS)
def through_a_linked_out(bench: Bench) -> None:
    root = bench.dataset()
    theirs = bench.mine("theirs/train.bin")
    (bench.root / "out").mkdir()
    (bench.root / "out/train.bin").symlink_to(theirs)
    (bench.root / "out/export.lock").symlink_to(theirs)
    bench.run("export", root, "--to", "npy", "--out", bench.root / "out", "--overwrite")
    assert theirs.read_text() == MINE


@probe(EXPORTS, slow=True)
def two_at_once_into_one_folder(bench: Bench) -> None:
    import subprocess
    import sys

    root = bench.dataset()
    bench.run("export", root, "--to", "npy", "--out", bench.root / "sound", code=0)
    words = [
        sys.executable,
        "-m",
        "btlm_data",
        "export",
        str(root),
        "--to",
        "npy",
        "--out",
        str(bench.root / "out"),
    ]
    both = [subprocess.Popen(words, stderr=subprocess.PIPE, env={**os.environ}) for _ in range(2)]
    for one in both:
        _, errors = one.communicate(timeout=120)
        assert one.returncode in (0, 4)
        assert b"Traceback" not in errors
    assert bench.hashes("out") == bench.hashes("sound")
