"""Tokens sent straight to their shards: the same bytes as read from the blocks, in few and long reads."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from btlm_data import by_group, pipeline, planning
from btlm_data.errors import DataError
from btlm_data.estimate import Volume, Workload
from btlm_data.formats import columns
from btlm_data.progress import Lines
from btlm_data.recipe.load import load
from btlm_data.stages import pieces, shuffle
from tests.benchmarks import bench_linear
from tests.engine.disturbed import contents


def prepare(out: Path, **options: Any) -> dict[str, bytes]:
    given = {"source.name": "sample", "run.out": str(out), "run.workers": 1, "seq_len": 64, "source.files": 1}
    given |= {key.replace("__", "."): value for key, value in options.items()}
    pipeline.prepare(load(None, {key: (value, "test") for key, value in given.items()}), Lines())
    return contents(out)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Many buckets, and pieces of a few kB."""
    monkeypatch.setattr(shuffle, "BUCKET_BYTES", 150_000)
    monkeypatch.setattr(by_group, "PIECE_BYTES", 5000)
    monkeypatch.setattr(by_group, "_LEAST_FILE", 1)
    monkeypatch.setattr(by_group, "MOST_FILES", 2)
    monkeypatch.setattr(pieces, "_TABLE_READ", 10**9)
    monkeypatch.setattr(pieces, "LEAST_PIECE", 40_000)


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize(
    "options",
    [
        {"shards__samples_per_file": 40, "source__files": 2},
        {"format": "corpus", "holdout__fraction": 0.2},
        {"shuffle": "none", "mix": {"RedPajamaC4": 2.5}, "run__allow_missing_source": True},
        {"seq_len": ["128:0.6", "32:0.4"], "holdout__fraction": 0.2, "tail": "drop"},
        {"format": "vsl", "seq_len": [128, 32], "holdout__fraction": 0.2, "shards__samples_per_file": 90},
        {"format": "vsl", "shuffle": "documents"},
    ],
    ids=["samples", "corpus", "unshuffled mix", "two lengths", "vsl", "vsl in order"],
)
def test_pieces_sent_to_shards_give_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any]
) -> None:
    expected = prepare(tmp_path / "direct", **options)
    monkeypatch.setenv("BTLM_SCATTER", "1")
    steps = set()
    for memory in ("1MB", "50KB"):
        out = tmp_path / memory
        assert prepare(out, run__memory=memory, **options) == expected, memory
        steps |= {path.name for path in (out / ".work/receipts").iterdir()}
        assert not [*(out / ".work/shuffle").rglob("*.tokens")], "tokens stay in blocks until they are sent"
        assert not [*(out / ".work/pack").rglob("*")], "pieces are removed with the dataset complete"
    if "source__files" in options:
        assert {"pack.places", "pack.places-2", "pack.pieces", "pack.pieces-2"} <= steps


def test_reads_stay_long_however_many_tokens_there_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scale = bench_linear.Scale(150_000, 20_000, 10_000, 5_000, 160_000, 8)
    monkeypatch.setattr(columns, "_HEAD_BYTES", 2000)
    passes: dict[int, int] = {}
    for num_tokens in (100_000, 1_600_000):
        folder = tmp_path / str(num_tokens)
        blocks, fates = bench_linear.build(folder, num_tokens, scale)
        with monkeypatch.context() as patch:
            found, _, passes[num_tokens] = bench_linear.prepare(folder, blocks, fates, scale, patch)
        moving = {step: reads for step, reads in found.items() if step.startswith("pack.pieces-")}
        assert all(reads.tokens.mean > scale.piece / 2 for reads in moving.values())
        assert max(reads.most_opens for reads in found.values()) < 200
        assert found["shard.write"].tokens.mean >= scale.least
        # Tables are read with their tokens. What is left is a hundredth of 64 kB or more, as pieces are of 1 MB.
        assert all(each.tables.mean >= 640 for each in moving.values() if each.tables.reads)
        assert found["shard.write"].tables.reads == 0
        sending, scattering = found["pack.pieces"], found["shuffle.scatter"]
        assert sending.tables.reads <= sending.opens - len(blocks), "one read of places in each file"
        assert scattering.tables.reads <= 2 * len(blocks) + 2, "each file of a block is read once"
    assert passes == {100_000: 1, 1_600_000: 3}


@settings(max_examples=50, deadline=None)
@given(tokens=st.integers(10**9, 4 * 10**12), memory=st.integers(5 * 10**8, 2 * 10**10))
def test_tokens_are_moved_once_or_twice_and_in_memory(tokens: int, memory: int) -> None:
    given = {"source.name": ("sample", "test"), "seq_len": (2048, "test"), "run.out": ("out", "test")}
    recipe = load(None, given | {"run.memory": (memory, "test")})
    volume = Volume(1000, 1000, 4 * tokens, tokens // 1000, 4 * tokens, tokens)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BTLM_SCATTER", "1")
        workload = Workload(volume, recipe.settings, recipe.run)
        steps = [step for step in planning.estimates(workload) if step.step.startswith("pack.pieces")]
    assert len(steps) <= (2 if tokens <= 1.2 * 10**12 and memory >= 2 * 10**9 else 3)
    assert all(step.memory_bytes <= memory * 2 // 3 + workload.rates.process_bytes for step in steps)


@given(
    st.lists(st.integers(0, 50), max_size=20),
    st.integers(0, 100),
)
def test_blocks_are_sent_in_order_and_as_many_together_as_memory_holds(sizes: list[int], most: int) -> None:
    chosen = list(pieces._together(sizes, most))
    assert [number for low, high in chosen for number in range(low, high)] == list(range(len(sizes)))
    assert all(high == low + 1 or sum(sizes[low:high]) <= most for low, high in chosen)
    for (low, _), (other, _) in pairwise(chosen):
        assert sum(sizes[low : other + 1]) > most


def test_places_of_another_group_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A kernel would read beside the tokens of a block."""
    scale = bench_linear.Scale(400_000, 20_000, 0, 0, 160_000, 8)
    blocks, fates = bench_linear.build(tmp_path, 100_000, scale)
    place = by_group.piece_of

    def wrong(tables: Any) -> Any:
        return place({name: (records, groups * 0 + 1) for name, (records, groups) in tables.items()})

    monkeypatch.setattr(by_group, "piece_of", wrong)
    with pytest.raises(DataError, match="another group"):
        bench_linear.prepare(tmp_path, blocks, fates, scale, monkeypatch)
