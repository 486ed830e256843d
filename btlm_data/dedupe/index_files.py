"""How what an index keeps is cut into files: by what it holds, never by the memory or the workers of the run
that adds it.

So the same corpus gives the same index, byte for byte, and a later run that names its files by checksum
depends on nothing else. The keys, signatures and texts come as that run's tasks cut them, and are cut again
here.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

KEYS_A_FILE = 2**22  # about; keys are spread evenly
SIGNATURES_A_FILE = 2**16
TEXT_BYTES_A_FILE = 2**26  # of compressed texts, unless one alone is longer
Arrays = Mapping[str, npt.NDArray[Any]]
Int64Array = npt.NDArray[np.int64]


def log_partitions(num_keys: int) -> int:
    """So many highest bits of a key say in which file it is, where there are about `num_keys`."""
    return max(0, (-(-num_keys // KEYS_A_FILE) - 1).bit_length())


def cut_keys(parts: Iterable[Arrays], log: int) -> Iterator[dict[str, npt.NDArray[Any]]]:
    """2^log files of ascending `keys` (uint64) and what goes with each, from parts that are ascending one
    after the other. keys: (n,) uint64; each of the others (n, ...) of any dtype.
    """
    held: list[Arrays] = []
    number = 0
    for part in parts:
        begin, count = 0, len(part["keys"])
        while True:
            last = ((number + 1) << (64 - log)) - 1
            end = int(np.searchsorted(part["keys"], np.uint64(last), side="right"))
            held.append({name: array[begin:end] for name, array in part.items()})
            if end == count:
                break
            yield _joined(held)
            held, begin, number = [], end, number + 1
    empty: list[Arrays] = [{name: array[:0] for name, array in held[-1].items()}]
    for _ in range(number, 1 << log):
        yield _joined(held)
        held = empty


def cut_signatures(
    parts: Iterable[tuple[int, npt.NDArray[np.uint32]]],
) -> Iterator[tuple[int, npt.NDArray[np.uint32]]]:
    """(first ordinal, signatures) of at most SIGNATURES_A_FILE consecutive documents, from such of other
    lengths. signatures: (n, num_perm) uint32.
    """
    held: list[npt.NDArray[np.uint32]] = []
    first = following = 0
    for start, signatures in parts:
        if held and start != following:  # documents between that have none
            yield first, np.concatenate(held)
            held = []
        while len(signatures):
            first = first if held else start
            room = SIGNATURES_A_FILE - start % SIGNATURES_A_FILE
            held.append(signatures[:room])
            signatures, start = signatures[room:], start + min(room, len(signatures))
            if start % SIGNATURES_A_FILE == 0:
                yield first, np.concatenate(held)
                held = []
        following = start
    if held:
        yield first, np.concatenate(held)


def cut_texts(parts: Iterable[Arrays]) -> Iterator[dict[str, npt.NDArray[Any]]]:
    """`ordinals`, `frames` and `bounds` of as many texts as TEXT_BYTES_A_FILE hold, at least of one; at least
    one file. ordinals: (n,) uint32; frames: (bytes,) uint8; bounds: (n + 1,) int64.
    """
    ordinals: list[npt.NDArray[np.uint32]] = []
    frames: list[npt.NDArray[np.uint8]] = []
    sizes: list[Int64Array] = []
    num_bytes = num_files = 0
    for part in parts:
        bounds = part["bounds"].astype(np.int64)
        begin, count = 0, len(bounds) - 1
        while begin < count:
            room = int(bounds[begin]) + TEXT_BYTES_A_FILE - num_bytes
            end = int(np.searchsorted(bounds, room, side="right")) - 1
            if end <= begin and num_bytes == 0:
                end = begin + 1
            if end > begin:
                ordinals.append(part["ordinals"][begin:end])
                frames.append(part["frames"][int(bounds[begin]) : int(bounds[end])])
                sizes.append(np.diff(bounds[begin : end + 1]))
                num_bytes += int(bounds[end] - bounds[begin])
                begin = end
            if begin < count:
                yield _texts(ordinals, frames, sizes)
                ordinals, frames, sizes, num_bytes, num_files = [], [], [], 0, num_files + 1
    if ordinals or not num_files:
        yield _texts(ordinals, frames, sizes)


def _texts(
    ordinals: list[npt.NDArray[np.uint32]], frames: list[npt.NDArray[np.uint8]], sizes: list[Int64Array]
) -> dict[str, npt.NDArray[Any]]:
    bounds = np.cumsum(np.concatenate([np.zeros(1, np.int64), *sizes]), dtype=np.int64)
    return {
        "ordinals": np.concatenate([np.empty(0, np.uint32), *ordinals]),
        "frames": np.concatenate([np.empty(0, np.uint8), *frames]),
        "bounds": bounds,
    }


def _joined(parts: list[Arrays]) -> dict[str, npt.NDArray[Any]]:
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
