"""Sums over rows taken together are those of one row after the other."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from hypothesis import example, given
from hypothesis import strategies as st

from btlm_data.inspection import lookup
from btlm_data.inspection.report import Repeat
from btlm_data.inspection.token_measures import _Tally

EOS = 2


def one_by_one(pieces: npt.NDArray[Any], eos: int | None) -> dict[str, Any]:
    sums = dict.fromkeys(("rows", "positions", "mask", "used", "pairs", "continued", "parts"), 0)
    ids, documents, repeat = [], [], Repeat(-1, 0)
    for piece in pieces:
        used = []
        for planes in piece:
            real = lookup.extent(planes)
            own = planes[0][:real].tolist()
            sums["rows"] += 1
            sums["positions"] += planes.shape[1]
            sums["mask"] += int((planes[1] == 1).sum())
            sums["used"] += real
            ids += own
            used.append(real)
            if len(planes) == 5:
                documents.append(int((planes[4][:real] == 0).sum()))
                sums["parts"] += documents[-1]
            elif eos is not None and real:
                documents.append(own[:-1].count(eos) + 1)
            for begin in range(real):
                length = next((k for k in range(begin, real) if own[k] != own[begin]), real) - begin
                if length > repeat.length:
                    repeat = Repeat(own[begin], length)
        if len(piece) == 2 and all(used):
            sums["pairs"] += 1
            sums["continued"] += int(piece[0][2][used[0] - 1] == piece[1][0][0])
    return sums | {"ids": ids, "documents": documents, "repeat": repeat}


@given(
    st.integers(1, 6), st.sampled_from([1, 2]), st.sampled_from([3, 5]), st.integers(1, 9),
    st.sampled_from([None, EOS]), st.integers(0, 99), st.sampled_from([1, 3, 4]),
)  # fmt: skip
@example(2, 2, 3, 4, EOS, 0, 1)
def test_sums_are_those_of_single_rows(
    count: int, rows: int, planes: int, length: int, eos: int | None, seed: int, most: int
) -> None:
    drawn = np.random.default_rng(seed)
    pieces = drawn.integers(0, most, (count, rows, planes, length)).astype(np.int32)
    padding = drawn.integers(0, length + 1, (count, rows))
    for piece, row in np.ndindex(count, rows):
        pieces[piece, row, 1:, length - padding[piece, row] :] = 0
    tally = _Tally(eos)
    tally.add_rows(pieces)
    result = {name: getattr(tally, name) for name in one_by_one(pieces[:0], eos)}
    result["ids"] = np.concatenate(tally.ids).tolist()
    assert result == one_by_one(pieces, eos)
