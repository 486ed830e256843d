"""The reader's order against the simulation of the design page: batches, passes, resuming, ranks."""

from __future__ import annotations

import itertools
import tempfile
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from btlm_data.errors import ConfigError
from btlm_train.data import GptHDF5MapDataProcessor, RestartableDataLoader, SampleOrder
from tests.reference import reader_order

LENGTH = 2
FOLDERS = ["b", "a", "a-b", "a/sub"]
NAMES = ["data-00000.h5", "data-00001.h5", "data-10.h5", "data-2.h5", ".hidden.h5", "A.h5"]


@st.composite
def row_counts(draw: st.DrawFn, most: int = 7) -> dict[str, dict[str, int]]:
    """For each folder, rows by file name: empty files, hidden files, names that sort unlike numbers."""
    files = st.dictionaries(st.sampled_from(NAMES), st.integers(0, most), min_size=1, max_size=4)
    return {folder: draw(files.filter(lambda rows: sum(rows.values()) > 2)) for folder in FOLDERS}


@st.composite
def subsets(draw: st.DrawFn) -> str:
    bounds = draw(st.lists(st.integers(0, 20), min_size=2, max_size=6).map(sorted))
    bounds = bounds[: len(bounds) // 2 * 2]
    return ",".join(f"{low / 20}-{high / 20}" for low, high in zip(bounds[::2], bounds[1::2], strict=True))


def data_dirs() -> st.SearchStrategy[str | list[str]]:
    return st.one_of(st.sampled_from(FOLDERS), st.lists(st.sampled_from(FOLDERS), min_size=1, max_size=3))


@st.composite
def configs(draw: st.DrawFn) -> dict[str, Any]:
    config: dict[str, Any] = {
        "batch_size": draw(st.integers(1, 9)),
        "shuffle": draw(st.booleans()),
        "shuffle_seed": draw(st.integers(0, 1000)),
        "drop_last": draw(st.booleans()),
        "pad_last": draw(st.booleans()),
        "num_samples": draw(st.none() | st.integers(1, 60)),
    }
    kind = draw(st.sampled_from(["sample", "vsl", "corpus"]))
    config["use_vsl"] = kind == "vsl"
    if kind == "corpus":
        config["max_sequence_length"] = LENGTH
    subset = st.none() | subsets()
    if draw(st.booleans()):
        config["data_dir"] = draw(data_dirs())
        config["data_subset"] = draw(subset)
    else:
        weights = draw(
            st.lists(st.sampled_from([0, 1, 0.3, 2.5, 0.04, 7]), min_size=1, max_size=4).filter(any)
        )
        config["mixture"] = [
            {"data_dir": draw(data_dirs()), "weight": weight, "data_subset": draw(subset)}
            for weight in weights
        ]
    return config


def write_folders(
    root: Path, counts: dict[str, dict[str, int]], config: dict[str, Any]
) -> reader_order.Folders:
    """Write shards of `counts` rows each; returns what they hold. Each sample (or token) has a number of its
    own.
    """
    number = itertools.count(1)
    planes = 5 if config["use_vsl"] else 3
    folders: reader_order.Folders = {}
    for folder, files in counts.items():
        (root / folder).mkdir(parents=True, exist_ok=True)
        folders[str(root / folder)] = content = {}
        for name, count in files.items():
            rows = list(itertools.islice(number, count * 3 if config.get("max_sequence_length") else count))
            content[name] = rows
            with h5py.File(root / folder / name, "w") as file:
                if config.get("max_sequence_length"):
                    file["data"] = np.array(rows, np.uint16)
                else:
                    plane = 1000 * np.arange(planes, dtype=np.int64)[:, None]
                    file["data"] = np.array(rows, np.int64)[:, None, None] + np.repeat(plane, LENGTH, axis=1)
    return folders


def with_root(config: dict[str, Any], root: Path) -> dict[str, Any]:
    def placed(data_dir: str | list[str]) -> str | list[str]:
        return (
            str(root / data_dir) if isinstance(data_dir, str) else [str(root / folder) for folder in data_dir]
        )

    if "data_dir" in config:
        return {**config, "data_dir": placed(config["data_dir"])}
    return {
        **config,
        "mixture": [{**entry, "data_dir": placed(entry["data_dir"])} for entry in config["mixture"]],
    }


def identities(batch: dict[str, torch.Tensor], config: dict[str, Any]) -> list[Any]:
    """The samples of a batch as the simulation names them, every feature checked on the way; None where all
    is zero.
    """
    result: list[Any] = []
    for row in range(len(batch["input_ids"])):
        sample = [values[row].tolist() for values in batch.values()]
        if not any(itertools.chain(*sample)):
            result.append(None)
        elif config.get("max_sequence_length"):
            ids, mask, labels = sample
            assert mask == [1] * LENGTH
            assert ids[1:] == labels[:-1]
            result.append((*ids, labels[-1]))
        else:
            assert sample == [[sample[0][0] + 1000 * plane] * LENGTH for plane in range(len(sample))]
            result.append(sample[0][0])
    return result


def take_passes(loader: RestartableDataLoader, config: dict[str, Any], count: int) -> list[list[list[Any]]]:
    result = []
    for _ in range(count):
        promised = len(loader)
        batches = [identities(batch, config) for batch in loader]
        assert len(batches) == promised
        result.append(batches)
    return result


def selects_nothing(config: dict[str, Any], folders: reader_order.Folders) -> bool:
    """Whether the data, or a set of the mixture, is empty, or no set of the mixture is above 5%."""
    length = config.get("max_sequence_length")
    if "data_dir" in config:
        return not reader_order.data_of(config, folders)
    used = [entry for entry in config["mixture"] if entry["weight"] > 0]
    if any(
        not reader_order.samples_of(entry["data_dir"], entry["data_subset"], folders, length)
        for entry in used
    ):
        return True
    return not reader_order.data_of(config, folders)  # int(total * weight) can be 0


PROPERTY = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much])


