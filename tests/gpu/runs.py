"""Runs of `btlm-train` on a GPU: the same twice, the same after an interruption, and near a CPU's."""

from __future__ import annotations

import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from safetensors.torch import load_file

STEPS = 20


def _trainer(*arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "btlm_train.cli", *arguments], capture_output=True, text=True, timeout=300
    )
    if done.returncode:
        raise RuntimeError(f"{' '.join(arguments)} ended with {done.returncode}: {done.stderr[-2000:]}")
    return done.stdout


def _train(data: Path, folder: Path, device: str, steps: int, *more: str) -> None:
    settings = {
        "train_input.data_dir": data / "train",
        "eval_input.data_dir": data / "validation",
        "runconfig.max_steps": steps,
        "runconfig.checkpoint_steps": STEPS // 2,
        "runconfig.log_steps": 1,
    }
    chosen = [text for key, value in settings.items() for text in ("--set", f"{key}={value}")]
    _trainer(
        "run", "--params", "params_btlm_tiny_2k.yaml", "--mode", "train", "--model-dir", str(folder),
        "--device", device, *chosen, *more,
    )  # fmt: skip


def _losses(folder: Path) -> list[float]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if line.get("kind") == "train"]


def _weights(folder: Path) -> dict[str, Any]:
    newest = max((folder / "checkpoints").glob("step_*"))
    return load_file(newest / "model.safetensors")


def resumed_and_compared(data: Path, out: Path) -> bool:
    """Twenty steps of the tiny model, on the GPU at once, in two halves and compiled, and on the CPU."""
    with ThreadPoolExecutor() as side_by_side:
        for future in [
            side_by_side.submit(_train, data, out / "whole", "gpu", STEPS),
            side_by_side.submit(_train, data, out / "halves", "gpu", STEPS // 2),
            side_by_side.submit(_train, data, out / "cpu", "cpu", STEPS),
            side_by_side.submit(
                _train, data, out / "float32", "gpu", STEPS, "--set", "runconfig.precision=float32"
            ),
            side_by_side.submit(
                _train, data, out / "compiled", "gpu", STEPS, "--set", "runconfig.compile=true"
            ),
        ]:
            future.result()
        second_half = side_by_side.submit(_train, data, out / "halves", "gpu", STEPS)
        texts = [
            side_by_side.submit(
                _trainer, "generate", "--model-dir", str(out / "whole"), "--prompt", "The package",
                "--temperature", "0", "--max-new-tokens", "30", "--device", device,
            )
            for device in ("gpu", "cpu")
        ]  # fmt: skip
        tables = [
            side_by_side.submit(
                _trainer, "eval-lengths", "--model-dir", str(out / "whole"), "--data", str(data / "validation"),
                "--lengths", "512,2048", "--out", str(out / f"lengths-{device}"), "--device", device,
            )
            for device in ("gpu", "cpu")
        ]  # fmt: skip
        second_half.result()
    whole = _weights(out / "whole")
    held = True
    halves = _weights(out / "halves")
    equal = halves.keys() == whole.keys() and all(bool((whole[key] == halves[key]).all()) for key in whole)
    print(f"  weights after an interruption bit for bit those without: {equal}")
    held &= equal
    reference = _losses(out / "cpu")
    for name, most in (("whole", 2e-2), ("compiled", 2e-2), ("float32", 1e-3)):
        losses = _losses(out / name)
        far = max(abs(a - b) / b for a, b in zip(losses, reference, strict=True))
        print(f"  losses of {name}: {losses[0]:.4f} to {losses[-1]:.4f}; at most {far:.1e} from the CPU's")
        held &= len(losses) == STEPS and far <= most
    print(f"  the same text from GPU and CPU: {texts[0].result() == texts[1].result()}")
    for device, table in zip(("gpu", "cpu"), tables, strict=True):
        print(f"  by length on the {device}: " + table.result().strip().replace("\n", "\n  "))
    return held
