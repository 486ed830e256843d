"""Ordering, moving, packing and writing tokens that are made directly: CPU per token, and reads, as the corpus grows.

Blocks and memory are small against the tokens, so that one and two passes over them are needed, as at 10^11 to 10^12 tokens with
blocks of 16 MB and 2 GB a worker; the pieces that are read are those of any run, so that mean reads are what a large run has. BTLM_BENCH_TOKENS
sets the smaller number (default 10^9, of which the larger is four times: disk for 10 bytes a token in all); BTLM_BENCH_MEMORY the worker's memory
(default 200 MB).
"""

from __future__ import annotations

import os
import resource
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from btlm_data import by_group, by_ordinal, seeding
from btlm_data.blocks import Block
from btlm_data.engine.base import EngineSettings
from btlm_data.engine.local import LocalEngine
from btlm_data.engine.runner import Runner
from btlm_data.formats import columns
from btlm_data.locations import Locations
from btlm_data.recipe.load import load
from btlm_data.stages import pack, pieces, shard, shuffle
from btlm_data.stages.stream import StreamSettings
from btlm_data.task import Artifact
from tests.reads import Reads, counting

DOCUMENT = 1000  # tokens on average
SEQ_LEN = 2048


@dataclass(frozen=True)
class Scale:
    """How everything is shrunk against a real corpus. memory: of the worker; block: tokens in a block. piece: of what passes read;
    least: of what shards read, on average; 0 for those of any run. Bytes.
    """

    memory: int
    block: int
    piece: int
    least: int
    bucket: int
    samples_per_file: int


SCALE = Scale(
    int(float(os.environ.get("BTLM_BENCH_MEMORY", "2e8"))),
    1_000_000,
    0,
    0,
    26_000_000,
    2048,
)


class Silent:
    """Ignores progress."""

    def step_started(self, *_: object) -> None: ...
    def step_moved(self, *_: object) -> None: ...
    def step_finished(self, *_: object) -> None: ...


def build(folder: Path, num_tokens: int, scale: Scale) -> tuple[list[Block], Artifact]:
    """Blocks of random tokens whose documents stand in the order of their keys, and fates that keep all."""
    store = Locations(str(folder), str(folder)).open().work
    salt, blocks, ordinal = seeding.salt(0, "shuffle"), [], 0
    for number in range(-(-num_tokens // scale.block)):
        chance = np.random.default_rng(number)
        count = scale.block // DOCUMENT
        lengths = chance.integers(DOCUMENT // 2, 3 * DOCUMENT // 2, count).astype(np.uint32)
        keys = seeding.document_keys(f"{number}", np.arange(count, dtype=np.uint64))
        order = np.argsort(seeding.mix64(keys, salt), kind="stable")
        starts = np.empty(count, np.uint64)
        starts[order] = np.cumsum(lengths[order]) - lengths[order]
        tokens = chance.integers(0, 50_000, int(lengths.sum()), dtype=np.uint16)
        stem = f"read/{number:06d}"
        docs: dict[str, Any] = {"key": keys, "source": np.zeros(count, np.uint32)}
        docs["num_bytes"] = lengths * np.uint32(4)
        docs_file = columns.write(store, f"{stem}.docs", docs, {"sources": ["made"], "files": [stem]})
        tokens_file = columns.write(
            store, f"{stem}.tokens", {"tokens": tokens, "starts": starts, "lengths": lengths}
        )
        rest: Mapping[str, Any] = dict.fromkeys(Block._fields[7:])
        blocks.append(Block(stem, "train", ordinal, count, 0, docs_file, tokens_file, **rest))
        ordinal += count
    zeros = np.zeros(ordinal, np.uint8)
    drawn = columns.write(store, "holdout/draw/000000.cols", {"fate": zeros, "split": zeros})
    return blocks, by_ordinal.write_list(store, "holdout/fates.json", [(0, len(zeros), drawn)])


def prepare(
    folder: Path, blocks: list[Block], fates: Artifact, scale: Scale, patch: pytest.MonkeyPatch
) -> tuple[dict[str, Reads], float, int]:
    """Everything behind `holdout` but the tables; returns reads by step, CPU seconds, and passes over the tokens."""
    for module, name, value in (
        (by_group, "PIECE_BYTES", scale.piece),
        (by_group, "_LEAST_FILE", min(scale.piece, 1)),
        (pieces, "LEAST_PIECE", scale.least),
    ):
        if value:
            patch.setattr(module, name, value)
    patch.setattr(shuffle, "BUCKET_BYTES", scale.bucket)
    patch.setenv("BTLM_SCATTER", "1")
    given = {"source.name": "sample", "seq_len": SEQ_LEN, "run.out": str(folder / "out"), "run.workers": 1}
    given |= {"run.memory": scale.memory, "shards.samples_per_file": scale.samples_per_file}
    recipe = load(None, {key: (value, "bench") for key, value in given.items()})
    locations = Locations(str(folder), str(folder / "out"))
    begun = resource.getrusage(resource.RUSAGE_SELF)
    with LocalEngine(EngineSettings(1)) as engine, counting(patch) as found:
        runner = Runner(locations, locations.open(), engine, Silent())
        settings = StreamSettings(recipe.settings, ("train",))
        num_bytes = sum(4 * block.num_documents * DOCUMENT for block in blocks)
        streams = shuffle.run(runner.run, runner, blocks, fates, None, settings, num_bytes)
        [index] = streams.streams.values()
        packing = pack.packing_of(recipe.settings, SEQ_LEN, "train", "uint16", 50_256)
        source = pack.StreamSource("bench", scale.memory, blocks)
        sample_sets = [pack.SampleSet("train", index, packing)]
        runner.run(shard.plan(runner, sample_sets, source, pack.FormatSettings.of("sample")).step)
    ended = resource.getrusage(resource.RUSAGE_SELF)
    seconds = ended.ru_utime + ended.ru_stime - begun.ru_utime - begun.ru_stime
    return dict(found), seconds, sum(step.startswith("pack.pieces") for step in found)


def run() -> list[dict[str, Any]]:
    """Rows of CPU per token and of the mean reads, at a number of tokens and at four times as many."""
    small = int(float(os.environ.get("BTLM_BENCH_TOKENS", "1e9")))
    rows: list[dict[str, Any]] = []
    per_token: list[float] = []
    with pytest.MonkeyPatch.context() as patch:
        for num_tokens in (small // 20, small, 4 * small):  # the first compiles
            folder = Path(tempfile.mkdtemp(prefix="bench-linear-", dir=os.environ.get("BTLM_BENCH_DIR")))
            try:
                blocks, fates = build(folder, num_tokens, SCALE)
                found, seconds, passes = prepare(folder, blocks, fates, SCALE, patch)
            finally:
                shutil.rmtree(folder)
            per_token.append(seconds / num_tokens * 1e9)
            for step, reads in found.items():
                rows += [
                    _row(
                        f"{num_tokens:.2g} tokens, {passes} passes: {step}, {kind.reads:,} reads of {name}, "
                        f"at most {reads.most_opens:,} files a task; mean read",
                        kind.mean / 1e3,
                        "kB",
                    )
                    for name, kind in (("tokens", reads.tokens), ("tables", reads.tables))
                    if kind.reads
                ]
    rows.append(
        _row("CPU a token, four times the tokens", per_token[2], "ns")
        | {"theirs": per_token[1], "ratio": per_token[2] / per_token[1], "budget": "<= 1.15"}
    )
    return rows


def _row(name: str, ours: float, unit: str) -> dict[str, Any]:
    return {"name": name, "ours": ours, "theirs": None, "ratio": None, "unit": unit, "budget": ""}
