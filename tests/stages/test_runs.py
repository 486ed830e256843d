"""Tokens that are moved before they are packed: the same bytes, in few and long reads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from btlm_data import pipeline
from btlm_data.formats.shard_formats import get_format
from btlm_data.formats.shard_formats.base import StreamSize
from btlm_data.progress import Lines
from btlm_data.recipe.load import load
from btlm_data.stages import pack, runs, shuffle
from btlm_data.stages.runs import RECORD, Moves
from tests.benchmarks import bench_linear
from tests.engine.disturbed import contents


def prepare(out: Path, **options: Any) -> dict[str, bytes]:
    given = {"source.name": "sample", "run.out": str(out), "run.workers": 1, "seq_len": 64, "source.files": 1}
    given |= {key.replace("__", "."): value for key, value in options.items()}
    pipeline.prepare(load(None, {key: (value, "test") for key, value in given.items()}), Lines())
    return contents(out)


SAMPLES = get_format("sample")


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Many buckets, and pieces of a few kB."""
    monkeypatch.setattr(shuffle, "BUCKET_BYTES", 150_000)
    monkeypatch.setattr(runs, "_PIECE_BYTES", 40_000)
    monkeypatch.setattr(runs, "_LEAST_PIECE", 20_000)
    monkeypatch.setattr(runs, "_STRETCH_BYTES", 40_000)
    monkeypatch.setattr(pack, "MERGE_PIECE", 20_000)
    monkeypatch.setattr(pack, "LEAST_PIECE", 5_000)


@pytest.mark.parametrize(
    "options",
    [
        {"shards__samples_per_file": 40},
        {"shuffle": "none", "mix": {"RedPajamaC4": 2.5}, "run__allow_missing_source": True},
        {"format": "vsl", "seq_len": ["128:0.6", "32:0.4"], "holdout__fraction": 0.2},
    ],
    ids=["sample", "unshuffled mix", "vsl"],
)
def test_moved_tokens_give_the_same_bytes(
    tmp_path: Path, small: None, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any]
) -> None:
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
    if options.get("shards__samples_per_file"):
        assert {"pack.merge-1", "pack.merge-2"} <= folders


@pytest.mark.parametrize("bucket", [160_000, 30_000], ids=["a bucket a stretch", "many buckets a stretch"])
def test_reads_stay_long_however_many_tokens_there_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bucket: int
) -> None:
    scale = bench_linear.Scale(400_000, 20_000, 20_000, 10_000, 40_000, bucket, 8)
    mean: dict[int, dict[str, float]] = {}
    passes: dict[int, int] = {}
    for num_tokens in (100_000, 800_000):
        folder = tmp_path / str(num_tokens)
        blocks, fates = bench_linear.build(folder, num_tokens, scale)
        with monkeypatch.context() as patch:
            found, _, passes[num_tokens] = bench_linear.prepare(folder, blocks, fates, scale, patch)
        moving = {step: reads for step, reads in found.items() if "merge" in step}
        assert all(reads.tokens.mean > scale.piece / 2 for reads in moving.values())
        assert max(reads.most_opens for reads in found.values()) < 200
        mean[num_tokens] = {step: found[step].tokens.mean for step in ("pack.cut", "shard.write")}
    assert passes == {100_000: 1, 800_000: 2}
    for step in ("pack.cut", "shard.write"):
        assert mean[800_000][step] >= scale.least, mean


@settings(max_examples=200, deadline=None)
@given(
    total=st.integers(1, 10**14),
    memory=st.integers(10**8, 10**11),
    stretch_bytes=st.none() | st.integers(64 * 2**20, 10**10),
)
def test_the_passes_grow_with_the_logarithm(total: int, memory: int, stretch_bytes: int | None) -> None:
    moves = Moves.plan(total, memory, stretch_bytes)
    span = total // moves.fanout ** max(0, moves.passes - 1)
    if moves.passes:
        stretch = stretch_bytes or runs._STRETCH_BYTES
        assert stretch * moves.run_bytes >= runs._LEAST_PIECE * span or span <= 2 * moves.run_bytes
        assert moves.fanout <= 20_000 or memory > 2 * 10**11
    if memory >= 10**9:
        assert moves.passes <= (
            0 if total < 10**9 else 1 if total < 2 * 10**10 else 2 if total < 3 * 10**12 else 3
        )


@settings(max_examples=30, deadline=None)
@given(tokens=st.integers(10**9, 2 * 10**12), memory=st.integers(5 * 10**8, 2 * 10**10))
def test_what_reads_shuffled_samples_finds_them_in_long_pieces(tokens: int, memory: int) -> None:
    """A stretch of the stream in its runs, and a shard in what was packed, whatever there is of tokens and of memory."""
    given = {"source.name": ("sample", "test"), "seq_len": (2048, "test"), "run.out": ("out", "test")}
    recipe = load(None, given)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BTLM_SCATTER", "1")
        moves = runs.moves_of(recipe.settings, 2 * tokens, memory)
        packing = pack.packing_of(recipe.settings, 2048, "train", "uint16", 50_256)
        size = StreamSize(tokens, tokens // 1000)
        stretches = SAMPLES.stretches(size, packing, memory)
    longest = max(2 * (stretch.tokens[1] - stretch.tokens[0]) for stretch in stretches)
    span = 2 * tokens // moves.fanout ** (moves.passes - 1)
    assert longest * min(moves.run_bytes, span) >= 0.9 * runs._LEAST_PIECE * span or span <= moves.run_bytes
    assert 2 * longest <= memory // 2, "a stretch and its rows"
    num_shards = SAMPLES.plan(size, packing, ()).num_files
    file_bytes = SAMPLES.packed_bytes(size, packing) // len(stretches)
    assert pack._num_merges(file_bytes, len(stretches), num_shards, memory) <= (
        1 if tokens <= 10**12 and memory >= 2 * 10**9 else 2
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
