"""The constants of btlm_data/estimate.py, measured again: `python -m tests.benchmarks.rates CORPUS`.

Prepares the corpus three times (as it comes; in little memory, so that keys and samples go through files; with evaluation
sets where EVALUATION is given as a second argument) with one worker, and prints what each step took of what `--plan`
expected: CPU seconds, bytes in the work folder, bytes written elsewhere. A constant is right where the ratio is near 1.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

from tests import costs

VARIANTS = {
    "as it comes": ([], {}),
    "little memory": (["run.memory=40MB"], {"BTLM_SCATTER": "1"}),
    "vsl": (["format=vsl"], {}),
    "text": (["run.emit_text=OUT-text"], {}),
}


def main(corpus: str, evaluation: str | None = None) -> None:
    variants = dict(VARIANTS)
    if evaluation is not None:
        variants["evaluation"] = ([f"holdout.decontaminate={json.dumps([evaluation])}"], {})
    for name, (assignments, environment) in variants.items():
        print(f"\n{name}\n{'step':20} {'tasks':>9} {'CPU s':>17} {'ratio':>6} {'work MB':>17} {'out MB':>17}")
        with tempfile.TemporaryDirectory(prefix="btlm-rates-") as folder:
            out = Path(folder) / "out"
            options = [assignment.replace("OUT", str(out)) for assignment in assignments]
            real = costs.measure(Path(corpus).resolve(), out, *options, **environment)
        expected = {step["step"]: step for step in real["plan"]["steps"]}
        for step, took in real["steps"].items():
            said = expected[step]
            ratio = said["cpu_seconds"] / max(1e-6, took["cpu_seconds"])
            print(
                f"{step:20} {said['tasks']:4.0f}/{took['tasks']:4.0f} "
                f"{said['cpu_seconds']:8.3f}/{took['cpu_seconds']:8.3f} {ratio:6.2f} "
                f"{said['work_bytes'] / 1e6:8.1f}/{took['work_bytes'] / 1e6:8.1f} "
                f"{said['out_bytes'] / 1e6:8.1f}/{took['out_bytes'] / 1e6:8.1f}"
            )
        for amount in ("cpu_seconds", "work_bytes", "memory_bytes"):
            took = real[amount if amount == "cpu_seconds" else f"peak_{amount}"]
            print(f"{amount}: {real['plan'][amount]:.4g} expected, {took:.4g} taken")


if __name__ == "__main__":
    main(*sys.argv[1:])
