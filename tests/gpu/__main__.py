"""What only a GPU can show: the reference's numbers on it, FlexAttention against plain attention, a run that
is interrupted, and speed. Needs one GPU, and shards of `btlm-data prepare --source sample --seq-len 2048`.

python -m tests.gpu --data shards/ [--only WORD] [--out FOLDER]

Each check prints its figures and whether it held; the exit code is 1 if one did not.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path

import torch

from tests.gpu import numbers, repeats, runs, speed

CHECKS: dict[str, Callable[[Path, Path], bool]] = {
    "machine": speed.machine,
    "reference": numbers.reference,
    "attention": numbers.attention,
    "loss": numbers.loss,
    "runs": runs.resumed_and_compared,
    "parts": repeats.parts,
    "processes": repeats.processes,
    "sizes": speed.sizes,
    "attention speed": speed.attention,
    "speed": speed.speed,
}


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="a prepared dataset with train/")
    parser.add_argument("--only", default="", help="checks whose name is in this list, by commas")
    parser.add_argument("--out", type=Path, help="where runs are written (default: a temporary folder)")
    given = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("torch finds no GPU here, so nothing was checked.")
    wanted = [name for name in given.only.split(",") if name] or list(CHECKS)
    failed = []
    with tempfile.TemporaryDirectory(prefix="btlm-gpu-") as temporary:
        for name in wanted:
            begun = time.perf_counter()
            print(f"== {name}", flush=True)
            try:
                held = CHECKS[name](given.data.absolute(), (given.out or Path(temporary)).absolute())
            except Exception:  # one check that breaks should not hide the others
                traceback.print_exc(file=sys.stdout)
                held = False
            torch.cuda.empty_cache()
            print(
                f"== {name}: {'held' if held else 'NOT HELD'}, {time.perf_counter() - begun:.0f} s",
                flush=True,
            )
            if not held:
                failed.append(name)
    print("did not hold: " + ", ".join(failed) if failed else "all held")
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
