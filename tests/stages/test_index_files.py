"""An index is the same files whatever the memory and the workers of the run that adds itself."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from btlm_data.dedupe import index_files
from tests.faults.kill_targets import hashes, write_corpus
from tests.stages.runs import prepare

CUTS = st.lists(st.integers(0, 40), max_size=5).map(sorted)


def parts(arrays: dict[str, Any], cuts: list[int]) -> list[dict[str, Any]]:
    return [
        {name: array[a:b] for name, array in arrays.items()}
        for a, b in zip([0, *cuts], [*cuts, 10**6], strict=True)
    ]


@given(st.lists(st.integers(0, 2**64 - 1), max_size=40), CUTS, st.integers(0, 3))
def test_keys_lie_in_the_file_of_their_highest_bits(keys: list[int], cuts: list[int], log: int) -> None:
    arrays = {"keys": np.array(sorted(keys), np.uint64), "low": np.arange(len(keys))}
    files = list(index_files.cut_keys(parts(arrays, cuts), log))
    assert len(files) == 1 << log
    for number, file in enumerate(files):
        assert file["keys"].tolist() == [key for key in sorted(keys) if key >> (64 - log) == number]
    assert [low for file in files for low in file["low"]] == list(range(len(keys)))


@given(CUTS, CUTS, st.integers(0, 30), st.sampled_from([0, 30, 40]))
def test_signatures_are_cut_by_ordinal(one: list[int], other: list[int], first: int, gap: int) -> None:
    def cut(cuts: list[int]) -> list[tuple[int, list[int]]]:
        given = np.arange(40, dtype=np.uint32)[:, None]
        edges = list(zip([0, *cuts], [*cuts, 40], strict=True))
        pieces = [
            (first + a + gap * (a >= 20), given[a:b])
            for a, b in sorted({*edges} if not gap else {(0, 20), (20, 40)})
        ]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(index_files, "SIGNATURES_A_FILE", 16)
            return [(start, rows[:, 0].tolist()) for start, rows in index_files.cut_signatures(pieces)]

    assert cut(one) == cut(other)
    places = {start + i: row for start, rows in cut(one) for i, row in enumerate(rows)}
    assert places == {first + i + gap * (i >= 20): i for i in range(40)}
    assert all(len(rows) <= 16 for _, rows in cut(one))


@given(st.lists(st.integers(0, 30), max_size=40), CUTS, CUTS)
def test_texts_are_cut_by_their_bytes(sizes: list[int], one: list[int], other: list[int]) -> None:
    def cut(cuts: list[int]) -> list[dict[str, list[int]]]:
        bounds = np.cumsum([0, *sizes])
        frames = (np.arange(int(bounds[-1])) % 251).astype(np.uint8)
        edges = [min(cut, len(sizes)) for cut in [0, *cuts, 40]]
        pieces = [
            {
                "ordinals": np.arange(a, b, dtype=np.uint32),
                "frames": frames[bounds[a] : bounds[b]],
                "bounds": bounds[a : b + 1] - bounds[a],
            }
            for a, b in pairwise(edges)
        ]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(index_files, "TEXT_BYTES_A_FILE", 64)
            return [
                {name: array.tolist() for name, array in file.items()}
                for file in index_files.cut_texts(pieces)
            ]

    files = cut(one)
    assert files == cut(other)
    assert [ordinal for file in files for ordinal in file["ordinals"]] == list(range(len(sizes)))
    assert [size for file in files for size in np.diff(file["bounds"])] == sizes
    assert all(file["bounds"][-1] == len(file["frames"]) <= 64 for file in files)


@pytest.mark.parametrize("verify", ["text", pytest.param("signature", marks=pytest.mark.stress), "none"])
def test_workers_and_memory_do_not_show_in_an_index(tmp_path: Path, verify: str) -> None:
    write_corpus(tmp_path / "earlier", 2, 60, 3)
    write_corpus(tmp_path / "corpus", 3, 60, 3)
    found = []
    ways: list[dict[str, Any]] = [
        {"run__memory": "30KB"},
        {"run__memory": "200KB", "run__workers": 2},
        {"run__memory": "2GB"},
    ]
    for number, options in enumerate(ways):
        index = tmp_path / f"{number}/index"
        for name in ("earlier", "corpus"):
            prepare(
                tmp_path / name, tmp_path / f"{name}-{number}", seq_len=64, dedupe__index=str(index), dedupe__verify=verify,
                run__accept_removal=True, run__report=False, **options,
            )  # fmt: skip
        found.append((hashes(index), hashes(tmp_path / f"corpus-{number}")))
    assert found[0] == found[1] == found[2]