@settings(PROPERTY, max_examples=300)
@given(counts=row_counts(), config=configs(), world_size=st.integers(1, 4))
def test_batches_equal_the_simulation(
    counts: dict[str, dict[str, int]], config: dict[str, Any], world_size: int
) -> None:
    with tempfile.TemporaryDirectory() as name:
        folders = write_folders(Path(name), counts, config)
        config = with_root(config, Path(name))
        if selects_nothing(config, folders):
            with pytest.raises(Exception, match=r"No sample is left|has no sample"):
                GptHDF5MapDataProcessor(config)
            return
        expected = reader_order.passes(config, folders, 3)
        processor = GptHDF5MapDataProcessor(config)
        assert take_passes(processor.create_dataloader(), config, 3) == expected
        # The slices of the ranks, end to end, are the global batch.
        ranks = [
            take_passes(processor.create_dataloader(rank=rank, world_size=world_size), config, 3)
            for rank in range(world_size)
        ]
        joined = [
            [list(itertools.chain(*slices)) for slices in zip(*one_pass, strict=True)]
            for one_pass in zip(*ranks, strict=True)
        ]
        assert joined == expected


@settings(PROPERTY, max_examples=120)
@given(
    counts=row_counts(),
    config=configs(),
    legs=st.lists(
        st.tuples(st.integers(1, 9), st.integers(0, 12), st.integers(1, 3)), min_size=2, max_size=5
    ),
)
def test_any_stop_goes_on_with_the_very_next_sample(
    counts: dict[str, dict[str, int]], config: dict[str, Any], legs: list[tuple[int, int, int]]
) -> None:
    """Legs of a run, each with a batch size, a number of batches and a world size of its own, read the one
    stream without a seam.
    """
    with tempfile.TemporaryDirectory() as name:
        folders = write_folders(Path(name), counts, config)
        config = with_root(config, Path(name))
        if selects_nothing(config, folders):
            return
        state: dict[str, Any] | None = None
        seen: list[Any] = []
        for batch_size, count, world_size in legs:
            config["batch_size"] = batch_size
            processor = GptHDF5MapDataProcessor(config)
            loaders = [
                processor.create_dataloader(rank=rank, world_size=world_size) for rank in range(world_size)
            ]
            if state is not None:
                for loader in loaders:
                    loader.load_state_dict(state)
            for slices in itertools.islice(zip(*map(repeated, loaders), strict=True), count):
                seen += itertools.chain(*(identities(batch, config) for batch in slices))
            states = [loader.state_dict() for loader in loaders]
            assert all(each == states[0] for each in states)
            state = states[0]
        seen = [sample for sample in seen if sample is not None]
        assert state is not None
        assert state["samples_streamed"] == len(seen)
        assert seen == list(itertools.islice(reader_order.stream(config, folders), len(seen)))


