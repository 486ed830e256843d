"""muP at work on real text: activations that keep their scale over widths, and a learning rate that transfers
between them.

    python -m tests.benchmarks.bench_mup --plot docs/figures/mup.png

1. Coordinate check (Yang et al. 2022, "Tensor Programs V", appendix D.1): BTLM's published values at widths
64 to 2,048; after
   ten steps what every layer puts out should have one scale (root mean square, geometric mean of two seeds)
   at every width. Narrow models lag behind that limit, so the range 64 to 512 and the range 512 to 2,048 are
   shown apart. The rate is a quarter of the published peak: at the peak itself, without warm-up, activations
   grow 400-fold in ten steps and differ as much between seeds as between widths.
2. Transfer: at widths 64, 128 and 256 short runs (two seeds) for each of five learning rates, each twice the
last. The best
   must be the same at every width. With --plot the same widths without muP too, for comparison; that doubles
   the time.

The tokens are the package's sample corpus as `btlm-data prepare --seq-len 128` packs it, the commonest 2,047
under ids of their own and the rest under one more, so that a small model's time goes into its layers. The
best rate is below BTLM's own: a step here has 1,024 tokens, there 3.9 million. Runs of 120 steps are too
short: seeds then differ as much as neighbouring rates.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from torch import Tensor

from tests.reference.mup_coordinates import exponents, proxy_config, sizes, train_steps

LENGTH, VOCABULARY, LAYERS = 128, 2048, 2
WIDTHS, STEPS = (64, 128, 256, 512, 1024, 2048), 10
RANGES = ((64, 512, 2.0), (512, 2048, 1.33))  # widths from, to, and how far apart a layer's scales may be
CLIP = 1.0
TRANSFER_WIDTHS, TRANSFER_STEPS, BATCH, LAST = (64, 128, 256), 480, 8, 60
PEAK = 0.012  # BTLM's own
RATES = tuple(PEAK * 2.0**k for k in (-4, -3, -2, -1, 0))
SEEDS = (1, 2)
PARAMETRISATIONS = ("mup", "standard")
Coordinates = dict[str, dict[int, dict[str, np.ndarray]]]
Losses = dict[str, dict[int, list[float]]]


def tokens() -> Tensor:
    """The sample corpus's train samples in shuffled order, as ids below VOCABULARY: (n, LENGTH + 1)."""
    with tempfile.TemporaryDirectory() as folder:
        shards = Path(folder) / "shards"
        command = [
            "prepare",
            "--source",
            "sample",
            "--seq-len",
            str(LENGTH),
            "--tail",
            "drop",
            "--workers",
            "1",
            "--out",
            str(shards),
        ]
        subprocess.run(
            [sys.executable, "-m", "btlm_data.cli", *command],
            check=True,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        pieces = []
        for path in sorted((shards / "train").glob("*.h5")):
            with h5py.File(path) as file:
                pieces.append(file["data"][:])
    planes = np.concatenate(pieces)
    ids = np.concatenate([planes[:, 0], planes[:, 2, -1:]], axis=1)
    rank = np.full(int(ids.max()) + 1, VOCABULARY - 1)
    common = np.argsort(-np.bincount(ids.ravel()), kind="stable")[: VOCABULARY - 1]
    rank[common] = np.arange(len(common))
    return torch.from_numpy(rank[ids])


def coordinate_check(samples: Tensor) -> Coordinates:
    """`sizes` by parametrisation and width. The standard one is the same model at the base width of 256."""
    batches = list(torch.split(samples[: STEPS * BATCH], BATCH))
    return {
        kind: {
            width: sizes(
                proxy_config(width, LAYERS, VOCABULARY, parametrisation=kind), batches, PEAK / 4, SEEDS, CLIP
            )
            for width in WIDTHS
        }
        for kind in PARAMETRISATIONS
    }


def losses_at(samples: Tensor, kind: str, width: int) -> list[float]:
    """Loss (nats a token, mean of the last steps and the seeds) by rate. Warm-up over a tenth, then linear
    decay to 0; clipped.
    """
    torch.set_flush_denormal(True)
    torch.set_num_threads(1)  # small matrices: a second thread costs more than it brings
    batches = list(torch.split(samples[: TRANSFER_STEPS * BATCH], BATCH))
    assert len(batches) == TRANSFER_STEPS, f"the sample corpus gives only {len(batches)} batches"
    warmup = TRANSFER_STEPS // 10

    def schedule(rate: float) -> Callable[[int], float]:
        return lambda step: (
            rate * min((step + 1) / warmup, (TRANSFER_STEPS - step) / (TRANSFER_STEPS - warmup))
        )

    config = proxy_config(width, LAYERS, VOCABULARY, parametrisation=kind)
    found = []
    for rate in RATES:
        runs = [
            [loss for _, loss in train_steps(config, batches, schedule(rate), seed, CLIP)] for seed in SEEDS
        ]
        by_seed = [statistics.fmean(run[-LAST - 1 : -1]) for run in runs]
        found.append(statistics.fmean(by_seed))
        shown = ", ".join(f"{loss:.4f}" for loss in by_seed)
        print(f"  {kind}, width {width}, rate {rate:.5f}: loss by seed {shown}", file=sys.stderr, flush=True)
    return found


def transfer(samples: Tensor, kinds: Sequence[str]) -> Losses:
    """`losses_at` by parametrisation and width, one process a core."""
    jobs = [(kind, width) for width in sorted(TRANSFER_WIDTHS, reverse=True) for kind in kinds]
    with ProcessPoolExecutor(mp_context=multiprocessing.get_context("spawn")) as pool:
        done = dict(
            zip(jobs, pool.map(losses_at, [samples] * len(jobs), *zip(*jobs, strict=True)), strict=True)
        )
    return {kind: {width: done[kind, width] for width in TRANSFER_WIDTHS} for kind in kinds}


def best(losses: dict[int, list[float]]) -> list[float]:
    """The best rate at each width."""
    return [RATES[int(np.nanargmin(values))] for values in losses.values()]


def plot(coordinates: Coordinates, losses: Losses, path: Path) -> None:
    """Four panels: scale of activations over width, and loss over rate; with muP and without."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(2, 2, figsize=(9, 6.5), sharey="row", layout="constrained")
    for column, kind in enumerate(PARAMETRISATIONS):
        by_width = coordinates[kind]
        for name in next(iter(by_width.values())):
            axes[0, column].plot(
                list(by_width), [found[name][1] for found in by_width.values()], marker="o", ms=3, label=name
            )
        axes[0, column].set(xscale="log", yscale="log", xlabel="width", xticks=WIDTHS, xticklabels=WIDTHS)
        axes[0, column].minorticks_off()
        axes[0, column].set_title({"mup": "with muP", "standard": "without (tuned at 256)"}[kind])
        for width, values in losses[kind].items():
            (line,) = axes[1, column].plot(RATES, values, marker="o", ms=3, label=f"width {width}")
            k = int(np.nanargmin(values))
            axes[1, column].plot(RATES[k], values[k], marker="*", ms=11, color=line.get_color())
        axes[1, column].set(xscale="log", xlabel="learning rate")
    axes[0, 0].set_ylabel(f"activations (rms) after {STEPS} steps")
    axes[1, 0].set_ylabel(f"loss after {TRANSFER_STEPS} steps")
    axes[0, 1].legend(fontsize=6)
    axes[1, 1].legend(fontsize=7)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100)
    pyplot.close(figure)


def measure(transferred: Sequence[str]) -> tuple[Coordinates, Losses]:
    """The coordinate check with and without muP, and the transfer for the parametrisations named."""
    torch.set_flush_denormal(True)  # as `btlm-train` does
    samples = tokens()
    return coordinate_check(samples), transfer(samples, transferred)


def spread(by_width: dict[int, dict[str, np.ndarray]], narrowest: int, widest: int) -> float:
    """How far one layer's scale after the steps lies apart over the widths: largest / smallest, of the layer
    where that is most.
    """
    chosen = [found for width, found in by_width.items() if narrowest <= width <= widest]
    return max(
        float(max(found[name][1] for found in chosen) / min(found[name][1] for found in chosen))
        for name in chosen[0]
    )


def rows(coordinates: Coordinates, losses: Losses) -> list[dict[str, Any]]:
    """What `make bench` shows: how far scales, and best rates, lie apart over the widths; ours with muP,
    theirs without.
    """
    found = []
    for narrowest, widest, allowed in RANGES:
        ours, theirs = (float(spread(coordinates[kind], narrowest, widest)) for kind in PARAMETRISATIONS)
        found.append(
            {
                "name": f"muP: a layer's scale after {STEPS} steps, largest / smallest over widths {narrowest}-{widest}, against no muP",
                "ours": ours,
                "theirs": theirs,
                "ratio": ours / theirs,
                "unit": "",
                "budget": f"ours <= {allowed:g}",
            }
        )
    chosen = best(losses["mup"])
    found.append(
        {
            "name": f"muP: best of 5 learning rates, largest / smallest over widths {', '.join(map(str, TRANSFER_WIDTHS))}",
            "ours": max(chosen) / min(chosen),
            "theirs": None,
            "ratio": None,
            "unit": "",
            "budget": "1",
        }
    )
    return found


def run() -> list[dict[str, Any]]:
    """Two rows; see `rows`."""
    return rows(*measure(("mup",)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--plot", type=Path, help="write the figure here (PNG)")
    arguments = parser.parse_args()
    coordinates, losses = measure(PARAMETRISATIONS if arguments.plot else ("mup",))
    for kind in PARAMETRISATIONS:
        print(
            f"\n{kind}: scale after {STEPS} steps at widths {', '.join(map(str, WIDTHS))}; exponents of the "
            "width by range"
        )
        powers = [
            exponents({w: found for w, found in coordinates[kind].items() if low <= w <= high})
            for low, high, _ in RANGES
        ]
        for name in powers[0]:
            scales = "".join(f"{found[name][1]:9.2f}" for found in coordinates[kind].values())
            print(f"  {name:20s}{scales}  " + "".join(f"{power[name][1]:8.2f}" for power in powers))
    for kind, by_width in losses.items():
        print(f"\n{kind}: loss at rates {', '.join(f'{rate:.5f}' for rate in RATES)}")
        for width, values in by_width.items():
            print(f"  width {width:4d}" + "".join(f"{value:8.3f}" for value in values))
        print(f"  best: {', '.join(f'{rate:.5f}' for rate in best(by_width))}")
    for row in rows(coordinates, losses):
        print(json.dumps(row))
    if arguments.plot:
        plot(coordinates, losses, arguments.plot)


if __name__ == "__main__":
    main()
