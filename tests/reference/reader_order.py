"""What the reader must deliver, written for reading rather than for speed: design page, section 6, on plain lists.

Written from the rules, without a look at btlm_train.data. Samples are whatever the caller puts into the folders; a padded sample is None.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

Folders = dict[
    str, dict[str, list[Any]]
]  # folder -> file name -> rows (sample format) or tokens (corpus format)


def samples_of(
    data_dir: str | list[str], subset: str | None, folders: Folders, length: int | None
) -> list[Any]:
    """The samples of one data set: files of all folders sorted by path as text, then by row."""
    names = [data_dir] if isinstance(data_dir, str) else data_dir
    files = [(f"{folder}/{name}", rows) for folder in names for name, rows in folders[folder].items()]
    stored = [row for _, rows in sorted(files, key=lambda file: file[0]) for row in rows]
    if length is not None:
        stored = [tuple(stored[i : i + length + 1]) for i in range(0, len(stored) - length, length)]
    if subset is None:
        return stored
    n = len(stored)
    chosen = []
    for part in subset.split(","):
        low, high = part.split("-")
        chosen += stored[int(n * float(low)) : int(n * float(high))]
    return chosen


def data_of(config: dict[str, Any], folders: Folders) -> list[Any]:
    """One showing of everything the configuration selects, unshuffled: the data set or the mixture."""
    length = config.get("max_sequence_length")
    if config.get("mixture") is None:
        return samples_of(config["data_dir"], config.get("data_subset"), folders, length)
    used = [entry for entry in config["mixture"] if entry["weight"] > 0]
    sets = [samples_of(entry["data_dir"], entry.get("data_subset"), folders, length) for entry in used]
    total_weight = sum(entry["weight"] for entry in used)
    weights = [entry["weight"] / total_weight for entry in used]
    # The smallest number of samples that shows every set of weight above 5% in full.
    epoch = max(len(samples) / weight for samples, weight in zip(sets, weights, strict=True) if weight > 0.05)
    shown = [
        [samples[k % len(samples)] for k in range(int(epoch * weight))]
        for samples, weight in zip(sets, weights, strict=True)
    ]
    if config.get("shuffle", False):
        return [sample for samples in shown for sample in samples]
    owner = [number for number, samples in enumerate(shown) for _ in samples]
    places = np.arange(len(owner))
    np.random.default_rng(config.get("shuffle_seed", 0)).shuffle(places)
    queues = [iter(samples) for samples in shown]
    return [next(queues[owner[place]]) for place in places]


def epoch_of(config: dict[str, Any], data: list[Any], epoch: int) -> list[Any]:
    """The samples of one epoch, in order."""
    n = len(data)
    length = config.get("num_samples") or n
    if not config.get("shuffle", False):
        return [data[i % n] for i in range(length)]
    generator = torch.Generator()
    generator.manual_seed(config.get("shuffle_seed", 0) + epoch)
    if length <= n:
        return [data[i] for i in torch.randperm(n, generator=generator).tolist()[:length]]
    stretched: list[int] = []
    while len(stretched) + n < length:
        stretched += range(n)
    stretched += torch.randperm(n, generator=generator).tolist()
    stretched = stretched[:length]
    return [data[stretched[i]] for i in torch.randperm(length, generator=generator).tolist()]


def stream(config: dict[str, Any], folders: Folders) -> Iterator[Any]:
    """Sample after sample, epoch after epoch, for ever."""
    data = data_of(config, folders)
    epoch = 0
    while True:
        yield from epoch_of(config, data, epoch)
        epoch += 1


def passes(config: dict[str, Any], folders: Folders, count: int) -> list[list[list[Any]]]:
    """The batches of the first `count` passes over a loader."""
    data = data_of(config, folders)
    size = config["batch_size"]
    drop_last = config.get("drop_last", True)
    result = []
    left: list[Any] = []
    epoch = 0
    if drop_last and (config.get("num_samples") or len(data)) < size:
        left, epoch = epoch_of(config, data, 0), 1  # a first epoch that fills no batch only opens the second
    for _ in range(count):
        pool = left + epoch_of(config, data, epoch)
        epoch += 1
        batches = []
        while len(pool) >= size:
            batches.append(pool[:size])
            pool = pool[size:]
        if drop_last:
            left = pool
        elif pool:
            batches.append(pool + [None] * (size - len(pool)) if config.get("pad_last", False) else pool)
        result.append(batches)
    return result