def repeated(loader: RestartableDataLoader) -> Any:
    """Pass after pass; ends after 30 passes in which there was no batch (a batch much larger than the
    data).
    """
    for _ in range(30):
        yield from loader


@pytest.mark.parametrize("length", [1, 7, 1000, 70_001])
def test_a_permutation_does_not_depend_on_the_dtype_it_is_drawn_in(length: int) -> None:
    drawn = SampleOrder(length, shuffle=True, seed=3).between(0, length)
    assert drawn.tolist() == torch.randperm(length, generator=torch.Generator().manual_seed(3)).tolist()


def test_a_first_epoch_shorter_than_a_batch_opens_the_second(tmp_path: Path) -> None:
    config = {"batch_size": 5, "shuffle": True, "use_vsl": False}
    write_folders(tmp_path, {"a": {"x.h5": 3}}, config)
    loader = GptHDF5MapDataProcessor({**config, "data_dir": str(tmp_path / "a")}).create_dataloader()
    order = [
        [int(i) + 1 for i in torch.randperm(3, generator=torch.Generator().manual_seed(seed))]
        for seed in range(4)
    ]
    flat = list(itertools.chain(*order))
    assert take_passes(loader, config, 2) == [[flat[:5]], []]
    assert take_passes(loader, config, 1) == [[flat[5:10]]]


def test_an_abandoned_pass_starts_over(tmp_path: Path) -> None:
    config = {"batch_size": 2, "use_vsl": False}
    write_folders(tmp_path, {"a": {"x.h5": 6}}, config)
    loader = GptHDF5MapDataProcessor({**config, "data_dir": str(tmp_path / "a")}).create_dataloader()
    first = [identities(batch, config) for batch, _ in zip(loader, range(2), strict=False)]
    assert first == [[1, 2], [3, 4]]
    assert loader.state_dict()["samples_streamed"] == 6
    assert take_passes(loader, config, 1) == [[[1, 2], [3, 4], [5, 6]]]


def test_rank_outside_the_world_is_refused(tmp_path: Path) -> None:
    config = {"batch_size": 2, "use_vsl": False}
    write_folders(tmp_path, {"a": {"x.h5": 6}}, config)
    processor = GptHDF5MapDataProcessor({**config, "data_dir": str(tmp_path / "a")})
    with pytest.raises(ConfigError, match="Rank 2 of 2"):
        processor.create_dataloader(rank=2, world_size=2)


