"""What a run writes of its progress: the console line, metrics.jsonl and TensorBoard events."""

from __future__ import annotations

import contextlib
import json
import logging
import math
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from btlm_data.storage.local import as_output_error
from btlm_train.files import refuse_link, write_bytes
from btlm_train.model import flops_per_token
from btlm_train.training.trainer import Trainer

logger = logging.getLogger(__name__)

# Dense bfloat16 operations a second without sparsity, from the makers' data sheets; by a part of torch's
# device name.
PEAK_FLOPS = {
    "H200": 989e12, "H100 PCIe": 756e12, "H100": 989e12, "A100": 312e12, "L40S": 362e12, "L4": 121e12,
    "A10": 125e12, "RTX 4090": 165e12, "MI300X": 1307e12, "MI250X": 383e12, "B200": 2250e12,
}  # fmt: skip


class Metrics:
    """Writes figures; on rank 0 only.

    On a rerun, lines of metrics.jsonl beyond the checkpoint are dropped: they are about to be computed again.
    """

    def __init__(self, folder: Path, trainer: Trainer, last: int):
        self.folder, self.trainer, self.last = folder, trainer, last
        self.active = trainer.world.rank == 0
        self.since = time.perf_counter()
        self.since_step = trainer.step
        self.since_tokens = trainer.tokens
        self.writer: Any = None

    def __enter__(self) -> Metrics:
        if self.active:
            path = self.folder / "metrics.jsonl"
            kept = [line for line in _json_lines(path) if self._is_settled(line)]
            write_bytes(path, "".join(json.dumps(line) + "\n" for line in kept).encode())
            self.file = path.open("a", encoding="utf-8")
            try:
                from torch.utils.tensorboard import SummaryWriter

                refuse_link(self.folder / "events")
                self.writer = SummaryWriter(str(self.folder / "events"), purge_step=self.trainer.step + 1)
            except OSError as error:
                self.file.close()
                raise as_output_error(error, self.folder / "events") from error
            except ImportError:
                logger.warning(
                    "TensorBoard is not installed, so no events are written; metrics.jsonl has all figures. "
                    "Install it with: pip install tensorboard."
                )
        return self

    def _is_settled(self, line: Mapping[str, Any]) -> bool:
        step = line.get("step")
        return isinstance(step, int) and step <= self.trainer.step and "event" not in line

    def __exit__(self, *_: object) -> None:
        if self.active:
            self.file.close()
            if self.writer is not None:
                self.writer.close()

    def step(self, figures: Mapping[str, float], due: bool) -> None:
        """A step is done; write its line if it is due."""
        if not self.active or not due:
            return
        trainer = self.trainer
        elapsed = time.perf_counter() - self.since
        steps, tokens = trainer.step - self.since_step, trainer.tokens - self.since_tokens
        self.since, self.since_step, self.since_tokens = time.perf_counter(), trainer.step, trainer.tokens
        speed = tokens / elapsed
        peak = _peak_flops(trainer.world.device)
        used = None
        if peak:
            flops = flops_per_token(trainer.params.model, int(figures["length"]))
            used = speed * flops / (peak * trainer.world.size)
        left = (self.last - trainer.step) * elapsed / max(steps, 1)
        logger.info(
            "step %d/%d  loss %.4f  lr %.3g  grad norm %.3f  %s tokens/s%s  %s left",
            trainer.step, self.last, figures["loss"], figures["learning_rate"], figures["gradient_norm"],
            f"{speed:,.0f}", f"  MFU {used:.1%}" if used is not None else "", _duration(left),
        )  # fmt: skip
        line = {name: figures[name] for name in ("loss", "cross_entropy", "learning_rate", "gradient_norm")}
        timing = {"tokens_per_second": round(speed, 1)} | ({"mfu": used} if used is not None else {})
        self._write(line | {"tokens": trainer.tokens}, "train", timing)

    def evaluation(self, report: Mapping[str, Any], number: int) -> None:
        """Write an evaluation's figures."""
        if self.active:
            logger.info(
                "step %d  validation%s loss %.4f  perplexity %.2f  accuracy %.2f%%",
                self.trainer.step, f" {number}" if number else "", report["loss"], report["perplexity"],
                100 * report["accuracy"],
            )  # fmt: skip
            self._write(report, "validation" + (f"_{number}" if number else ""))

    def finish(self, figures: Mapping[str, Any]) -> None:
        """The last line: loss over the last steps, and the unigram entropy it must beat to have learnt any
        order.
        """
        if self.active:
            self._write({"event": "end", **figures}, None)
            logger.info(
                "Done at step %d: cross-entropy %.4f nats per token over the last steps; "
                "knowing only token frequencies gives %.4f.",
                self.trainer.step, figures.get("cross_entropy", math.nan), figures["unigram_entropy"],
            )  # fmt: skip

    def _write(
        self, figures: Mapping[str, Any], kind: str | None, timing: Mapping[str, Any] | None = None
    ) -> None:
        head = {"step": self.trainer.step} | ({"kind": kind} if kind else {})
        self.file.write(json.dumps({**head, **figures, **(timing or {})}) + "\n")
        self.file.flush()
        if self.writer is not None and kind:
            for name, value in {**figures, **(timing or {})}.items():
                self.writer.add_scalar(f"{kind}/{name}", value, self.trainer.step)


def _json_lines(path: Path) -> Iterator[dict[str, Any]]:
    """The whole lines of a JSONL file; a last line cut short by a kill is left out."""
    if path.is_file():
        with path.open("rb") as file:
            for line in file:
                with contextlib.suppress(ValueError, RecursionError):
                    value = json.loads(line)
                    if isinstance(value, dict):
                        yield value


def _peak_flops(device: torch.device) -> float | None:
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return next((peak for part, peak in PEAK_FLOPS.items() if part in name), None)


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    return f"{days}d {hours:02}:{minutes:02}" if days else f"{hours}:{minutes:02}:{seconds:02}"
