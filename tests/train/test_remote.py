"""Shards in a store are read as local ones: the same batches, whatever the store does; within the cache's bound."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import pickle
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from btlm_data.errors import BtlmError, ConfigError, DataError, InputError
from btlm_data.formats.shard_formats.reader import ShardReader
from btlm_data.storage import remote
from btlm_data.storage.retry import Retry
from btlm_train.data import GptHDF5MapDataProcessor, block_cache, describe_data
from btlm_train.data.block_cache import BlockCache, BlocksInMemory, CacheSettings
from tests.s3_proxy import Faults, Proxy
from tests.train import tiny

LENGTH = 64
PLACE = "s3://corpus/set/train"


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Blocks of 1,024 bytes, so that small shards have many; pauses of milliseconds; nothing held from other tests."""
    for module in ("block_cache", "remote_shard", "read_ahead"):
        monkeypatch.setattr(f"btlm_train.data.{module}.BLOCK_BYTES", 1024)
    monkeypatch.setattr(remote, "Retry", lambda: Retry(3, 0.01))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user-cache"))
    block_cache.IN_MEMORY.clear()
    from btlm_train.data.remote_shard import _store
    from btlm_train.data.shard_reader import OPEN_SHARDS

    _store.cache_clear()
    OPEN_SHARDS.clear()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A prepared set: three shards of our own kind, with dataset.json."""
    from tests.shard_files import write_samples

    root = tmp_path_factory.mktemp("set")
    rng = np.random.default_rng(0)
    (root / "train").mkdir()
    for number, count in enumerate((40, 25, 31)):
        rows = rng.integers(0, 50_000, (count, LENGTH + 1), dtype=np.uint16)
        write_samples(root / "train" / f"data-{number:05}.h5", rows)
    tiny.write_manifest(root)
    return root


@pytest.fixture
def proxy(s3_server: str, bucket: Any, monkeypatch: pytest.MonkeyPatch, folder: Path) -> Iterator[Proxy]:
    """The set in a bucket, behind a proxy that all clients made from now on go through."""
    import s3fs

    bucket.put(str(folder), "corpus/set", recursive=True)
    with Proxy(s3_server) as made:
        monkeypatch.setenv("AWS_ENDPOINT_URL", made.url)
        monkeypatch.setenv(
            "AWS_MAX_ATTEMPTS", "1"
        )  # the client's own tries come before ours, with long pauses
        monkeypatch.setattr(s3fs.S3FileSystem, "retries", 1)
        s3fs.S3FileSystem.clear_instance_cache()
        yield made


def hashes(loader: Any, passes: int = 1) -> list[str]:
    """A hash of every batch."""
    return [
        hashlib.sha256(b"".join(values.numpy().tobytes() for values in batch.values())).hexdigest()
        for _ in range(passes)
        for batch in loader
    ]


def loader_of(
    data_dir: str | Path | list[str], cache: Path, ranks: tuple[int, int] = (0, 1), **config: Any
) -> Any:
    given = {"data_dir": data_dir, "batch_size": 7, "cache_dir": str(cache), **config}
    return GptHDF5MapDataProcessor(given).create_dataloader(rank=ranks[0], world_size=ranks[1])


CONFIGS: list[dict[str, Any]] = [
    {},
    {"shuffle": True, "shuffle_seed": 5},
    {"shuffle": True, "num_workers": 2, "prefetch_factor": 2},
    {"data_subset": "0.1-0.4,0.5-0.9", "num_samples": 200, "shuffle": True},
    {"drop_last": False, "pad_last": True, "num_workers": 1},
]


@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_batches_are_those_of_the_local_folder(
    proxy: Proxy, folder: Path, tmp_path: Path, config: dict[str, Any]
) -> None:
    proxy.faults = Faults(latency=0.002, errors=2, cut=2, flipped=3, zeros=1)
    local = loader_of(folder / "train", tmp_path / "cache", **config)
    far = loader_of(PLACE, tmp_path / "cache", **config)
    assert hashes(far, passes=2) == hashes(local, passes=2)
    there, here = far.state_dict(), local.state_dict()
    assert there["dataset"].pop("data_dir") != here["dataset"].pop("data_dir")
    assert there == here


def test_a_whole_dataset_and_mixtures_and_several_folders(
    proxy: Proxy, bucket: Any, folder: Path, tmp_path: Path
) -> None:
    bucket.put(str(folder / "train" / "data-00001.h5"), "corpus/more/data-00009.h5")
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "data-00009.h5").write_bytes((folder / "train" / "data-00001.h5").read_bytes())
    cache = tmp_path / "cache"
    several = loader_of([PLACE, "s3://corpus/more/"], cache, sort_files=False)
    assert hashes(several) == hashes(
        loader_of([str(folder / "train"), str(tmp_path / "more")], cache, sort_files=False)
    )
    mixed = [{"data_dir": PLACE, "weight": 3}, {"data_dir": str(tmp_path / "more"), "weight": 1}]
    local = [{**mixed[0], "data_dir": str(folder / "train")}, mixed[1]]
    assert hashes(loader_of(None, cache, mixture=mixed)) == hashes(loader_of(None, cache, mixture=local))  # type: ignore[arg-type]
    assert describe_data(PLACE) == describe_data(str(folder / "train"))


def test_a_run_goes_on_elsewhere_at_another_world_size(proxy: Proxy, folder: Path, tmp_path: Path) -> None:
    config: dict[str, Any] = {"shuffle": True, "batch_size": 8}
    expected = hashes(loader_of(folder / "train", tmp_path / "cache", **config), passes=3)
    first = [loader_of(PLACE, tmp_path / "one", (rank, 2), **config) for rank in range(2)]
    streams = [iter(one) for one in first]
    halves = [[next(stream) for stream in streams] for _ in range(5)]
    state = json.loads(json.dumps(first[0].state_dict()))
    whole = [
        hashlib.sha256(
            b"".join(np.concatenate([part[key].numpy() for part in parts]).tobytes() for key in parts[0])
        ).hexdigest()
        for parts in halves
    ]
    later = loader_of(PLACE, tmp_path / "two", **config)
    later.load_state_dict(state)
    on_disk = loader_of(folder / "train", tmp_path / "none", **config)
    on_disk.load_state_dict(state)
    assert whole + hashes(on_disk, passes=3)[: len(expected) - 5] == expected
    assert whole + hashes(later, passes=3)[: len(expected) - 5] == expected


def test_the_cache_keeps_its_bound(
    proxy: Proxy, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bound = 12_000
    monkeypatch.setattr(
        "btlm_train.data.settings.DataConfig.cache", lambda self: CacheSettings(self.cache_dir, bound)
    )
    most: list[int] = []
    watching = threading.Event()

    def watch() -> None:
        (tmp_path / "cache").mkdir()
        with open(tmp_path / "cache" / "used", "ab") as count:
            while not watching.wait(0.001):
                fcntl.flock(count, fcntl.LOCK_EX)  # nobody writes meanwhile
                sizes = [path.stat().st_size for path in (tmp_path / "cache").rglob("*") if path.is_file()]
                fcntl.flock(count, fcntl.LOCK_UN)
                most.append(sum(sizes))

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        expected = hashes(loader_of(folder / "train", tmp_path / "none"), passes=2)
        assert hashes(loader_of(PLACE, tmp_path / "cache"), passes=2) == expected
    finally:
        watching.set()
        thread.join()
    assert 6_000 < max(most) <= bound + 16  # and the 16 bytes of the count itself


def test_what_one_rank_fetched_no_other_asks_for(proxy: Proxy, folder: Path, tmp_path: Path) -> None:
    first = hashes(loader_of(PLACE, tmp_path / "cache"))
    asked = len(proxy.faults.seen)
    assert asked > 3
    block_cache.IN_MEMORY.clear()
    assert hashes(loader_of(PLACE, tmp_path / "cache")) == first
    assert len(proxy.faults.seen) == asked
    ranges = list(proxy.faults.seen)
    assert len(set(ranges)) == len(ranges), "no range was asked for twice"


def test_a_file_system_without_locks_costs_the_cache_not_the_run(
    proxy: Proxy,
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    expected = hashes(loader_of(folder / "train", tmp_path / "cache"))

    def refuse(file: Any, how: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", refuse)
    assert hashes(loader_of(PLACE, tmp_path / "cache")) == expected
    assert "cannot be written (No locks available)" in caplog.text


def test_a_flipped_block_on_the_disk_is_fetched_again(proxy: Proxy, folder: Path, tmp_path: Path) -> None:
    expected = hashes(loader_of(PLACE, tmp_path / "cache"))
    for path in (tmp_path / "cache").rglob("*"):
        if path.is_file() and path.parent.name != "locks" and path.name.isdigit():
            data = bytearray(path.read_bytes())
            data[len(data) // 3] ^= 1
            path.write_bytes(data)
    block_cache.IN_MEMORY.clear()
    assert hashes(loader_of(PLACE, tmp_path / "cache")) == expected


def test_once_ahead_only_the_needed_parts_of_blocks_are_read(
    proxy: Proxy, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What makes the reader as fast as the disk (benchmarks/bench_remote.py measures it)."""
    expected = hashes(loader_of(PLACE, tmp_path / "cache", shuffle=True))
    stored = sum(path.stat().st_size for path in (folder / "train").glob("*.h5"))
    loader = loader_of(PLACE, tmp_path / "cache", shuffle=True)
    asked = len(proxy.faults.seen)
    whole: list[int] = []
    parts: list[int] = []
    load, part = BlockCache.load, BlockCache.part

    def loaded(cache: BlockCache, key: str, number: int) -> bytes | None:
        whole.append(number)
        return load(cache, key, number)

    def partly(cache: BlockCache, key: str, number: int, start: int, count: int) -> bytes | None:
        parts.append(count)
        return part(cache, key, number, start, count)

    monkeypatch.setattr(BlockCache, "load", loaded)
    monkeypatch.setattr(BlockCache, "part", partly)
    assert hashes(loader) == expected
    assert len(proxy.faults.seen) == asked
    assert whole == [], "heads are read when the data is opened"
    assert sum(parts) < stored


