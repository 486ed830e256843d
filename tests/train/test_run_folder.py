"""A folder belongs to one run: nothing of another run is taken for its own, replaced or removed."""

from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from btlm_data.errors import DataError, OutputError
from btlm_data.formats.sealed_json import sealed
from btlm_data.storage.lease import Lease
from btlm_train import checkpoint
from btlm_train.checkpoint import State
from btlm_train.parameters import load_params
from btlm_train.training import Trainer, joined, train
from btlm_train.training.run_folder import begin_run, read_run
from tests.train import tiny

ANEW = "runconfig.autoload_last_checkpoint=false"
EVERY_2 = "runconfig.checkpoint_steps=2"


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def params(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    return tiny.write_params(folder / "params.yaml", tiny.write_shards(folder / "train"))


def trained(params: Path, folder: Path, steps: int, *overrides: str, start: Path | None = None) -> Trainer:
    settings = load_params(str(params), [f"runconfig.max_steps={steps}", *overrides])
    with joined("cpu") as world:
        return train(settings, folder, world, checkpoint_from=None if start is None else str(start))


def everything(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def weights(folder: Path, step: int) -> bytes:
    return (folder / "checkpoints" / f"step_{step:08d}" / "model.safetensors").read_bytes()


def run_of(folder: Path) -> str:
    present = read_run(folder)
    assert present is not None
    return present.run


@pytest.mark.parametrize("keep", [None, 1])
def test_a_new_beginning_keeps_the_earlier_run_whole(params: Path, tmp_path: Path, keep: int | None) -> None:
    run = tmp_path / "run"
    trained(params, run, 4, EVERY_2)
    first, before = run_of(run), everything(run)
    more = [f"runconfig.max_checkpoints={keep}"] if keep else []
    trained(params, run, 4, EVERY_2, ANEW, "runconfig.seed=7", *more)
    trained(params, tmp_path / "alone", 4, EVERY_2, "runconfig.seed=7", *more)
    assert weights(run, 4) == weights(tmp_path / "alone", 4)
    assert [p.name for p in checkpoint.list_steps(run / "checkpoints")] == [
        p.name for p in checkpoint.list_steps(tmp_path / "alone" / "checkpoints")
    ]
    assert everything(run / "earlier" / first) == before
    assert run_of(run) != first
    assert tiny.losses(run) == tiny.losses(tmp_path / "alone")


def test_a_third_run_moves_the_second_aside_too(params: Path, tmp_path: Path) -> None:
    runs = []
    for seed in (1, 2, 3):
        trained(params, tmp_path, 2, ANEW, f"runconfig.seed={seed}")
        runs.append(run_of(tmp_path))
    assert {path.name for path in (tmp_path / "earlier").iterdir()} == set(runs[:2])


def test_a_rerun_continues_the_new_run_and_not_the_earlier_longer_one(params: Path, tmp_path: Path) -> None:
    trained(params, tmp_path, 10)
    trained(params, tmp_path, 3, ANEW, "runconfig.seed=7")
    second = run_of(tmp_path)
    trainer = trained(params, tmp_path, 5, "runconfig.seed=7")
    assert trainer.step == 5
    assert run_of(tmp_path) == second
    assert list(tiny.losses(tmp_path)) == [1, 2, 3, 4, 5]


def test_branching_from_an_older_checkpoint_of_the_same_folder(params: Path, tmp_path: Path) -> None:
    trained(params, tmp_path, 6, EVERY_2)
    first = run_of(tmp_path)
    trainer = trained(params, tmp_path, 5, ANEW, start=tmp_path / "checkpoints" / "step_00000002")
    assert trainer.step == 5
    assert list(tiny.losses(tmp_path)) == [3, 4, 5]
    assert (tmp_path / "earlier" / first / "checkpoints" / "step_00000006").is_dir()


@pytest.mark.parametrize("parts", range(6))
def test_moving_a_run_aside_is_completed_after_a_kill(
    params: Path, tmp_path: Path, parts: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained(params, tmp_path, 4, EVERY_2)
    first, before = run_of(tmp_path), everything(tmp_path)
    rename = Path.rename
    renamed: list[Path] = []

    def dies(self: Path, target: Path) -> Path:
        if len(renamed) == parts:
            raise KeyboardInterrupt
        renamed.append(self)
        return rename(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", dies)
        try:
            begin_run(tmp_path, continuing=False)
        except KeyboardInterrupt:
            pass
        else:
            assert parts > len([name for name in before if "/" not in name])
    begin_run(tmp_path, continuing=True)
    moved = everything(tmp_path / "earlier" / first)
    assert {name: data for name, data in moved.items() if name != "moving"} == before
    assert "moving" not in moved
    assert run_of(tmp_path) != first
    trained(params, tmp_path, 2)
    assert list(tiny.losses(tmp_path)) == [1, 2]


def test_checkpoints_of_another_run_are_neither_continued_nor_rotated_away(
    params: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    trained(params, tmp_path / "other", 8, EVERY_2, "runconfig.seed=7")
    trained(params, tmp_path / "run", 2)
    shutil.copytree(tmp_path / "other" / "checkpoints", tmp_path / "run" / "checkpoints", dirs_exist_ok=True)
    shutil.copytree(  # a step of the run's own, again
        tmp_path / "other" / "checkpoints" / "step_00000002", tmp_path / "kept"
    )
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "step_00000002")
    trained(params, tmp_path / "alone", 2)
    shutil.copytree(
        tmp_path / "alone" / "checkpoints" / "step_00000002",
        tmp_path / "run" / "checkpoints" / "step_00000002",
    )
    state_path = tmp_path / "run" / "checkpoints" / "step_00000002" / "state.json"
    state = json.loads(state_path.read_text())
    state_path.write_bytes(sealed(state | {"run": run_of(tmp_path / "run")}))
    foreign = {step: weights(tmp_path / "other", step) for step in (4, 6, 8)}
    trainer = trained(params, tmp_path / "run", 8, EVERY_2, "runconfig.max_checkpoints=1")
    assert trainer.step == 8
    assert any("of another run" in record.message for record in caplog.records)
    trained(params, tmp_path / "whole", 8)
    assert weights(tmp_path / "run", 8) == weights(tmp_path / "whole", 8)
    run = run_of(tmp_path / "other")
    for step, data in foreign.items():
        aside = tmp_path / "run" / "checkpoints" / f"other-{run[:8]}-step_{step:08d}-1"
        assert (aside / "model.safetensors").read_bytes() == data
    assert len(checkpoint.own_steps(tmp_path / "run" / "checkpoints", run_of(tmp_path / "run"))) == 1


def test_a_folder_of_checkpoints_alone_is_continued_as_their_run(params: Path, tmp_path: Path) -> None:
    trained(params, tmp_path / "run", 4)
    (tmp_path / "copy").mkdir()
    shutil.copytree(tmp_path / "run" / "checkpoints", tmp_path / "copy" / "checkpoints")
    assert trained(params, tmp_path / "copy", 6).step == 6
    assert run_of(tmp_path / "copy") == run_of(tmp_path / "run")


def test_when_no_checkpoint_can_be_continued_the_run_stops(params: Path, tmp_path: Path) -> None:
    trained(params, tmp_path, 2)
    (tmp_path / "checkpoints" / "step_00000002" / "model.safetensors").write_bytes(b"")
    before = everything(tmp_path)
    with pytest.raises(DataError, match=r"None of the 1 checkpoints .* 0 bytes"):
        trained(params, tmp_path, 4)
    assert {name: data for name, data in everything(tmp_path).items() if name in before} == before


def test_a_finished_run_says_so_and_changes_nothing(
    params: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    trained(params, tmp_path, 3)
    before = everything(tmp_path)
    trainer = trained(params, tmp_path, 3)
    assert trainer.final == {}
    assert any("This run is finished" in record.message for record in caplog.records)
    assert everything(tmp_path) == before


def test_a_run_killed_after_its_last_checkpoint_ends_with_as_many_as_asked(
    params: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = [EVERY_2, "runconfig.max_checkpoints=2"]
    removed = checkpoint._remove

    def killed(path: Path) -> None:
        if (path.parent / "step_00000006").exists():
            raise KeyboardInterrupt
        removed(path)

    with monkeypatch.context() as patched:
        patched.setattr(checkpoint, "_remove", killed)
        with pytest.raises(KeyboardInterrupt):
            trained(params, tmp_path, 6, *settings)
    names = [path.name for path in checkpoint.list_steps(tmp_path / "checkpoints")]
    assert names == ["step_00000002", "step_00000004", "step_00000006"]
    trained(params, tmp_path, 6, *settings)
    names = [path.name for path in checkpoint.list_steps(tmp_path / "checkpoints")]
    assert names == ["step_00000004", "step_00000006"]


def test_changed_optimizer_settings_are_said(
    params: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    trained(params, tmp_path, 2)
    trained(params, tmp_path, 3, "optimizer.eps=1e-6", "optimizer.learning_rate=1e-3")
    (said,) = [record.message for record in caplog.records if "Changed since" in record.message]
    assert "optimizer.eps: 1e-08 then, 1e-06 now" in said
    assert "schedule" in said


@pytest.mark.parametrize("name", ["checkpoints", "events", "earlier"])
def test_nothing_is_written_through_a_link(params: Path, tmp_path: Path, name: str) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / name).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OutputError, match="symbolic link"):
        trained(params, tmp_path / "run", 1)
    assert not list((tmp_path / "elsewhere").iterdir())


@pytest.mark.parametrize("kind", ["folder", "pipe", "link"])
@pytest.mark.timeout(60)
def test_a_lock_that_is_none_is_refused_at_once(params: Path, tmp_path: Path, kind: str) -> None:
    (tmp_path / "run").mkdir()
    lock = tmp_path / "run" / "run.lock"
    make: dict[str, Callable[[], object]] = {
        "folder": lock.mkdir,
        "pipe": lambda: os.mkfifo(lock),
        "link": lambda: lock.symlink_to("nowhere"),
    }
    make[kind]()
    with pytest.raises(OutputError, match="not a lock file"):
        trained(params, tmp_path / "run", 1)


@pytest.mark.parametrize("name", ["events", "checkpoints", "metrics.jsonl", "params.json"])
def test_something_else_where_the_run_writes(params: Path, tmp_path: Path, name: str) -> None:
    (tmp_path / "run").mkdir()
    if name in ("events", "checkpoints"):
        (tmp_path / "run" / name).write_text("x")
    else:
        (tmp_path / "run" / name).mkdir()
    with pytest.raises(OutputError, match=name):
        trained(params, tmp_path / "run", 1)


def test_links_and_names_that_only_look_like_ours_are_left_alone(params: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run" / "checkpoints"
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "file").write_text("x")
    folder.mkdir(parents=True)
    (folder / ".step_mine.tmp").mkdir()
    (folder / ".step_00000001.1.btlm.tmp").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "metrics").write_text("x")
    begin_run(tmp_path / "run", continuing=True)
    (tmp_path / "run" / "metrics.jsonl").symlink_to(tmp_path / "metrics")
    trained(params, tmp_path / "run", 2, "runconfig.checkpoint_steps=1", "runconfig.max_checkpoints=1")
    assert (folder / ".step_mine.tmp").is_dir()
    assert (tmp_path / "elsewhere" / "file").read_text() == "x"
    assert (tmp_path / "metrics").read_text() == "x"


@pytest.mark.parametrize("name", ["metrics.jsonl", "params.json"])
def test_somebody_elses_file_is_not_replaced(params: Path, tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("mine")
    with pytest.raises(OutputError, match=f"{name} is there, and .* is not the folder of a run"):
        trained(params, tmp_path, 1)
    assert (tmp_path / name).read_text() == "mine"


def test_a_folder_taken_over_by_another_run_is_not_written_any_more(
    params: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def taken(_: object) -> None:
        raise OutputError("taken over by another run")

    monkeypatch.setattr(Lease, "check", taken)
    with pytest.raises(OutputError, match="taken over"):
        trained(params, tmp_path, 2, EVERY_2)
    assert not checkpoint.list_steps(tmp_path / "checkpoints")


def test_files_have_the_umasks_mode(params: Path, tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        trained(params, tmp_path, 1)
    finally:
        os.umask(before)
    modes = {path.name: oct(path.stat().st_mode & 0o777) for path in (tmp_path / "checkpoints").rglob("*.*")}
    assert set(modes.values()) == {"0o640"}


STATE = {
    "format_version": 2, "run": "0" * 32, "step": 1, "updates": 1, "tokens": 1, "seed": 1, "data": None, "model": {},
    "files": {},
}  # fmt: skip
BROKEN_STATES: dict[str, Any] = {
    "empty": b"", "no JSON": b"{", "a list": b"[]", "a number": b"3", "deep": b"[" * 100_000, "not text": b"\xff\xfe",
    "old": {"format_version": 1}, "new": {"format_version": 3}, "odd version": {"format_version": {"a": [1]}},
    "run": {"run": "../../etc"}, "no run": {"run": None}, "step text": {"step": "3"}, "step negative": {"step": -1},
    "step huge": {"step": 10**30}, "step fraction": {"step": 1.5}, "updates": {"updates": None},
    "tokens": {"tokens": []}, "seed": {"seed": "x"}, "data": {"data": [1]}, "model": {"model": 3}, "extra": {"evil": 1},
    "files list": {"files": []}, "outside": {"files": {"../../../etc/passwd": {"bytes": 1, "xxh3_128": "0" * 32}}},
    "digest": {"files": {"model.safetensors": {"bytes": 1, "xxh3_128": "x"}}},
    "bytes": {"files": {"model.safetensors": {"bytes": -1, "xxh3_128": "0" * 32}}}, "no files": {"files": {}},
    "wrong digest": {"files": {"model.safetensors": {"bytes": 1, "xxh3_128": "0" * 32}}},
    "huge": b" " * (2**26 + 1),
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN_STATES)
@pytest.mark.timeout(60)
def test_a_broken_state_is_answered_in_words(tmp_path: Path, name: str) -> None:
    change = BROKEN_STATES[name]
    folder = tmp_path / "checkpoints" / "step_00000001"
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(b"x")
    data = change if isinstance(change, bytes) else sealed(STATE | change)
    (folder / "state.json").write_bytes(data)
    reason = checkpoint.inspect(folder)
    assert isinstance(reason, str)
    with pytest.raises(DataError, match="torn"):
        checkpoint.find(folder)


def test_a_state_that_is_no_regular_file(tmp_path: Path) -> None:
    folder = tmp_path / "step_00000001"
    folder.mkdir()
    os.mkfifo(folder / "state.json")
    assert "not a regular file" in str(checkpoint.inspect(folder))
    (folder / "state.json").unlink()
    (folder / "state.json").mkdir()
    assert isinstance(checkpoint.inspect(folder), str)


@pytest.mark.parametrize("name", ["state.json", "model.safetensors", "optimizer.safetensors"])
def test_every_flipped_bit_of_a_checkpoint_is_noticed(params: Path, tmp_path: Path, name: str) -> None:
    """Unless it changes white space or the like: then the state means the same."""
    trained(params, tmp_path, 1)
    path = tmp_path / "checkpoints" / "step_00000001"
    expected = checkpoint.inspect(path)
    assert not isinstance(expected, str)
    rng = random.Random(0)
    whole = (path / name).read_bytes()
    for _ in range(200):
        data = bytearray(whole)
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        (path / name).write_bytes(data)
        found = checkpoint.inspect(path)
        assert isinstance(found, str) or (name == "state.json" and found == expected)


def damaged(folder: Path, step: int, **tensors: torch.Tensor | None) -> None:
    """Change tensors of a checkpoint and give it the matching checksums, as an attacker would."""
    path = folder / "checkpoints" / f"step_{step:08d}"
    state = checkpoint.read_state(path)
    assert isinstance(state, State)
    found = checkpoint.inspect(path)
    assert not isinstance(found, str)
    model, moments = found.weights(), found.optimizer()
    assert moments is not None
    for name, tensor in tensors.items():
        target = moments if name[:2] in ("m.", "v.") else model
        if tensor is None:
            del target[name]
        else:
            target[name] = tensor
    shutil.rmtree(path)
    checkpoint.save(folder / "checkpoints", state, model, moments, None)


@pytest.mark.parametrize(
    "tensors",
    [
        {"wte.weight": None},
        {"wte.weight": torch.zeros(3)},
        {"wte.weight": torch.zeros((tiny.VOCAB, 16), dtype=torch.int64)},
        {"blocks.0.attn.qkv.bias": torch.zeros(())},
        {"m.wte.weight": None},
        {"m.wte.weight": torch.zeros(1, 1)},
        {"v.ln_f.bias": torch.zeros(2)},
    ],
)
def test_tensors_that_are_not_the_models(params: Path, tmp_path: Path, tensors: dict[str, Any]) -> None:
    trained(params, tmp_path, 2)
    damaged(tmp_path, 2, **tensors)
    (name,) = tensors
    with pytest.raises(DataError, match=name):
        trained(params, tmp_path, 4)


@pytest.mark.parametrize(
    "state",
    [
        {"samples_streamed": 4},
        {"samples_streamed": 10**30, "__version__": 1, "dataset": {}},
        {"samples_streamed": 4, "__version__": 1, "dataset": 3},
        {"samples_streamed": 4, "__version__": 1, "dataset": {"data": 3}},
        {"samples_streamed": 4, "__version__": 1, "dataset": {"data": [{"layout": 1}]}},
        {"samples_streamed": True, "__version__": 1, "dataset": {}},
        {"samples_streamed": -4, "__version__": [], "dataset": {}},
    ],
)
def test_data_states_that_are_none(params: Path, tmp_path: Path, state: dict[str, Any]) -> None:
    trained(params, tmp_path, 2)
    path = tmp_path / "checkpoints" / "step_00000002" / "state.json"
    content = json.loads(path.read_text())
    dataset = state.get("dataset")
    if isinstance(dataset, dict):
        state = state | {"dataset": content["data"]["dataset"] | dataset}
    path.write_bytes(sealed(content | {"data": state}))
    if "__version__" in state:
        with pytest.raises(DataError):
            trained(params, tmp_path, 4)
    else:
        trained(params, tmp_path, 4)


def test_a_run_leaves_the_processes_arithmetic_as_it_was(params: Path, tmp_path: Path) -> None:
    trained(params, tmp_path, 1)
    assert float(torch.tensor(2.0**-140) * 1.0) > 0, (
        "numbers below 2**-126 are flushed to 0 after the run too"
    )
