"""Tokens that are moved before they are packed: the same bytes, in few and long reads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from btlm_data import pipeline
from btlm_data.progress import Lines
from btlm_data.recipe.load import load
from btlm_data.stages import runs, shuffle
from btlm_data.stages.runs import RECORD, Moves
from tests.engine.disturbed import contents


def prepare(out: Path, **options: Any) -> dict[str, bytes]:
    given = {"source.name": "sample", "run.out": str(out), "run.workers": 1, "seq_len": 64, "source.files": 1}
    given |= {key.replace("__", "."): value for key, value in options.items()}
    pipeline.prepare(load(None, {key: (value, "test") for key, value in given.items()}), Lines())
    return contents(out)


def test_moved_tokens_give_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Many buckets, and pieces of a few kB."""
    monkeypatch.setattr(shuffle, "BUCKET_BYTES", 150_000)
    monkeypatch.setattr(runs, "_PIECE_BYTES", 40_000)
    monkeypatch.setattr(runs, "LEAST_PIECE", 20_000)
    monkeypatch.setattr(runs, "_STRETCH_BYTES", 40_000)
    options = {"format": "vsl", "seq_len": ["128:0.6", "32:0.4"], "holdout__fraction": 0.2}
    expected = prepare(tmp_path / "direct", **options)
    assert not (tmp_path / "direct/.work/shuffle/merge-2").exists()
    monkeypatch.setenv("BTLM_SCATTER", "1")
    folders = set()
    for memory in ("300KB", "200KB"):
        out = tmp_path / memory
        assert prepare(out, run__memory=memory, **options) == expected, memory
        folders |= {path.name for path in (out / ".work/receipts").iterdir() if "merge" in path.name}
        with_files = {path.parent.name for path in (out / ".work/shuffle").rglob("*.tokens")}
        assert "scatter" not in with_files, "what was moved once more is removed with the dataset complete"
        assert len(with_files) == 1
    assert {"shuffle.merge-2", "shuffle.merge-3"} <= folders


@settings(max_examples=200, deadline=None)
@given(total=st.integers(1, 10**14), memory=st.integers(10**8, 10**11))
def test_the_passes_grow_with_the_logarithm(total: int, memory: int) -> None:
    moves = Moves.plan(total, memory)
    span = total // moves.fanout ** max(0, moves.passes - 1)
    if moves.passes:
        assert runs._STRETCH_BYTES * moves.run_bytes >= runs.LEAST_PIECE * span or span <= 2 * moves.run_bytes
        assert moves.fanout <= 20_000 or memory > 2 * 10**11
    if memory >= 10**9:
        assert moves.passes <= (
            0 if total < 10**9 else 1 if total < 2 * 10**10 else 2 if total < 3 * 10**12 else 3
        )


@given(st.lists(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 7)), max_size=8), max_size=5))
def test_records_and_tokens_are_laid_down_by_key_and_equal_keys_by_origin(
    parts: list[list[tuple[int, int]]],
) -> None:
    sources, records, expected = [], [], []
    for number, part in enumerate(parts):
        record = np.zeros(len(part), RECORD)
        record["key"] = [key for key, _ in part]
        record["length"] = [length for _, length in part]
        record["start"] = np.cumsum(record["length"]) - record["length"]
        tokens = np.arange(record["length"].sum()).astype(np.uint16) + np.uint16(1000 * (number + 1))
        sources.append(tokens)
        records.append(record)
        expected += [
            (key, number, i, tokens[record["start"][i] : record["start"][i] + length].tolist())
            for i, (key, length) in enumerate(part)
        ]
    in_order, origin = runs.in_order(records)
    out = runs.lay_down(sources, in_order, origin, "uint16")
    found = [out[one["start"] : one["start"] + one["length"]].tolist() for one in in_order]
    assert found == [tokens for *_, tokens in sorted(expected, key=lambda one: one[:3])]
    assert len(out) == sum(len(tokens) + 1 for *_, tokens in expected)