class Original:
    """The published sampler, in the cases where ours differs: what it was told at first, and again on a restart."""

    def __init__(self, count: int, size: int, epoch_length: int, drop_last: bool, streamed: int = 0) -> None:
        self.count, self.size, self.length, self.drop_last = count, size, epoch_length, drop_last
        self.epoch, self.offset = divmod(streamed, epoch_length)
        self.left: list[int] = []
        if epoch_length - self.offset < size:
            self.left = self.order()

    def order(self) -> list[int]:
        generator = torch.Generator().manual_seed(self.epoch)
        if self.length <= self.count:
            order = torch.randperm(self.count, generator=generator).tolist()[: self.length]
        else:
            copies = [i for _ in range(-(-self.length // self.count) - 1) for i in range(self.count)]
            copies = (copies + torch.randperm(self.count, generator=generator).tolist())[: self.length]
            order = [copies[i] for i in torch.randperm(self.length, generator=generator).tolist()]
        order = order[self.offset :]
        self.epoch, self.offset = self.epoch + 1, 0
        return order

    def next_pass(self) -> list[list[int]]:
        pool = (self.left if self.drop_last else []) + self.order()
        whole = len(pool) // self.size * self.size
        batches = [pool[at : at + self.size] for at in range(0, whole, self.size)]
        if self.drop_last:
            self.left = pool[whole:]
        elif pool[whole:]:
            batches.append(pool[whole:])
        return batches


@pytest.mark.parametrize("drop_last", [True, False])
@pytest.mark.parametrize(
    ("count", "size", "num_samples"), [(7, 10, None), (7, 3, None), (7, 3, 17), (10, 4, 6)]
)
@pytest.mark.parametrize("stop", [0, 1, 2, 3])
def test_strict_compat_is_the_originals_order(
    tmp_path: Path, count: int, size: int, num_samples: int | None, drop_last: bool, stop: int
) -> None:
    config: dict[str, Any] = {
        "batch_size": size, "shuffle": True, "drop_last": drop_last, "num_samples": num_samples, "use_vsl": False,
        "strict_compat": True,
    }  # fmt: skip
    write_folders(tmp_path, {"a": {"x.h5": count}}, config)
    given = {**config, "data_dir": str(tmp_path / "a")}
    loader = GptHDF5MapDataProcessor(given).create_dataloader()
    original = Original(count, size, num_samples or count, drop_last)
    expected = [batch for _ in range(4) for batch in original.next_pass()][:stop]
    found = [identities(batch, config) for batch in itertools.islice(repeated(loader), stop)]
    assert found == [[index + 1 for index in batch] for batch in expected]
    state = loader.state_dict()
    streamed = sum(map(len, expected))
    assert state["samples_streamed"] == streamed
    again = GptHDF5MapDataProcessor(given).create_dataloader()
    again.load_state_dict(state)
    restarted = Original(count, size, count, drop_last, streamed)  # num_samples is forgotten
    assert take_passes(again, config, 4) == [
        [[index + 1 for index in batch] for batch in restarted.next_pass()] for _ in range(4)
    ]


@pytest.mark.parametrize("shuffle", [True, False])
def test_strict_compat_pairs_weights_with_the_wrong_sets(tmp_path: Path, shuffle: bool) -> None:
    """An epoch is as long as the sets' lengths say, but those of a mixture with sets of weight 0 are taken in order."""
    config: dict[str, Any] = {"batch_size": 1, "shuffle": shuffle, "use_vsl": False}
    write_folders(tmp_path, {"a": {"x.h5": 12}, "b": {"x.h5": 5}, "c": {"x.h5": 6}}, config)
    weights = {"a": 0, "b": 1, "c": 3}
    mixture = [{"data_dir": str(tmp_path / name), "weight": weight} for name, weight in weights.items()]
    ours = GptHDF5MapDataProcessor({**config, "mixture": mixture}).dataset
    theirs = GptHDF5MapDataProcessor({**config, "mixture": mixture, "strict_compat": True}).dataset
    assert len(ours) == int(20 * 0.25) + int(20 * 0.75)  # max(5 / 0.25, 6 / 0.75)
    assert len(theirs) == int(48 * 0.25) + int(48 * 0.75)  # max(12 / 0.25, 5 / 0.75)
    with pytest.raises(ConfigError, match="strict_compat: True then, not a setting now"):
        ours.load_state_dict(theirs.state_dict())
