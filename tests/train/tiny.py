"""Shards, parameters and runs of a model so small that forty steps take a second."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np
import yaml

from btlm_data import entry
from btlm_data.formats import dataset
from btlm_train import cli

LENGTH, VOCAB, BATCH = 16, 64, 4
MODEL: dict[str, Any] = {
    "vocab_size": VOCAB, "max_position_embeddings": LENGTH, "hidden_size": 16, "num_hidden_layers": 2, "num_heads": 2, "filter_size": 24,
    "position_embedding_type": "alibi", "nonlinearity": "swiglu", "initializer": {"name": "truncated_normal", "std": 0.073},
    "embedding_initializer": {"name": "truncated_normal", "std": 0.073}, "mup_base_hidden_size": 8, "mup_base_filter_size": 12,
    "embeddings_scale": 14.6, "output_logits_alpha": 2.22, "loss_scaling": "num_tokens", "dropout_rate": 0.0,
}  # fmt: skip


def write_shards(folder: Path, samples: int = 60, length: int = LENGTH, seed: int = 0) -> Path:
    """A noisy but learnable stream: each token is mostly the one before plus one. The last sample is
    padded.
    """
    rng = np.random.default_rng(seed)
    stream = (
        np.cumsum(rng.random(samples * length + 1) < 0.9) + rng.integers(0, 3, samples * length + 1)
    ) % VOCAB
    data = np.stack(
        [
            stream[:-1].reshape(samples, length),
            np.ones((samples, length), int),
            stream[1:].reshape(samples, length),
        ],
        axis=1,
    )
    data[-1, :, length // 2 :] = 0
    folder.mkdir(parents=True)
    for part, rows in enumerate(np.array_split(data.astype(np.int32), 2)):
        with h5py.File(folder / f"data-{part:05}.h5", "w") as file:
            file.create_dataset("data", data=rows, chunks=(1, 3, length), compression="gzip")
            file.attrs["n_examples"] = len(rows)
    return folder


def write_manifest(root: Path, **changes: Any) -> Path:
    """A dataset.json in `root`, as the data side writes it, of the shards in root/train (and other
    splits).
    """
    splits = {}
    for folder in sorted(path for path in root.iterdir() if path.is_dir()):
        files = []
        for path in sorted(folder.glob("*.h5")):
            with h5py.File(path, "r") as file:
                count = len(file["data"])
            digest = hashlib.sha256(path.read_bytes()).hexdigest()
            files.append(dataset.ShardFile(path.name, path.stat().st_size, digest, count, count * 10))
        documents = dataset.StoredFile(dataset.DOCUMENTS, 0, "0" * 64)
        splits[folder.name] = dataset.Split(1, 1, 1, 1, files, documents)
    values: dict[str, Any] = {
        "fingerprint": "0" * 64, "configuration": {}, "source": dataset.SourceTotals(0, 0),
        "inputs": [], "left_out": [], "other_inputs": {},
        "tokenizer": dataset.Tokenizer("gpt2", "f", 50256, 50257), "seq_len": 10, "format": "sample",
        "shuffle": "none", "seed": 0, "dtype": "uint16", "set": dataset.SetPosition(), "splits": splits,
        "ledger": [], "dedupe": None, "outputs": [],
    }  # fmt: skip
    path = root / "dataset.json"
    path.write_bytes(dataset.encode(dataset.Dataset(**(values | changes))))
    return path


def write_params(path: Path, data: Path, **changes: dict[str, Any]) -> Path:
    """The older, flat form; `changes` are laid over its sections."""
    tree: dict[str, dict[str, Any]] = {
        "train_input": {"data_dir": str(data), "batch_size": BATCH, "shuffle": True, "shuffle_seed": 3, "num_workers": 0},
        "eval_input": {"data_dir": str(data), "batch_size": BATCH, "drop_last": False},
        "model": MODEL,
        "optimizer": {
            "optimizer_type": "AdamW", "betas": [0.9, 0.95], "eps": 1e-8, "weight_decay": 0.1, "max_gradient_norm": 1.0,
            "learning_rate": [
                {"scheduler": "Linear", "initial_learning_rate": 0.0, "end_learning_rate": 0.012, "total_iters": 5},
                {"scheduler": "Linear", "initial_learning_rate": 0.012, "end_learning_rate": 0.001, "total_iters": 40},
            ],
        },
        "runconfig": {"max_steps": 40, "log_steps": 1, "checkpoint_steps": 10, "seed": 1},
    }  # fmt: skip
    for section, values in changes.items():
        tree[section] = tree[section] | values
    path.write_text(yaml.safe_dump(tree))
    return path


def losses(folder: Path, kind: str = "train") -> dict[int, dict[str, float]]:
    """The figures of each step in metrics.jsonl, timing left out; a step written twice is an error."""
    found: dict[int, dict[str, float]] = {}
    for text in (folder / "metrics.jsonl").read_text().splitlines():
        line = json.loads(text)
        if line.get("kind") == kind:
            assert line["step"] not in found, f"step {line['step']} is there twice"
            found[line["step"]] = {
                k: line[k] for k in ("loss", "cross_entropy", "learning_rate", "gradient_norm", "tokens")
            }
    return found


def command(params: Path, folder: Path, *more: str, mode: str = "train", ranks: int = 1) -> list[str]:
    """The command line of a run, under torchrun where several ranks are asked for."""
    launcher = (
        ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)] if ranks > 1 else []
    )
    return [
        sys.executable,
        *launcher,
        "-m",
        "btlm_train.cli",
        "run",
        "--params",
        str(params),
        "--mode",
        mode,
        "--model-dir",
        str(folder),
        "--device",
        "cpu",
        *more,
    ]


class Result(NamedTuple):
    """What a command printed and how it ended."""

    exit_code: int
    stdout: str
    stderr: str

    @property
    def output(self) -> str:
        """Both, one after the other."""
        return self.stdout + self.stderr


def invoke(*arguments: object) -> Result:
    """A command of btlm-train in this process, with the program's own handling of errors."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = entry._exit_code(cli.cli, [str(argument) for argument in arguments])
    return Result(code, out.getvalue(), err.getvalue())


def environment() -> dict[str, str]:
    """One thread a process: the same sums in the same order, and no fight over cores."""
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])}


def run(
    params: Path, folder: Path, *more: str, mode: str = "train", ranks: int = 1
) -> subprocess.CompletedProcess[str]:
    """Run in processes of its own."""
    return subprocess.run(
        command(params, folder, *more, mode=mode, ranks=ranks),
        env=environment(),
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
