"""How fast does training get its samples? Our loader against one HDF5 virtual dataset over the same files,
num_workers 0.

Theirs is what the original reader is made of: an `h5py.VirtualLayout` over all shards, one sample a read,
cast to int32, split into features and put together by torch's default_collate. Same files, same batches, same
order, warm page cache. Both work in one thread and wait for nothing, so CPU time is taken, which other work
on the machine disturbs less; rounds alternate, and the ratio is the median of pairs. The tokens are GPT-2's
of the sample corpus, so that they compress as text does.
"""

from __future__ import annotations

import contextlib
import statistics
import tempfile
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import msgspec
import numpy as np
import numpy.typing as npt
import torch
import zstandard
from torch.utils.data import DataLoader, Dataset

from btlm_data.tokenizer import load_tokenizer
from btlm_train.data import GptHDF5MapDataProcessor
from tests import shard_files as shards

ROUNDS = 7
FILES = 8
TOKENS = 8 << 20  # of each variant, on all files together
BATCH_TOKENS = 1 << 16
_DATA = Path(__file__).resolve().parents[2] / "btlm_data" / "data"


@dataclass(frozen=True)
class Variant:
    name: str
    length: int
    budget: str | None = None
    shuffle: bool = False
    corpus: bool = False
    storage: dict[str, Any] | None = None  # None: the shards that `prepare` writes


GZIP = {"compression": "gzip", "compression_opts": 1}
VARIANTS = [
    Variant("read samples of 2,048", 2048, ">= 2"),
    Variant("read samples of 8,192", 8192, ">= 2"),
    Variant("read samples of 2,048, shuffled", 2048, ">= 2", shuffle=True),
    Variant(
        "read samples of 2,048, HDF5 shuffle filter",
        2048,
        storage={**GZIP, "shuffle": True, "chunks": (1, 3, 2048)},
    ),
    Variant("read samples of 2,048, not compressed", 2048, storage={}),
    Variant("read a corpus in windows of 2,048", 2048, corpus=True, storage={**GZIP, "chunks": (8192,)}),
]


class VirtualDataset(Dataset[dict[str, npt.NDArray[np.int32]]]):
    """One virtual dataset over the files of a folder, read sample by sample."""

    def __init__(self, folder: Path, target: Path, length: int | None) -> None:
        sources = []
        for path in sorted(folder.glob("*.h5")):
            with h5py.File(path) as file:
                sources.append(h5py.VirtualSource(file["data"]))
        rows = sum(source.shape[0] for source in sources)
        layout = h5py.VirtualLayout((rows, *sources[0].shape[1:]), sources[0].dtype)
        start = 0
        for source in sources:
            layout[start : start + source.shape[0]] = source
            start += source.shape[0]
        with h5py.File(target, "w", libver="latest") as file:
            file.create_virtual_dataset("data", layout)
        self.data = h5py.File(target)["data"]
        self.length = length

    def __len__(self) -> int:
        return len(self.data) if self.length is None else (len(self.data) - 1) // self.length

    def __getitem__(self, index: int) -> dict[str, npt.NDArray[np.int32]]:
        if self.length is None:
            sample = self.data[index].astype(np.int32)
            return {"input_ids": sample[0], "attention_mask": sample[1], "labels": sample[2]}
        tokens = self.data[index * self.length : (index + 1) * self.length + 1].astype(np.int32)
        return {"input_ids": tokens[:-1], "attention_mask": np.ones_like(tokens[:-1]), "labels": tokens[1:]}


class _Document(msgspec.Struct):
    text: str


def sample_tokens() -> npt.NDArray[np.int32]:
    """The sample corpus's training text as GPT-2 tokens, repeated to TOKENS + 1. Its planted bad lines are
    left out.
    """
    texts = []
    for path in sorted((_DATA / "sample/train").rglob("*.jsonl.zst")):
        with zstandard.open(path, "rb") as lines:
            for line in lines.read().splitlines():
                with contextlib.suppress(msgspec.MsgspecError, UnicodeError):
                    texts.append(msgspec.json.decode(line, type=_Document).text)
    ids, _ = load_tokenizer("gpt2", backend="fast").encode_batch(texts)
    return np.resize(np.asarray(ids, np.int32), TOKENS + 1)


def write(folder: Path, tokens: npt.NDArray[np.int32], variant: Variant) -> None:
    length = variant.length
    folder.mkdir()
    starts = np.array_split(np.arange(0, TOKENS, length), FILES)
    for number, part in enumerate(starts):
        path = folder / f"data-{number:05}.h5"
        rows = tokens[part[0] : part[-1] + length + 1]
        windows = np.lib.stride_tricks.sliding_window_view(rows, length + 1)[::length]
        if variant.storage is None:
            shards.write_samples(path, windows)  # as `prepare` does
            continue
        data: npt.NDArray[Any] = rows[:-1].astype(np.uint16)
        if not variant.corpus:
            data = np.stack([windows[:, :-1], np.ones((len(part), length), np.int32), windows[:, 1:]], axis=1)
        with h5py.File(path, "w", libver="earliest") as file:
            file.create_dataset("data", data=data, **variant.storage)


def seconds(loader: Iterable[dict[str, torch.Tensor]]) -> tuple[float, int]:
    """One pass: its CPU time, and a checksum which keeps both sides honest."""
    start = time.process_time()
    total = 0
    for batch in loader:
        total += int(batch["labels"][:, ::97].sum())
    return time.process_time() - start, total


def measure(variant: Variant, tokens: npt.NDArray[np.int32]) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="btlm-bench-") as name:
        folder = Path(name) / "shards"
        write(folder, tokens, variant)
        length = variant.length if variant.corpus else None
        size = BATCH_TOKENS // variant.length
        config = {
            "data_dir": str(folder),
            "batch_size": size,
            "max_sequence_length": length,
            "shuffle": variant.shuffle,
        }
        virtual = VirtualDataset(folder, Path(name) / "virtual.h5", length)
        order = list(range(len(virtual)))
        if variant.shuffle:
            order = torch.randperm(len(virtual), generator=torch.Generator().manual_seed(0)).tolist()
        batches = [order[first : first + size] for first in range(0, len(order) - size + 1, size)]
        ours, theirs = [], []
        for _ in range(ROUNDS):
            took, checksum = seconds(GptHDF5MapDataProcessor(config).create_dataloader())
            ours.append(len(batches) * size / took)
            took, expected = seconds(DataLoader(virtual, batch_sampler=batches))
            theirs.append(len(batches) * size / took)
            assert checksum == expected, "both readers must deliver the same labels"
        virtual.data.file.close()
    return {
        "name": variant.name,
        "ours": round(statistics.median(ours)),
        "theirs": round(statistics.median(theirs)),
        "ratio": statistics.median(a / b for a, b in zip(ours, theirs, strict=True)),
        "unit": "samples/CPU s",
        "budget": variant.budget,
    }


def run() -> list[dict[str, Any]]:
    tokens = sample_tokens()
    return [measure(variant, tokens) for variant in VARIANTS]


if __name__ == "__main__":
    for row in run():
        print(row)
