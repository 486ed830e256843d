"""Checks of values that kernels use as indices. Compiled code does not check them itself: a value from a
damaged file would read or write anywhere in memory. Each check is one or two vectorised passes and raises
DataError.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from btlm_data.errors import DataError

_ADVICE = "The file is damaged or was written by another version. Delete it and rerun the same command."


def check_below(values: npt.NDArray[Any], limit: int, name: str) -> None:
    """Every value, of any shape and integer dtype, is in [0, limit). name: what the values are, for the
    message.
    """
    if values.size and not (int(values.min()) >= 0 and int(values.max()) < limit):
        flat = values.reshape(-1)
        row = int(np.flatnonzero((flat < 0) | (flat >= limit))[0])
        raise DataError(f"{name} {row} is {flat[row]}, outside the range from 0 to {limit - 1}. {_ADVICE}")


def check_offsets(offsets: npt.NDArray[Any], length: int, name: str) -> None:
    """Offsets (n + 1,): at least one, never decreasing, all in [0, length]: item i is
    data[offsets[i]:offsets[i + 1]]. Any integer dtype.
    """
    if not len(offsets):
        raise DataError(f"{name} are empty; even no items have one offset. {_ADVICE}")
    check_below(offsets, length + 1, name)
    if len(offsets) > 1 and not bool((offsets[1:] >= offsets[:-1]).all()):
        row = int(np.flatnonzero(offsets[1:] < offsets[:-1])[0])
        raise DataError(f"{name} decrease from {offsets[row]} to {offsets[row + 1]} at {row + 1}. {_ADVICE}")


def check_stretches(starts: npt.NDArray[Any], stops: npt.NDArray[Any], length: int, name: str) -> None:
    """starts, stops (n,): 0 <= starts[i] <= stops[i] <= length. Any integer dtype."""
    check_same_length(name, starts, stops)
    check_below(starts, length + 1, f"{name}: start")
    check_below(stops, length + 1, f"{name}: stop")
    if not bool((starts <= stops).all()):
        row = int(np.flatnonzero(starts > stops)[0])
        raise DataError(f"{name} {row} starts at {starts[row]} and stops before, at {stops[row]}. {_ADVICE}")


def check_same_length(name: str, *arrays: npt.NDArray[Any]) -> None:
    """All arrays have the same first dimension. name: what they are."""
    if len({len(array) for array in arrays}) > 1:
        raise DataError(
            f"{name} have {', '.join(str(len(a)) for a in arrays)} items, not as many each. {_ADVICE}"
        )
