"""Plain twins of btlm_data/kernels/checks.py: the rules of a row, one at a time, as the layout's description states them."""

from __future__ import annotations

from typing import Any

import numpy.typing as npt


def sample_faults(row: npt.NDArray[Any], vocab_size: int) -> list[int]:
    """First fault of each rule of a sample row (3, L): plane * L + position, or -1."""
    ids, mask, labels = (plane.tolist() for plane in row)
    length = len(ids)
    faults: list[list[int]] = [[], [], [], [], []]
    for t in range(length):
        if mask[t] not in (0, 1):
            faults[0].append(length + t)
        if mask[t] == 1 and any(m != 1 for m in mask[:t]):
            faults[1].append(length + t)
        if mask[t] != 1 and (ids[t], labels[t]) != (0, 0):
            faults[2].append(t if ids[t] else 2 * length + t)
        if mask[t] == 1 and t + 1 < length and mask[t + 1] == 1 and labels[t] != ids[t + 1]:
            faults[3].append(2 * length + t)
        if mask[t] == 1 and not (0 <= ids[t] < vocab_size and 0 <= labels[t] < vocab_size):
            faults[4].append(t if not 0 <= ids[t] < vocab_size else 2 * length + t)
    return [min(found, key=lambda code: code % length) if found else -1 for found in faults]


def vsl_faults(row: npt.NDArray[Any], vocab_size: int, eos_id: int) -> list[int]:
    """First fault of each rule of a VSL row (5, L)."""
    ids, mask, labels, spans, positions = (plane.tolist() for plane in row)
    length = len(ids)
    used = max((t + 1 for t in range(length) if mask[t] or spans[t] or positions[t]), default=0)
    faults: list[list[int]] = [[] for _ in range(8)]
    for t in range(length):
        if mask[t] not in (0, 1):
            faults[0].append(length + t)
        if t >= used:
            if (ids[t], labels[t]) != (0, 0):
                faults[2].append(t if ids[t] else 2 * length + t)
            continue
        if mask[t] == 0:
            faults[1].append(length + t)
        if not (0 <= ids[t] < vocab_size and 0 <= labels[t] < vocab_size):
            faults[4].append(t if not 0 <= ids[t] < vocab_size else 2 * length + t)
        begins = t == 0 or spans[t - 1] == 0
        if positions[t] != (0 if begins else positions[t - 1] + 1):
            faults[6].append(4 * length + t)
        if spans[t] < 0 or t + spans[t] >= used or (not begins and spans[t] != spans[t - 1] - 1):
            faults[5].append(3 * length + t)
        if mask[t] == 1 and spans[t] > 0 and t + 1 < length and labels[t] != ids[t + 1]:
            faults[3].append(2 * length + t)
        if mask[t] == 1 and ids[t] == eos_id:
            faults[7].append(length + t)
    return [min(found, key=lambda code: code % length) if found else -1 for found in faults]
