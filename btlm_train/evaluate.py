"""Loss, perplexity and accuracy on held-out shards: as one figure, per sequence position, and for several
sequence lengths.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from btlm_data.errors import ConfigError, DataError
from btlm_train.data.loader import GptHDF5MapDataProcessor
from btlm_train.files import creating, write_bytes
from btlm_train.model import BTLM

CURVE_POINTS = 64  # a curve of loss by position is averaged over so many stretches


@dataclass
class Sums:
    """Summed over tokens, per sequence position: cross-entropy (nats), hits of the likeliest token, and
    tokens counted. (L,) float64 each.
    """

    loss: Tensor
    hits: Tensor
    tokens: Tensor

    @classmethod
    def zero(cls, length: int, device: torch.device) -> Sums:
        """Nothing counted yet."""
        return cls(*(torch.zeros(length, dtype=torch.float64, device=device) for _ in range(3)))

    def add(self, losses: Tensor, hits: Tensor, mask: Tensor) -> None:
        """Count one batch: (B, L) each; positions where the loss mask is 0 do not count."""
        keep = mask.double()
        self.loss += (losses * keep).sum(0)
        self.hits += (hits * keep).sum(0)
        self.tokens += keep.sum(0)

    def all_reduce(self) -> None:
        """Add up over all ranks."""
        if dist.is_initialized():
            for tensor in (self.loss, self.hits, self.tokens):
                dist.all_reduce(tensor)

    def report(self) -> dict[str, Any]:
        """Loss (nats per token), perplexity, accuracy, tokens."""
        tokens = float(self.tokens.sum())
        loss = float(self.loss.sum()) / max(tokens, 1.0)
        return {
            "loss": loss,
            "perplexity": math.exp(min(loss, 700.0)),
            "accuracy": float(self.hits.sum()) / max(tokens, 1.0),
            "tokens": int(tokens),
        }

    def curve(self, points: int = CURVE_POINTS) -> list[dict[str, float]]:
        """Loss and accuracy by position, averaged over `points` stretches: {first, last, loss, accuracy},
        positions from 0.
        """
        edges = np.unique(np.linspace(0, len(self.loss), min(points, len(self.loss)) + 1).astype(int))
        rows = []
        for first, end in zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True):
            tokens = max(float(self.tokens[first:end].sum()), 1.0)
            loss, hits = float(self.loss[first:end].sum()), float(self.hits[first:end].sum())
            rows.append({"first": first, "last": end - 1, "loss": loss / tokens, "accuracy": hits / tokens})
        return rows


def at_least_one_row(batch: Mapping[str, Tensor], length: int) -> dict[str, Tensor]:
    """A rank whose slice of the last batch is empty still takes part, with one row that counts for
    nothing.
    """
    if len(batch["input_ids"]):
        return dict(batch)
    return {name: torch.zeros((1, length), dtype=torch.int32) for name in batch}


def check_tokens(batch: Mapping[str, Tensor], vocab_size: int) -> None:
    """Raise DataError if a token of the batch has no embedding: it would be an out-of-range read on the
    device.
    """
    for name in ("input_ids", "labels"):
        if batch[name].numel():
            low, high = (int(value) for value in torch.aminmax(batch[name]))
            if low < 0 or high >= vocab_size:
                raise DataError(
                    f"The data holds the token {low if low < 0 else high} ({name}), the model has vocab_size "
                    f"{vocab_size}. "
                    "Set model.vocab_size to that of the data's tokenizer, or prepare the data with the "
                    "model's."
                )


@torch.no_grad()
def evaluate(
    model: torch.nn.Module, batches: Iterable[Mapping[str, Tensor]], length: int, vocab_size: int,
    device: torch.device, autocast: AbstractContextManager[Any], max_batches: int | None = None,
) -> Sums:  # fmt: skip
    """Run over the batches (all, or the first max_batches); the sums are of all ranks. model: BTLM, or as
    wrapped for training.
    """
    sums = Sums.zero(length, device)
    training = model.training
    model.eval()
    for batch in islice(batches, max_batches):
        check_tokens(batch, vocab_size)
        given = {name: tensor.to(device) for name, tensor in at_least_one_row(batch, length).items()}
        with autocast:
            losses, hits = model(
                given["input_ids"],
                given["labels"],
                attention_span=given.get("attention_span"),
                per_token=True,
            )
        sums.add(losses, hits, given["attention_mask"])
    model.train(training)
    sums.all_reduce()
    if not float(sums.tokens.sum()):
        raise ConfigError(
            "The validation data gave no batch: it holds fewer samples than eval_input.batch_size. Set "
            "eval_input.drop_last to false."
        )
    return sums


@torch.no_grad()
def evaluate_lengths(
    core: BTLM,
    data: Mapping[str, Any],
    lengths: Sequence[int],
    device: torch.device,
    autocast: AbstractContextManager[Any],
    max_batches: int | None = None,
) -> dict[int, Sums]:
    """The same tokens, read in windows of each length: how much a longer context helps, and where it starts
    to hurt.

    data: a reader's configuration, whose samples are at least as long as the longest length. Every length
    must divide the longest, so that all see the same tokens. Raises ConfigError where they do not, or the
    samples are shorter.
    """
    if odd := [length for length in lengths if max(lengths) % length]:
        raise ConfigError(
            f"--lengths: {odd[0]} does not divide {max(lengths)}, so they would not see the same tokens. "
            "Give powers of two."
        )
    processor = GptHDF5MapDataProcessor(data)
    core.eval()
    sums = {length: Sums.zero(length, device) for length in sorted(lengths)}
    longest = max(lengths)
    for batch in islice(processor.create_dataloader(), max_batches):
        check_tokens(batch, core.config.vocab_size)
        stored = batch["input_ids"].shape[1]
        if stored < longest:
            raise ConfigError(
                f"The samples hold {stored} tokens, --lengths asks for {longest}. Prepare longer samples "
                f"(--seq-len {longest}) or ask for less."
            )
        used = stored - stored % longest  # every length divides it
        for length, total in sums.items():
            ids, labels, mask = (
                batch[name][:, :used].reshape(-1, length).to(device)
                for name in ("input_ids", "labels", "attention_mask")
            )
            for part in range(
                len(ids)
            ):  # one window at a time: memory does not grow with the count of windows
                row = slice(part, part + 1)
                with autocast:
                    losses, hits = core(ids[row], labels[row], per_token=True)
                total.add(losses, hits, mask[row])
    return sums


def write_lengths(sums: Mapping[int, Sums], trained_length: int, folder: Path) -> list[Path]:
    """Write lengths.csv, positions.csv and lengths.png (loss by length; loss by position in the longest
    windows); returns the files.
    """
    table = [{"length": length, **total.report()} for length, total in sums.items()]
    curve = sums[max(sums)].curve()
    for name, rows in (("lengths.csv", table), ("positions.csv", curve)):
        text = io.StringIO()
        writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        write_bytes(folder / name, text.getvalue().encode())
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    left.plot([row["length"] for row in table], [row["loss"] for row in table], marker="o")
    lengths = [row["length"] for row in table]
    left.set_xscale("log", base=2)
    left.set_xticks(lengths, [f"{length:,}" for length in lengths], rotation=45)
    left.minorticks_off()
    left.set(
        xlabel="sequence length (tokens)",
        ylabel="loss (nats per token)",
        title="The same tokens in windows of each length",
    )
    right.plot([(row["first"] + row["last"]) / 2 for row in curve], [row["loss"] for row in curve])
    right.set(
        xlabel="position (tokens)",
        ylabel="loss (nats per token)",
        title=f"By position, windows of {max(sums)}",
    )
    for axes in (left, right):
        axes.axvline(trained_length, linestyle="--", color="grey", label=f"trained length {trained_length}")
        axes.legend()
        axes.grid(alpha=0.3)
    with creating(folder / "lengths.png") as temporary:
        figure.savefig(temporary, format="png", dpi=120)
    return [folder / name for name in ("lengths.csv", "positions.csv", "lengths.png")]
