"""Prepared shards in other people's loops: the same batches as our loader's, and the place kept over a restart."""

from __future__ import annotations

import importlib.util
import sys
import types
from abc import ABC
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader

from btlm_train.data import GptHDF5MapDataProcessor
from tests.train import tiny

EXAMPLES = Path(__file__).resolve().parents[2] / "examples" / "loops"
SMALL = [
    f"model.{key}={value}"
    for key, value in tiny.MODEL.items()
    if isinstance(value, int | float) and value is not True
]


def example(name: str) -> Any:
    """A module of examples/loops."""
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    """A whole dataset; its split is found."""
    tiny.write_shards(tmp_path / "set" / "train", 45)
    tiny.write_manifest(tmp_path / "set")
    return tmp_path / "set"


def labels(batches: Any) -> list[list[list[int]]]:
    return [batch["labels"].tolist() for batch in batches]


def ours(
    shards: Path, passes: int, rank: int = 0, world_size: int = 1, **settings: Any
) -> list[list[list[int]]]:
    loader = GptHDF5MapDataProcessor(
        {"data_dir": str(shards / "train"), "batch_size": 8, "shuffle": True, **settings}
    ).create_dataloader(rank=rank, world_size=world_size)
    return [batch for _ in range(passes) for batch in labels(loader)]


def test_a_whole_dataset_names_its_training_split(shards: Path, tmp_path: Path) -> None:
    tiny.write_shards(shards / "validation", 9)
    tiny.write_manifest(shards)
    settings = {"batch_size": 4}
    whole = GptHDF5MapDataProcessor({"data_dir": str(shards), **settings})
    split = GptHDF5MapDataProcessor({"data_dir": str(shards / "train"), **settings})
    assert labels(whole.create_dataloader()) == labels(split.create_dataloader())
    whole.create_dataloader().load_state_dict(split.create_dataloader().state_dict())


@pytest.mark.parametrize("settings", [{}, {"drop_last": False, "pad_last": True}, {"num_samples": 101}])
@pytest.mark.parametrize("workers", [0, 2])
def test_a_plain_loader_of_torch_gives_our_batches(
    shards: Path, settings: dict[str, Any], workers: int
) -> None:
    processor = GptHDF5MapDataProcessor(
        {"data_dir": str(shards), "batch_size": 8, "shuffle": True, **settings}
    )
    sampler = processor.create_sampler(rank=1, world_size=2)
    loader = DataLoader(processor.dataset, batch_size=None, sampler=sampler, num_workers=workers)
    assert len(loader) == len(sampler)
    assert [*labels(loader), *labels(loader)] == ours(shards, 2, 1, 2, **settings)


def test_single_samples_are_collated_by_torch(shards: Path) -> None:
    processor = GptHDF5MapDataProcessor({"data_dir": str(shards), "batch_size": 8})
    batch = next(iter(DataLoader(processor.dataset, batch_size=5)))
    assert batch["labels"].shape == (5, tiny.LENGTH)
    assert batch["labels"].dtype == torch.int32


@pytest.mark.filterwarnings("ignore:'set_vital' is deprecated")  # torchdata 0.11 on newer torch
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("stop", [0, 3, 5, 7])
def test_stateful_loader_goes_on_with_the_next_batch(shards: Path, workers: int, stop: int) -> None:
    """5 batches an epoch: within the first, at its end, within the second."""
    pytest.importorskip("torchdata")
    build = example("stateful_loader").loader
    expected = ours(shards, 3)
    first = build(str(shards), num_workers=workers)
    found: list[Any] = []
    state = first.state_dict()
    while len(found) < stop:
        for batch in first:
            found.append(batch["labels"].tolist())
            if len(found) == stop:
                state = first.state_dict()
                break
    second = build(str(shards), num_workers=workers)
    second.load_state_dict(state)
    while len(found) < len(expected):
        found += labels(second)
    assert found[: len(expected)] == expected


def test_accelerate_trains_and_goes_on(shards: Path, tmp_path: Path) -> None:
    pytest.importorskip("accelerate")
    main = example("accelerate_loop").main
    whole = main(str(shards), tmp_path / "whole", 15, *SMALL)
    parts = main(str(shards), tmp_path / "parts", 4, *SMALL) + main(
        str(shards), tmp_path / "parts", 11, *SMALL
    )
    assert parts == pytest.approx(whole, rel=1e-5)
    assert whole[-1] < whole[0]


@pytest.mark.filterwarnings("ignore")
def test_lightning_trains_and_goes_on(shards: Path, tmp_path: Path) -> None:
    pytest.importorskip("lightning")
    main = example("lightning_loop").main
    for name in ("whole", "parts"):
        (tmp_path / name).mkdir()
    whole = main(str(shards), tmp_path / "whole", 9, *SMALL)
    first = main(str(shards), tmp_path / "parts", 4, *SMALL)
    second = main(str(shards), tmp_path / "parts", 9, *SMALL)
    seen = [batch.tolist() for batch in first.seen + second.seen]
    assert seen == [batch.tolist() for batch in whole.seen]
    for one, other in zip(whole.parameters(), second.parameters(), strict=True):
        torch.testing.assert_close(one, other)


def test_torchtitan_gets_what_its_loop_takes(shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With its base class where it is installed, else with one of the same two abstract methods."""
    if importlib.util.find_spec("torchtitan") is None:
        stand_in = types.ModuleType("torchtitan.components.dataloader")
        stand_in.BaseDataLoader = type("BaseDataLoader", (ABC,), {})  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "torchtitan.components.dataloader", stand_in)
    build = example("torchtitan_loader").build
    first = iter(loader := build(str(shards), 0, 1, 4))
    seen = [next(first)[1].tolist() for _ in range(13)]
    state = loader.state_dict()
    parts = [iter(part) for part in (build(str(shards), rank, 2, 2) for rank in range(2))]
    later = [build(str(shards), rank, 2, 2) for rank in range(2)]
    for one in later:
        one.load_state_dict(state)
        one.load_state_dict({})
    after = [next(first) for _ in range(3)]
    halves = [[next(part) for _ in range(3)] for part in map(iter, later)]
    assert [a[1].tolist() for a in after] == [
        torch.cat([x[1], y[1]]).tolist() for x, y in zip(*halves, strict=True)
    ]
    assert next(parts[0])[1].tolist() == seen[0][:2]
    assert seen[11][0].count(-100) == tiny.LENGTH // 2  # the padded end of the last sample
