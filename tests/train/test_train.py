"""Training runs, cut short and taken up again in every way, give what an undisturbed run gives."""

from __future__ import annotations

import json
import math
import multiprocessing
import random
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from safetensors import SafetensorError

from btlm_data.errors import BtlmError, ConfigError, DataError, OutputError, SafetyStop
from btlm_data.formats.dataset import Tokenizer
from btlm_train import checkpoint
from btlm_train.parameters import load_params
from btlm_train.training import Trainer, World, joined, train
from btlm_train.training.run_folder import locked
from tests.train import tiny


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Bit-identical sums need a fixed number of threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write_shards(tmp_path_factory.mktemp("data") / "train")


def trained(
    params: Path, folder: Path, *overrides: str, start: str | None = None, evaluating: bool = False
) -> Trainer:
    with joined("cpu") as world:
        return train(
            load_params(str(params), overrides), folder, world, checkpoint_from=start, evaluating=evaluating
        )


@pytest.fixture(scope="module")
def whole(
    data: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict[int, dict[str, float]], dict[str, torch.Tensor]]:
    """An undisturbed run of 40 steps: its parameters, its curve, its final weights."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("whole")
    params = tiny.write_params(folder / "params.yaml", data)
    trained(params, folder / "run")
    found = checkpoint.newest(folder / "run" / "checkpoints")
    assert found is not None
    return params, tiny.losses(folder / "run"), found.weights()


def final_weights(folder: Path) -> dict[str, torch.Tensor]:
    found = checkpoint.newest(folder / "checkpoints")
    assert found is not None
    return found.weights()


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return set(a) == set(b) and all(torch.equal(a[name], b[name]) for name in a)


def test_a_run_learns_and_beats_the_unigram_model(whole: Any, data: Path, tmp_path: Path) -> None:
    params, curve, _ = whole
    assert list(curve) == list(range(1, 41))
    assert curve[1]["learning_rate"] == 0.0
    assert curve[1]["loss"] == curve[2]["loss"] or curve[1]["tokens"] == tiny.BATCH * tiny.LENGTH
    trainer = trained(params, tmp_path / "long", "runconfig.max_steps=150")
    assert trainer.final["cross_entropy"] < trainer.final["unigram_entropy"] - 0.5
    assert trainer.final["unigram_entropy"] == pytest.approx(math.log(tiny.VOCAB), abs=0.1)
    assert json.loads((tmp_path / "long" / "metrics.jsonl").read_text().splitlines()[-1])["event"] == "end"
    assert list((tmp_path / "long" / "events").iterdir())


@pytest.mark.parametrize("stop", [1, 7, 13, 15, 29, 39])
def test_resumed_at_a_step_equals_undisturbed(whole: Any, tmp_path: Path, stop: int) -> None:
    """60 samples in batches of 4: an epoch is 15 steps, so 15 and 29 sit at and before its end."""
    params, curve, weights = whole
    trained(params, tmp_path / "run", f"runconfig.max_steps={stop}")
    trained(params, tmp_path / "run")
    assert tiny.losses(tmp_path / "run") == curve
    assert same(final_weights(tmp_path / "run"), weights)


@pytest.mark.stress
@pytest.mark.parametrize("workers", [0, 2])
def test_resumed_at_every_step_equals_undisturbed(whole: Any, tmp_path: Path, workers: int) -> None:
    params, curve, weights = whole
    for stop in range(1, 40):
        folder = tmp_path / str(stop)
        trained(params, folder, f"runconfig.max_steps={stop}", f"train_input.num_workers={workers}")
        trained(params, folder, f"train_input.num_workers={2 - workers}")
        assert tiny.losses(folder) == curve, f"stopped at {stop}"
        assert same(final_weights(folder), weights), f"stopped at {stop}"


def _rank(
    rank: int, world: int, port: int, parallel: Any, jobs: list[tuple[str, str, tuple[str, ...]]]
) -> None:
    """One of several ranks, in a process of its own: each job is one run."""
    import os

    torch.set_num_threads(1)
    os.environ |= {
        "RANK": str(rank),
        "WORLD_SIZE": str(world),
        "LOCAL_RANK": str(rank),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    with joined("cpu", parallel) as joined_world:
        for params, folder, overrides in jobs:
            train(load_params(params, overrides), Path(folder), joined_world)


def on_ranks(count: int, parallel: str, jobs: list[tuple[str, str, tuple[str, ...]]]) -> None:
    """Run the jobs one after the other on `count` ranks; a busy machine may need half a minute for each."""
    import socket

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = multiprocessing.get_context("spawn")
    processes = [
        context.Process(target=_rank, args=(rank, count, port, parallel, jobs)) for rank in range(count)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60 + 30 * len(jobs))
    exits = [process.exitcode for process in processes]
    for process in processes:
        process.kill()
    assert exits == [0] * count


def assert_close_curves(ours: dict[int, dict[str, float]], theirs: dict[int, dict[str, float]]) -> None:
    assert list(ours) == list(theirs)
    for step, line in theirs.items():
        for name, value in line.items():
            assert ours[step][name] == pytest.approx(value, rel=2e-4, abs=1e-6), f"{name} of step {step}"


@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_two_ranks_equal_one_within_rounding(whole: Any, tmp_path: Path, parallel: str) -> None:
    """From the start; begun on one rank and continued on two; and with micro-batches. Then one rank goes on
    from two.
    """
    params, curve, _ = whole
    trained(params, tmp_path / "grown", "runconfig.max_steps=17")
    jobs: list[tuple[str, str, tuple[str, ...]]] = [
        (str(params), str(tmp_path / "both"), ()),
        (str(params), str(tmp_path / "grown"), ()),
        (str(params), str(tmp_path / "shrunk"), ("runconfig.max_steps=17", "train_input.micro_batch_size=2")),
    ]
    on_ranks(2, parallel, jobs)
    trained(params, tmp_path / "shrunk")
    for name in ("both", "grown", "shrunk"):
        assert_close_curves(tiny.losses(tmp_path / name), curve)


@pytest.mark.stress
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_two_ranks_resume_at_every_step(whole: Any, tmp_path: Path, parallel: str, workers: int) -> None:
    """Stopped and resumed on two ranks; every other run was begun on one."""
    params, curve, _ = whole
    jobs: list[tuple[str, str, tuple[str, ...]]] = []
    for stop in range(1, 40):
        first = (
            str(params),
            str(tmp_path / str(stop)),
            (f"runconfig.max_steps={stop}", f"train_input.num_workers={workers}"),
        )
        if stop % 2:
            trained(Path(first[0]), Path(first[1]), *first[2])
        else:
            jobs.append(first)
        jobs.append((str(params), str(tmp_path / str(stop)), (f"train_input.num_workers={workers}",)))
    on_ranks(2, parallel, jobs)
    for stop in range(1, 40):
        assert_close_curves(tiny.losses(tmp_path / str(stop)), curve)


def killed_again_and_again(params: Path, folder: Path, seed: int, most: int) -> int:
    """Start, SIGKILL after a random time, start again, until a run ends by itself. Returns how often it was
    killed.
    """
    rng = random.Random(seed)
    kills = 0
    while True:
        with subprocess.Popen(
            tiny.command(params, folder),
            env=tiny.environment(),
            stderr=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            text=True,
        ) as process:
            assert process.stderr is not None
            if kills < most:
                for line in process.stderr:  # the dying is during training, not during imports
                    if line.startswith(("step ", "Checkpoint")) and rng.random() < 0.3:
                        time.sleep(rng.random() * 0.02)
                        break
                process.send_signal(signal.SIGKILL)
            process.stderr.read()
        if process.returncode == 0:
            return kills
        assert process.returncode == -signal.SIGKILL
        kills += 1


def test_killed_and_rerun_equals_undisturbed(whole: Any, data: Path, tmp_path: Path) -> None:
    """kill -9 at random moments, a checkpoint at every step: the curve is that of an undisturbed run, bit for
    bit.
    """
    _, curve, weights = whole
    often = tiny.write_params(
        tmp_path / "params.yaml", data, runconfig={"checkpoint_steps": 1, "max_checkpoints": 2}
    )
    assert killed_again_and_again(often, tmp_path / "run", seed=1, most=2) >= 1
    assert tiny.losses(tmp_path / "run") == curve
    assert same(final_weights(tmp_path / "run"), weights)
    assert len(checkpoint.list_steps(tmp_path / "run" / "checkpoints")) == 2
    assert not list((tmp_path / "run" / "checkpoints").glob(".*"))


@pytest.mark.stress
def test_killed_many_times_equals_undisturbed(whole: Any, data: Path, tmp_path: Path) -> None:
    _, curve, weights = whole
    often = tiny.write_params(
        tmp_path / "params.yaml", data, runconfig={"checkpoint_steps": 1, "max_checkpoints": 2}
    )
    for seed in range(4):
        killed_again_and_again(often, tmp_path / str(seed), seed, most=8)
        assert tiny.losses(tmp_path / str(seed)) == curve
        assert same(final_weights(tmp_path / str(seed)), weights)


@pytest.mark.parametrize("damage", ["flip", "truncate", "remove", "state", "no state"])
def test_a_torn_checkpoint_is_named_and_passed_over(
    whole: Any, tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    params, curve, weights = whole
    trained(params, tmp_path / "run", "runconfig.max_steps=30")
    torn = checkpoint.list_steps(tmp_path / "run" / "checkpoints")[-1]
    file = torn / "optimizer.safetensors"
    content = bytearray(file.read_bytes())
    if damage == "flip":
        content[len(content) // 2] ^= 1
        file.write_bytes(content)
    elif damage == "truncate":
        file.write_bytes(content[:-1])
    elif damage == "remove":
        file.unlink()
    elif damage == "state":
        (torn / "state.json").write_text('{"step": 30')
    else:
        (torn / "state.json").unlink()
    trained(params, tmp_path / "run")
    assert any(str(torn) in record.message and "torn" in record.message for record in caplog.records)
    assert tiny.losses(tmp_path / "run") == curve
    assert same(final_weights(tmp_path / "run"), weights)


def test_accumulated_micro_batches_change_only_rounding(whole: Any, tmp_path: Path) -> None:
    params, curve, _ = whole
    trained(params, tmp_path / "micro", "train_input.micro_batch_size=1")
    assert_close_curves(tiny.losses(tmp_path / "micro"), curve)


def test_grad_accum_steps_multiply_the_batch(whole: Any, tmp_path: Path) -> None:
    params, curve, _ = whole
    trained(params, tmp_path / "run", "train_input.batch_size=2", "runconfig.grad_accum_steps=2")
    assert_close_curves(tiny.losses(tmp_path / "run"), curve)


def test_checkpointed_and_compiled_options_change_only_rounding(whole: Any, tmp_path: Path) -> None:
    params, curve, _ = whole
    trained(params, tmp_path / "run", "runconfig.activation_checkpointing=true")
    assert_close_curves(tiny.losses(tmp_path / "run"), curve)


def test_dropout_resumes_exactly(whole: Any, tmp_path: Path) -> None:
    params, curve, _ = whole
    options = ("model.dropout_rate=0.1",)
    trained(params, tmp_path / "whole", *options)
    trained(params, tmp_path / "cut", *options, "runconfig.max_steps=12")
    trained(params, tmp_path / "cut", *options)
    assert tiny.losses(tmp_path / "cut") == tiny.losses(tmp_path / "whole")
    assert tiny.losses(tmp_path / "cut")[40] != curve[40]


def test_stage_two_continues_step_and_schedule_on_other_data(
    whole: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Longer sequences from other documents, half the batch: as many tokens a step; the rate goes on where it
    was.
    """
    params, curve, _ = whole
    caplog.set_level("INFO")
    trained(params, tmp_path / "one", "runconfig.max_steps=20")
    longer = tiny.write_shards(tmp_path / "longer", samples=40, length=2 * tiny.LENGTH, seed=9)
    second = tiny.write_params(
        tmp_path / "two.yaml",
        longer,
        train_input={"batch_size": tiny.BATCH // 2},
        model=tiny.MODEL | {"max_position_embeddings": 2 * tiny.LENGTH},
    )
    trained(second, tmp_path / "two", "runconfig.max_steps=30", start=str(tmp_path / "one"))
    trained(
        second, tmp_path / "two", start=str(tmp_path / "one")
    )  # resumed from its own checkpoint, not from stage 1's
    figures = tiny.losses(tmp_path / "two")
    assert list(figures) == list(range(21, 41))
    assert [line["learning_rate"] for line in figures.values()] == [
        curve[step]["learning_rate"] for step in figures
    ]
    assert figures[40]["tokens"] == curve[40]["tokens"]
    assert any("starting at its first sample" in record.message for record in caplog.records)
    assert any("Continuing from step 30" in record.message for record in caplog.records)


def test_weights_alone_can_be_taken_over(whole: Any, tmp_path: Path) -> None:
    params, _, _ = whole
    trained(params, tmp_path / "one", "runconfig.max_steps=5")
    trainer = trained(
        params,
        tmp_path / "two",
        "runconfig.max_steps=3",
        "runconfig.load_checkpoint_states=model",
        start=str(tmp_path / "one"),
    )
    assert (trainer.step, trainer.optimizer.updates) == (3, 3)


def test_evaluation_during_and_after_training(whole: Any, tmp_path: Path) -> None:
    params, _, _ = whole
    trained(params, tmp_path / "run", "runconfig.eval_frequency=20", evaluating=True)
    lines = [json.loads(text) for text in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    during = [line for line in lines if line.get("kind") == "validation"]
    assert [line["step"] for line in during] == [20, 40]
    assert during[1]["loss"] < during[0]["loss"]
    assert during[1]["tokens"] == 60 * tiny.LENGTH - tiny.LENGTH // 2
    assert during[1]["perplexity"] == pytest.approx(math.exp(during[1]["loss"]))
    result = tiny.run(params, tmp_path / "run", "--json", mode="eval")
    assert result.returncode == 0, result.stderr
    (after,) = json.loads(result.stdout)
    assert after["step"] == 40
    assert after["loss"] == pytest.approx(during[1]["loss"], rel=1e-6)
    (stored,) = json.loads((tmp_path / "run" / "evaluation.json").read_text())
    assert len(stored["by_position"]) == tiny.LENGTH


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train_input": {"data_dir": None}}, "train_input.data_dir is not set"),
        ({"train_input": {"data_dir": "nowhere"}}, "no such folder"),
        ({"model": tiny.MODEL | {"max_position_embeddings": 32}}, "holds samples of 16 tokens"),
    ],
)
def test_unfit_data_stops_before_the_model_is_built(
    data: Path, tmp_path: Path, changes: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    params = tiny.write_params(tmp_path / "params.yaml", data, **changes)
    monkeypatch.setattr(Trainer, "build", None)
    with pytest.raises(ConfigError, match=message):
        trained(params, tmp_path / "run")


def test_a_larger_vocabulary_in_the_data_is_refused(tmp_path: Path) -> None:
    shards = tiny.write_shards(tmp_path / "shards" / "train")
    tiny.write_manifest(tmp_path / "shards", tokenizer=Tokenizer("other", "f", 1, 1000))
    with pytest.raises(ConfigError, match="vocab_size"):
        trained(tiny.write_params(tmp_path / "params.yaml", shards), tmp_path / "run")


def test_another_architecture_is_refused_by_name(whole: Any, tmp_path: Path) -> None:
    params, _, _ = whole
    trained(params, tmp_path / "run", "runconfig.max_steps=2")
    with pytest.raises(ConfigError, match="filter_size: 24 then, 32 now"):
        trained(params, tmp_path / "run", "model.filter_size=32")


def test_changed_data_is_refused_when_resuming(tmp_path: Path) -> None:
    shards = tiny.write_shards(tmp_path / "train")
    params = tiny.write_params(tmp_path / "params.yaml", shards)
    trained(params, tmp_path / "run", "runconfig.max_steps=2")
    (shards / "data-00001.h5").unlink()
    with pytest.raises(BtlmError, match=r"data-00001\.h5"):
        trained(params, tmp_path / "run")


def test_a_loss_that_is_not_finite_stops_before_the_weights_change(whole: Any, tmp_path: Path) -> None:
    params, _, _ = whole
    with pytest.raises(SafetyStop, match="step 0"):
        trained(params, tmp_path / "run", "model.embeddings_scale=1e38")
    assert not checkpoint.list_steps(tmp_path / "run" / "checkpoints")


def test_a_full_disk_is_said_plainly_and_leaves_the_checkpoint_before(
    whole: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    params, curve, _ = whole
    trained(params, tmp_path / "run", "runconfig.max_steps=10")

    def full(*_: Any, **__: Any) -> None:
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    with monkeypatch.context() as patch:
        patch.setattr(safetensors.torch, "save_file", full)
        with pytest.raises(OutputError, match="The disk is full"):
            trained(params, tmp_path / "run")
    assert [path.name for path in (tmp_path / "run/checkpoints").iterdir()] == ["step_00000010"]
    trained(params, tmp_path / "run")
    assert tiny.losses(tmp_path / "run") == curve


def test_a_folder_that_cannot_be_made_is_said_plainly(whole: Any, tmp_path: Path) -> None:
    params, _, _ = whole
    (tmp_path / "file").write_text("x")
    for arguments in (
        ["run", "--params", str(params), "--mode", "train", "--model-dir"],
        ["export", str(params.parent / "run"), "--to", "hf", "--out"],
    ):
        result = tiny.invoke(*arguments, tmp_path / "file" / "below")
        assert result.exit_code == OutputError.exit_code, result.output
        assert "could not be written" in result.output


def test_two_runs_in_one_folder_are_refused(whole: Any, tmp_path: Path) -> None:
    params, _, _ = whole
    with locked(tmp_path / "run"), pytest.raises(OutputError, match="run is in use by process"):
        trained(params, tmp_path / "run")


def test_a_batch_that_the_ranks_cannot_share_is_refused(whole: Any, tmp_path: Path) -> None:
    params, _, _ = whole
    with pytest.raises(ConfigError, match="not a multiple of the 3 ranks"):
        train(load_params(str(params)), tmp_path, World(0, 3, torch.device("cpu"), "none"))


def test_sigterm_writes_a_checkpoint_and_says_how_to_go_on(whole: Any, tmp_path: Path) -> None:
    params, curve, _ = whole
    command = tiny.command(params, tmp_path / "run")
    with subprocess.Popen(
        command, env=tiny.environment(), stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True
    ) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if line.startswith("step 2/"):
                process.send_signal(signal.SIGTERM)
                break
        rest = process.stderr.read()
    assert process.returncode in (0, 130)
    assert process.returncode == 0 or "same command again" in rest
    trained(params, tmp_path / "run")
    assert tiny.losses(tmp_path / "run") == curve


def test_no_checkpoint_given_by_name(whole: Any, tmp_path: Path) -> None:
    params, _, _ = whole
    with pytest.raises(ConfigError, match="There is no checkpoint"):
        trained(params, tmp_path / "run", start=str(tmp_path / "nowhere"))
    pickled = tmp_path / "model.pt"
    pickled.write_bytes(b"\x80\x02.")
    with pytest.raises(DataError, match="not an archive"):
        trained(params, tmp_path / "run", start=str(pickled))
    (tmp_path / "torn.safetensors").write_bytes(b"\x00" * 20)
    with pytest.raises(DataError, match="torn"):
        trained(params, tmp_path / "run", start=str(tmp_path / "torn.safetensors"))