def test_one_flipped_block_costs_one_request(proxy: Proxy, folder: Path, tmp_path: Path) -> None:
    expected = hashes(loader_of(PLACE, tmp_path / "cache"))
    loader = loader_of(PLACE, tmp_path / "cache")
    with ShardReader(folder / "train" / "data-00000.h5") as shard:
        ((offset, size),) = shard.stored_ranges(20, 21)
    middle = offset + size // 2
    key = loader.dataset.sources[0].shards.files[0].remote.key
    block = tmp_path / "cache" / key / str(middle // 1024)
    data = bytearray(block.read_bytes())
    data[block_cache.DIGEST_BYTES + middle % 1024] ^= 1
    block.write_bytes(data)
    asked = len(proxy.faults.seen)
    assert hashes(loader) == expected
    assert 1 <= len(proxy.faults.seen) - asked <= 2  # or two, where the sample lies in two blocks


def test_other_stores_are_asked_whether_the_shard_is_still_the_same(folder: Path, tmp_path: Path) -> None:
    import fsspec

    files = fsspec.filesystem("memory")
    place = f"memory://{tmp_path.name}/set"
    for path in sorted(folder.rglob("*.*")):
        files.pipe_file(f"{place}/{path.relative_to(folder)}", path.read_bytes())
    assert hashes(loader_of(place, tmp_path / "cache")) == hashes(loader_of(folder, tmp_path / "none"))
    loader = loader_of(place, tmp_path / "other")
    files.pipe_file(f"{place}/train/data-00001.h5", (folder / "train" / "data-00001.h5").read_bytes())
    block_cache.IN_MEMORY.clear()
    with pytest.raises(DataError, match="changed or went away while it was in use"):
        hashes(loader)


def test_a_data_set_of_the_hub(folder: Path, tmp_path: Path) -> None:
    """In an interpreter of its own: the hub's client reads HF_ENDPOINT when it is imported."""
    from tests.hub import Hub

    script = f"""
import sys
from pathlib import Path
from btlm_train.data import GptHDF5MapDataProcessor
def labels(place):
    settings = {{"data_dir": place, "batch_size": 7, "shuffle": True, "cache_dir": {str(tmp_path / "cache")!r}}}
    return [batch["labels"].tolist() for batch in GptHDF5MapDataProcessor(settings).create_dataloader()]
assert labels("hf://datasets/org/name") == labels("hf://datasets/org/name/train") == labels({str(folder)!r})
print("same")
"""
    with Hub() as hub:
        files = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*.*")}
        hub.add("org/name", files)
        environment = {**os.environ, "HF_ENDPOINT": hub.url, "PYTHONPATH": str(Path(__file__).parents[2])}
        done = subprocess.run(
            [sys.executable, "-c", script],
            env=environment,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
    assert done.stdout == "same\n", done.stderr


FOREIGN: dict[str, dict[str, Any]] = {
    "contiguous": {},
    "lzf": {"chunks": (2, 3, LENGTH), "compression": "lzf"},
    "uncompressed chunks": {"chunks": (1, 3, LENGTH)},
    "checksummed": {"chunks": (2, 3, LENGTH), "fletcher32": True},
    "newest": {"chunks": (2, 3, LENGTH), "compression": "gzip", "maxshape": (None, 3, LENGTH)},
}


@pytest.mark.parametrize("listed", [False, True])
@pytest.mark.parametrize("name", FOREIGN)
def test_files_of_others(proxy: Proxy, bucket: Any, tmp_path: Path, name: str, listed: bool) -> None:
    rows = np.random.default_rng(1).integers(0, 9999, (50, 3, LENGTH), dtype=np.int32)
    (tmp_path / "set" / "train").mkdir(parents=True)
    with h5py.File(
        tmp_path / "set" / "train" / "a.h5", "w", libver="latest" if name == "newest" else None
    ) as file:
        file.create_dataset("data", data=rows, **FOREIGN[name])
    if listed:
        tiny.write_manifest(tmp_path / "set")
    bucket.put(str(tmp_path / "set"), "corpus/foreign", recursive=True)
    checked = (
        name in ("checksummed", "newest") or listed
    )  # else nothing tells what the first reading should be
    proxy.faults = Faults(errors=1, cut=1, flipped=2 if checked else 0)
    config: dict[str, Any] = {"shuffle": True, "batch_size": 5}
    far = loader_of("s3://corpus/foreign/train", tmp_path / "cache", **config)
    assert hashes(far) == hashes(loader_of(tmp_path / "set" / "train", tmp_path / "cache", **config))
    if name == "contiguous":  # from now on each block has a checksum
        for path in (tmp_path / "cache").glob("*/[0-9]*"):
            path.unlink()
        block_cache.IN_MEMORY.clear()
        proxy.faults = Faults(flipped=2)
        again = loader_of("s3://corpus/foreign/train", tmp_path / "cache", **config)
        assert hashes(again) == hashes(loader_of(tmp_path / "set" / "train", tmp_path / "cache", **config))
        assert proxy.faults.flipped == 0


@pytest.mark.parametrize(
    ("fault", "message", "workers"),
    [
        ({"errors": 10**9}, "could not be read", 0),
        ({"errors": 10**9}, "could not be read", 1),
        ({"cut": 10**9}, "could not be read", 0),
        ({"flipped": 10**9}, "is damaged|is not a", 0),
        ({"zeros": 10**9}, "is damaged|is not a", 1),
    ],
)
def test_a_store_that_stays_bad_stops_the_run_in_words(
    proxy: Proxy, tmp_path: Path, fault: dict[str, int], message: str, workers: int
) -> None:
    loader = loader_of(PLACE, tmp_path / "cache", num_workers=workers)
    batches = iter(loader)
    proxy.faults = Faults(**fault)  # type: ignore[arg-type]
    block_cache.IN_MEMORY.clear()
    with pytest.raises((BtlmError, RuntimeError), match=message):
        list(batches)
    with pytest.raises(DataError, match=message):
        loader_of(PLACE, tmp_path / "other")


def test_a_shard_that_was_replaced_is_never_mixed(
    proxy: Proxy, bucket: Any, folder: Path, tmp_path: Path
) -> None:
    loader = loader_of(PLACE, tmp_path / "cache")
    bucket.put(str(folder / "train" / "data-00000.h5"), "corpus/set/train/data-00002.h5")
    with pytest.raises(DataError, match=r"data-00002.h5 changed or went away while it was in use"):
        hashes(loader)
    with pytest.raises(DataError, match=r"data-00002.h5 has 40 samples, .*dataset.json says 31"):
        loader_of(PLACE, tmp_path / "cache")
    bucket.rm("corpus/set/train/data-00002.h5")
    with pytest.raises(DataError, match=r"data-00002.h5 is missing"):
        loader_of(PLACE, tmp_path / "cache")


def test_a_listed_file_of_another_checksum_is_refused(proxy: Proxy, bucket: Any, tmp_path: Path) -> None:
    (tmp_path / "set" / "train").mkdir(parents=True)
    path = tmp_path / "set" / "train" / "a.h5"
    with h5py.File(path, "w") as file:
        file.create_dataset("data", data=np.ones((5, 3, LENGTH), np.int32))
    tiny.write_manifest(tmp_path / "set")
    with h5py.File(path, "r+") as file:
        file["data"][2, 0, 0] = 2
    bucket.put(str(tmp_path / "set"), "corpus/wrong", recursive=True)
    with pytest.raises(DataError, match=r"a.h5 has the SHA-256 \w+, and dataset.json says \w+"):
        loader_of("s3://corpus/wrong/train", tmp_path / "cache")


def test_places_that_are_not_there(proxy: Proxy, bucket: Any, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="There is no data folder s3://corpus/nothing"):
        loader_of("s3://corpus/nothing", tmp_path / "cache")
    bucket.pipe_file("corpus/empty/readme.txt", b"x")
    with pytest.raises(InputError, match=r"There is no \*.h5 file in s3://corpus/empty"):
        loader_of("s3://corpus/empty", tmp_path / "cache")
    with pytest.raises(ConfigError, match="no-such-scheme"):
        loader_of("no-such-scheme://corpus/empty", tmp_path / "cache")
    with pytest.raises(ConfigError, match="cache_size"):
        loader_of(PLACE, tmp_path / "cache", cache_size="1MB")


def test_a_cache_that_cannot_be_written_costs_time_only(
    proxy: Proxy, folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "cache").write_text("a file")
    assert hashes(loader_of(PLACE, tmp_path / "cache")) == hashes(
        loader_of(folder / "train", tmp_path / "none")
    )
    assert "cannot be written" in caplog.text


def test_the_dataset_may_be_sent_to_another_process(proxy: Proxy, folder: Path, tmp_path: Path) -> None:
    there = pickle.loads(pickle.dumps(loader_of(PLACE, tmp_path / "cache").dataset))
    here = loader_of(folder / "train", tmp_path / "cache").dataset
    assert all(np.array_equal(there[50][key], here[50][key]) for key in here[50])


def test_memory_of_blocks_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(block_cache, "_MEMORY_BYTES", 1000)
    held = BlocksInMemory()
    for number in range(100):
        held.put("key", number, bytes(99))
        held.put("key", number, bytes(100))
    assert [number for number in range(100) if held.get("key", number)] == list(range(90, 100))


def test_stretches_are_fetched_once_by_many_threads(tmp_path: Path) -> None:
    cache = BlockCache(CacheSettings(str(tmp_path), 10**6))
    asked: list[int] = []

    def ask(first: int, stop: int) -> list[bytes]:
        asked.extend(range(first, stop))
        return [bytes([number]) * 100 for number in range(first, stop)]

    def work() -> None:
        for first in range(0, 90, 10):
            cache.fetch("key", [first, first + 1, first + 2, first + 7], ask)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(asked) == 36 == len(set(asked))
    assert all(cache.load("key", number) == bytes([number]) * 100 for number in asked)
