"""Reading shards: every way of storing them, what is refused and how it is said, processes, open files,
state, description.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import pickle
import re
import resource
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt
import pytest
import torch

from btlm_data.errors import ConfigError, DataError, InputError
from btlm_data.formats.dataset import Tokenizer
from btlm_train.data import DataConfig, GptHDF5MapDataProcessor, MixtureEntry, describe_data
from btlm_train.parameters import load_params
from btlm_train.training.checks import with_splits
from tests.train import tiny

L = 10


def sample_rows(first: int, count: int, planes: int = 3) -> npt.NDArray[np.int32]:
    """(count, planes, L) numbers, all different and below 2**15."""
    return (
        np.arange(count * planes * L, dtype=np.int32).reshape(count, planes, L) + first * planes * L
    ) % 32749


def write(path: Path, data: npt.NDArray[Any], **storage: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        file.create_dataset("data", data=data, **storage)
    return path


def three_shards(folder: Path, **storage: Any) -> npt.NDArray[np.int32]:
    rows = [sample_rows(0, 5), sample_rows(5, 7), sample_rows(12, 4)]
    for number, part in enumerate(rows):
        write(folder / f"data-{number:05}.h5", part, **storage)
    return np.concatenate(rows)


def everything(config: dict[str, Any], **options: Any) -> npt.NDArray[np.int32]:
    """One pass, as (samples, features, L)."""
    loader = GptHDF5MapDataProcessor(config).create_dataloader(**options)
    return np.concatenate(
        [np.stack([values.numpy() for values in batch.values()], axis=1) for batch in loader]
    )


STORAGE: dict[str, dict[str, Any]] = {
    "contiguous": {},
    "gzip": {"chunks": (1, 3, L), "compression": "gzip"},
    "gzip-shuffle": {"chunks": (1, 3, L), "compression": "gzip", "shuffle": True},
    "shuffle-only": {"chunks": (2, 3, L), "shuffle": True},
    "uncompressed-chunks": {"chunks": (1, 3, L)},
    "many-rows": {"chunks": (4, 3, L), "compression": "gzip"},
    "planes-apart": {"chunks": (1, 1, L), "compression": "gzip"},
    "crossing": {"chunks": (3, 2, 4), "compression": "gzip", "shuffle": True},
    "checksummed": {"chunks": (2, 3, L), "compression": "gzip", "fletcher32": True},
    "lzf": {"chunks": (2, 3, L), "compression": "lzf"},
    "growing": {"chunks": (2, 3, L), "compression": "gzip", "maxshape": (None, 3, L)},
}


@pytest.mark.parametrize("dtype", ["<i4", "<u2", "<i8", ">i4", "<f4", "<u1"])
@pytest.mark.parametrize("name", STORAGE)
def test_whatever_the_storage_the_samples_are_the_same(tmp_path: Path, name: str, dtype: str) -> None:
    rows = (
        np.concatenate([sample_rows(0, 5), sample_rows(5, 7)]) % (256 if dtype == "<u1" else 32749)
    ).astype(dtype)
    write(tmp_path / "data-0.h5", rows[:5], **STORAGE[name])
    write(tmp_path / "data-1.h5", rows[5:], **STORAGE[name])
    for shuffle in (False, True):
        found = everything(
            {"data_dir": str(tmp_path), "batch_size": 5, "drop_last": False, "shuffle": shuffle}
        )
        order = (
            torch.randperm(12, generator=torch.Generator().manual_seed(0)).numpy()
            if shuffle
            else np.arange(12)
        )
        assert np.array_equal(found, rows[order].astype(np.int32))


@pytest.mark.parametrize(
    "storage",
    [{}, {"chunks": (7,), "compression": "gzip"}, {"chunks": (64,), "compression": "gzip", "shuffle": True}],
)
@pytest.mark.parametrize("length", [1, 4, 25])
def test_corpus_windows_share_their_border_token_across_files(
    tmp_path: Path, storage: dict[str, Any], length: int
) -> None:
    tokens = np.arange(101, dtype=np.uint16)
    for number, (start, stop) in enumerate([(0, 3), (3, 3), (3, 50), (50, 101)]):
        write(
            tmp_path / f"{number}.h5",
            tokens[start:stop],
            **({} if start == stop else storage),
            maxshape=(None,) if storage and start < stop else None,
        )
    config = {"data_dir": str(tmp_path), "batch_size": 1, "max_sequence_length": length}
    found = everything(config)
    starts = np.arange(100 // length) * length
    windows = tokens[starts[:, None] + np.arange(length + 1)].astype(np.int32)
    assert np.array_equal(found[:, 0], windows[:, :-1])
    assert (found[:, 1] == 1).all()
    assert np.array_equal(found[:, 2], windows[:, 1:])


def test_batches_are_contiguous_int32_with_the_features_of_the_format(tmp_path: Path) -> None:
    write(tmp_path / "a.h5", sample_rows(0, 6, planes=5))
    for use_vsl, features in (
        (False, ["input_ids", "attention_mask", "labels"]),
        (True, ["input_ids", "attention_mask", "labels", "attention_span", "position_ids"]),
    ):
        processor = GptHDF5MapDataProcessor({"data_dir": str(tmp_path), "batch_size": 4, "use_vsl": use_vsl})
        batch = next(iter(processor.create_dataloader()))
        assert list(batch) == processor.features_list == features
        assert all(
            values.dtype == torch.int32 and values.shape == (4, L) and values.is_contiguous()
            for values in batch.values()
        )
        assert [values.tolist() for values in processor.dataset[3].values()] == sample_rows(3, 1, planes=5)[
            0, : len(features)
        ].tolist()


def test_int64_wraps_as_a_cast_to_int32_does(tmp_path: Path) -> None:
    write(tmp_path / "a.h5", np.full((1, 3, L), 2**32 + 7, np.int64))
    assert (everything({"data_dir": str(tmp_path), "batch_size": 1}) == 7).all()


def test_pad_last_fills_with_zeros(tmp_path: Path) -> None:
    rows = three_shards(tmp_path) + 1
    for number, part in enumerate(np.split(rows, [5, 12])):
        write(tmp_path / f"data-{number:05}.h5", part)
    found = everything({"data_dir": str(tmp_path), "batch_size": 10, "drop_last": False, "pad_last": True})
    assert np.array_equal(found[:16], rows)
    assert len(found) == 20
    assert not found[16:].any()


def test_pad_last_zeroes_the_loss_mask_of_a_corpus(tmp_path: Path) -> None:
    write(tmp_path / "a.h5", np.arange(1, 32, dtype=np.uint16))
    found = everything(
        {
            "data_dir": str(tmp_path),
            "batch_size": 4,
            "max_sequence_length": L,
            "drop_last": False,
            "pad_last": True,
        }
    )
    assert found[:, 1].tolist() == [[1] * L] * 3 + [[0] * L]


def test_a_chunk_never_written_holds_the_fill_value(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        data = file.create_dataset(
            "data", (4, 3, L), np.int32, chunks=(1, 3, L), compression="gzip", fillvalue=9
        )
        data[2] = 1
    assert everything({"data_dir": str(tmp_path), "batch_size": 4})[:, 0, 0].tolist() == [9, 9, 1, 9]


# Refusals


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"shufle": True}, r"no setting 'shufle'. Did you mean shuffle\?"),
        ({"max_seq_len": 8}, r"Did you mean max_sequence_length\?"),
        ({"batch_size": 0}, r"batch_size: .*1 \(given: 0\)"),
        ({"batch_size": None}, "batch_size: expected a whole number"),
        ({"data_dir": None}, "neither of data_dir and mixture"),
        ({"mixture": [{"data_dir": "x", "weight": 1}]}, "both of data_dir and mixture"),
        (
            {"data_dir": None, "mixture": [{"data_dir": "x", "wieght": 1, "weight": 1}]},
            r"no setting 'mixture.0.wieght'. Did you mean mixture.0.weight\?",
        ),
        ({"data_dir": None, "mixture": [{"data_dir": "x", "weight": 0}]}, "weight above 0"),
        (
            {"data_dir": None, "mixture": [{"data_dir": "x", "weight": -1}]},
            r"mixture.0.weight: .*\(given: -1\)",
        ),
        ({"data_subset": "0.5-0.2"}, "ranges must ascend"),
        ({"data_subset": "0.0-0.5,0.4-1.0"}, "ranges must ascend"),
        ({"data_subset": "0.5-1.5"}, "within 0 to 1"),
        ({"data_subset": "half"}, 'data_subset is "half"'),
        ({"data_subset": "0.0-0.01"}, "Widen data_subset"),
        ({"max_sequence_length": L}, "Remove max_sequence_length"),
        ({"use_vsl": True}, "needs 5 planes"),
        ({"data_processor": "Other"}, r"data_processor: .*\(given: 'Other'\)"),
    ],
)
def test_wrong_settings_are_named(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    three_shards(tmp_path)
    with pytest.raises((ConfigError, InputError), match=message):
        GptHDF5MapDataProcessor({"data_dir": str(tmp_path), "batch_size": 2, **change})


def test_a_configuration_made_without_parsing_is_checked_too(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="neither of data_dir and mixture"):
        GptHDF5MapDataProcessor(DataConfig(batch_size=1))
    with pytest.raises(ConfigError, match="weight above 0"):
        GptHDF5MapDataProcessor(
            DataConfig(batch_size=1, mixture=[MixtureEntry(data_dir=str(tmp_path), weight=0)])
        )


def test_a_mixture_of_sets_that_are_all_small_has_no_epoch(tmp_path: Path) -> None:
    three_shards(tmp_path)
    mixture = [{"data_dir": str(tmp_path), "weight": 1}] * 20
    with pytest.raises(ConfigError, match="more than 5%"):
        GptHDF5MapDataProcessor({"mixture": mixture, "batch_size": 2})


def test_keys_without_effect_are_reported(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    three_shards(tmp_path)
    with caplog.at_level(logging.INFO):
        GptHDF5MapDataProcessor(
            {"data_dir": str(tmp_path), "batch_size": 2, "use_worker_cache": True, "vocab_size": 50257}
        )
    assert "Not used by this reader: vocab_size, use_worker_cache." in caplog.text


def test_what_is_not_a_set_of_shards_is_refused(tmp_path: Path) -> None:
    def refused(error: type[Exception], message: str, **config: Any) -> None:
        with pytest.raises(error, match=message):
            GptHDF5MapDataProcessor({"data_dir": str(tmp_path / "d"), "batch_size": 1, **config})

    refused(InputError, "There is no data folder")
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "data.h5.tmp").touch()
    refused(InputError, r"no \*.h5 file")
    write(tmp_path / "d/a.h5", np.empty((0, 3, L), np.int32))
    write(tmp_path / "d/b.h5", np.empty((0, 3, L), np.int32))
    refused(InputError, "All 2 .* are empty")
    write(tmp_path / "d/b.h5", np.zeros((2, 3, L), np.int64))
    refused(DataError, "b.h5 holds int64")
    write(tmp_path / "d/b.h5", np.zeros((2, 3, L + 1), np.int32))
    refused(DataError, r"b.h5 holds int32 rows of shape \(3, 11\)")
    with h5py.File(tmp_path / "d/b.h5", "w") as file:
        file["tokens"] = [1]
    refused(DataError, 'b.h5 is not a shard: it has no dataset "data"')
    (tmp_path / "d/b.h5").write_bytes(b"not HDF5")
    refused(DataError, "b.h5 is not a readable HDF5 file")
    (tmp_path / "d/b.h5").unlink()
    write(tmp_path / "d/a.h5", np.zeros(50, np.int32))
    refused(ConfigError, "corpus format .*Set max_sequence_length")
    refused(ConfigError, "corpus format, which use_vsl", max_sequence_length=4, use_vsl=True)
    refused(InputError, "No sample is left", max_sequence_length=50)
    layout = h5py.VirtualLayout((50,), np.int32)
    layout[:] = h5py.VirtualSource(tmp_path / "gone.h5", "data", (50,))
    with h5py.File(tmp_path / "d/a.h5", "w") as file:
        file.create_virtual_dataset("data", layout)
    refused(DataError, "virtual dataset", max_sequence_length=4)


def test_mixed_formats_in_a_mixture_are_refused(tmp_path: Path) -> None:
    write(tmp_path / "a/a.h5", sample_rows(0, 4))
    write(tmp_path / "b/a.h5", np.zeros((4, 3, L + 1), np.int32))
    mixture = [{"data_dir": str(tmp_path / name), "weight": 1} for name in "ab"]
    with pytest.raises(ConfigError, match="differ in format or sequence length"):
        GptHDF5MapDataProcessor({"mixture": mixture, "batch_size": 2})


@pytest.mark.parametrize("already_read", [False, True])
@pytest.mark.parametrize("damage", ["deleted", "replaced"])
def test_a_shard_that_goes_or_changes_in_use_is_an_error_at_once(
    tmp_path: Path, damage: str, already_read: bool
) -> None:
    three_shards(tmp_path, **STORAGE["gzip"])
    loader = GptHDF5MapDataProcessor({"data_dir": str(tmp_path), "batch_size": 2}).create_dataloader()
    if already_read:
        assert len(list(loader)) == 8
    victim = tmp_path / "data-00001.h5"
    if damage == "deleted":
        victim.unlink()
    else:
        write(tmp_path / "new", sample_rows(100, 7), **STORAGE["gzip"]).replace(victim)
    batches = iter(loader)
    for _ in range(2):  # rows 0 to 3, of the first shard
        next(batches)
    with pytest.raises(
        DataError, match=r"data-00001\.h5 (cannot be found any more|changed while it was in use)"
    ):
        next(batches)


@pytest.mark.parametrize("name", ["gzip", "gzip-shuffle", "checksummed"])
def test_flipped_bits_are_an_error_that_names_the_file(tmp_path: Path, name: str) -> None:
    rows = np.random.default_rng(0).integers(0, 50000, (9, 3, L), np.int32)
    path = write(tmp_path / "a.h5", rows, **STORAGE[name])
    with h5py.File(path) as file:
        chunk = file["data"].id.get_chunk_info(1)
    content = bytearray(path.read_bytes())
    for place in range(chunk.byte_offset + 12, chunk.byte_offset + chunk.size - 8):
        content[place] ^= 0x55
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"a.h5 is damaged: row [1-3] of 9 cannot be read .*Restore it"):
        everything({"data_dir": str(tmp_path), "batch_size": 9})


def test_a_truncated_contiguous_shard_is_an_error(tmp_path: Path) -> None:
    path = write(tmp_path / "a.h5", sample_rows(0, 9))
    os.truncate(path, path.stat().st_size - 8)
    with pytest.raises(DataError, match=r"a\.h5 is not a readable HDF5 file"):
        GptHDF5MapDataProcessor({"data_dir": str(tmp_path), "batch_size": 9})


# Processes and open files


def test_a_shard_that_another_program_has_locked_is_read(tmp_path: Path) -> None:
    """HDF5 takes a lock on what it writes; a lock is not damage, and some file systems have none."""
    rows = three_shards(tmp_path)
    with h5py.File(tmp_path / "data-00001.h5", "r+"), (tmp_path / "data-00002.h5").open("rb") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        assert np.array_equal(everything({"data_dir": str(tmp_path), "batch_size": 16}), rows)


@pytest.mark.parametrize("context", ["fork", "spawn"])
def test_workers_deliver_the_same_batches_however_they_start(tmp_path: Path, context: str) -> None:
    rows = three_shards(tmp_path, **STORAGE["gzip"])
    config = {
        "data_dir": str(tmp_path),
        "batch_size": 3,
        "shuffle": True,
        "shuffle_seed": 4,
        "num_workers": 2,
        "prefetch_factor": 2,
    }
    processor = GptHDF5MapDataProcessor(config)
    assert (
        processor.dataset[0]["input_ids"].tolist() == rows[0, 0].tolist()
    )  # the parent has a file open when workers fork
    loader = processor.create_dataloader(multiprocessing_context=context)
    alone = GptHDF5MapDataProcessor({**config, "num_workers": 0}).create_dataloader()
    for _ in range(3):
        for batch, expected in zip(loader, alone, strict=True):
            assert all(torch.equal(batch[name], expected[name]) for name in expected)
            assert loader.state_dict()["samples_streamed"] == alone.state_dict()["samples_streamed"]


def test_an_error_in_a_worker_reaches_the_caller(tmp_path: Path) -> None:
    three_shards(tmp_path)
    loader = GptHDF5MapDataProcessor(
        {"data_dir": str(tmp_path), "batch_size": 4, "num_workers": 1}
    ).create_dataloader()
    (tmp_path / "data-00001.h5").unlink()
    with pytest.raises(DataError, match=r"data-00001\.h5 cannot be found any more"):
        list(loader)


def test_the_dataset_is_small_to_pickle_and_reads_the_same(tmp_path: Path) -> None:
    three_shards(tmp_path)
    dataset = GptHDF5MapDataProcessor({"data_dir": str(tmp_path), "batch_size": 4}).dataset
    before = dataset.read_batch([3, 9])
    packed = pickle.dumps(dataset)
    after = pickle.loads(packed).read_batch([3, 9])
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert len(packed) < 10_000


@pytest.mark.parametrize("shuffle", [False, True])
def test_more_shards_than_files_may_be_open(tmp_path: Path, shuffle: bool) -> None:
    """900 shards of one sample with at most 300 open files; the virtual dataset of the original gives zeros
    for 600 of them.
    """
    source = write(tmp_path / "one.h5", np.zeros((1, 3, 4), np.int32))
    (tmp_path / "many").mkdir()
    for number in range(900):
        shutil.copyfile(source, tmp_path / "many" / f"{number:05}.h5")
        with h5py.File(tmp_path / "many" / f"{number:05}.h5", "r+") as file:
            file["data"][...] = number + 1
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (300, hard))
    try:
        found = everything({"data_dir": str(tmp_path / "many"), "batch_size": 100, "shuffle": shuffle})
        again = everything({"data_dir": str(tmp_path / "many"), "batch_size": 50, "shuffle": shuffle})
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert sorted(found[:, 0, 0].tolist()) == list(range(1, 901))
    assert np.array_equal(found, again)


def test_other_files_that_use_up_the_limit_make_room_or_a_clear_error(tmp_path: Path) -> None:
    script = textwrap.dedent(
        """
        import resource, sys
        from btlm_data.errors import InputError
        from btlm_train.data import GptHDF5MapDataProcessor
        from btlm_train.data.shard_reader import OPEN_SHARDS
        processor = GptHDF5MapDataProcessor({"data_dir": sys.argv[1], "batch_size": 16})
        resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
        others = []
        try:
            while True:
                others.append(open("/dev/null"))
        except OSError:
            del others[-1:]
        print(sum(batch["labels"].sum().item() for batch in processor.create_dataloader()), len(OPEN_SHARDS.shards))
        OPEN_SHARDS.clear()
        others.append(open("/dev/null"))
        try:
            next(iter(processor.create_dataloader()))
        except InputError as error:
            print(error)
        """
    )
    rows = three_shards(tmp_path)
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, check=True, timeout=100
    )
    first, second = done.stdout.splitlines()
    assert first == f"{rows[:, 2].sum()} 1"
    assert "Raise it (ulimit -n)" in second


# State


def test_state_holds_counts_and_settings_in_plain_values(tmp_path: Path) -> None:
    three_shards(tmp_path)
    config = {"data_dir": str(tmp_path), "batch_size": 3, "num_samples": 30, "shuffle": True}
    loader = GptHDF5MapDataProcessor(config).create_dataloader()
    for _ in zip(loader, range(4), strict=False):
        pass
    state = loader.state_dict()
    assert json.loads(json.dumps(state)) == state
    assert state["__version__"] == 1
    assert state["dataset"]["num_samples"] == 30
    assert state["dataset"]["data_dir"] == str(tmp_path)
    restored = GptHDF5MapDataProcessor(
        {**config, "batch_size": 5, "use_worker_cache": True}
    ).create_dataloader()
    restored.load_state_dict(json.loads(json.dumps(state)))
    assert restored.state_dict()["samples_streamed"] == state["samples_streamed"]


def test_other_settings_are_refused_by_name(tmp_path: Path) -> None:
    three_shards(tmp_path)
    config = {"data_dir": str(tmp_path), "batch_size": 3, "shuffle_seed": 1}
    state = GptHDF5MapDataProcessor(config).create_dataloader().state_dict()
    other = GptHDF5MapDataProcessor(
        {**config, "shuffle_seed": 2, "num_samples": 9, "data_subset": "0.0-0.5"}
    ).create_dataloader()
    with pytest.raises(ConfigError) as caught:
        other.load_state_dict(state)
    for line in (
        "shuffle_seed: 1 then, 2 now",
        "num_samples: None then, 9 now",
        "data_subset: None then, '0.0-0.5' now",
    ):
        assert line in str(caught.value)
    other.load_state_dict(state, strict=False)
    with pytest.raises(ConfigError, match="colour: 'red' then, not a setting now"):
        other.load_state_dict(
            {**other.state_dict(), "dataset": {**other.state_dict()["dataset"], "colour": "red"}}
        )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("values", r"data-00001.h5: content \w{8} then, \w{8} now$"),
        ("rows", "data-00001.h5: rows 7 then, 6 now; bytes"),
        ("gone", r"data-00001.h5: there then, not now"),
        ("more", r"data-00003.h5: here now, not then"),
    ],
)
def test_changed_data_is_refused_by_name(tmp_path: Path, change: str, message: str) -> None:
    three_shards(tmp_path)
    config = {"data_dir": str(tmp_path), "batch_size": 3}
    state = GptHDF5MapDataProcessor(config).create_dataloader().state_dict()
    if change == "values":
        write(tmp_path / "data-00001.h5", sample_rows(50, 7))
    elif change == "rows":
        write(tmp_path / "data-00001.h5", sample_rows(5, 6))
    elif change == "gone":
        (tmp_path / "data-00001.h5").unlink()
    else:
        write(tmp_path / "data-00003.h5", sample_rows(50, 7))
    loader = GptHDF5MapDataProcessor(config).create_dataloader()
    with pytest.raises(DataError) as caught:
        loader.load_state_dict(state)
    assert any(re.search(message, line) for line in str(caught.value).splitlines())


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({"__version__": 2, "samples_streamed": 3}, "version 2"),
        ({"__version__": 1, "samples_streamed": 3}, 'lacks "dataset"'),
        ({"seed": 9, "samples_streamed": 3}, "seed 9"),
        ({"seed": 0}, "samples_streamed None"),
        ({"seed": 0, "samples_streamed": -1}, "samples_streamed -1"),
    ],
)
def test_states_that_cannot_be_loaded_are_refused(
    tmp_path: Path, state: dict[str, Any], message: str
) -> None:
    three_shards(tmp_path)
    loader = GptHDF5MapDataProcessor(
        {"data_dir": str(tmp_path), "batch_size": 3, "shuffle": True}
    ).create_dataloader()
    with pytest.raises((ConfigError, DataError), match=message):
        loader.load_state_dict(state)


def test_a_state_of_the_model_zoo_is_accepted(tmp_path: Path) -> None:
    rows = three_shards(tmp_path)
    loader = GptHDF5MapDataProcessor({"data_dir": str(tmp_path), "batch_size": 3}).create_dataloader()
    settings = {
        key: value
        for key, value in loader.state_dict()["dataset"].items()
        if key not in ("data_subset", "data")
    }
    for state in (
        {"__version__": 1, "samples_streamed": 7, "dataset": settings},
        {"seed": 0, "samples_streamed": 7},
    ):
        loader.load_state_dict(state)
        assert next(iter(loader))["input_ids"][0].tolist() == rows[7, 0].tolist()


# Manifests


def prepared(root: Path, **changes: Any) -> Path:
    """A prepared dataset as the data side writes it: a train folder and a manifest above it."""
    three_shards(root / "train")
    tiny.write_manifest(root, **changes)
    return root / "train"


@pytest.mark.parametrize("above", [0, 1, 2])
def test_description_finds_the_manifest_beside_or_above(tmp_path: Path, above: int) -> None:
    train = prepared(tmp_path / "deep")
    (tmp_path / "deep/dataset.json").rename([train, tmp_path / "deep", tmp_path][above] / "dataset.json")
    found = describe_data(train)
    assert (
        found.sequence_length,
        found.vocab_size,
        found.tokenizer_name,
        found.num_samples,
        found.format,
    ) == (
        L,
        50257,
        "gpt2",
        16,
        "sample",
    )


def test_description_without_a_manifest_and_of_other_formats(tmp_path: Path) -> None:
    write(tmp_path / "vsl/a.h5", sample_rows(0, 6, planes=5))
    write(tmp_path / "corpus/a.h5", np.zeros(101, np.uint16))
    vsl, corpus, cut = (
        describe_data([tmp_path / "vsl"]),
        describe_data(str(tmp_path / "corpus")),
        describe_data(tmp_path / "corpus", 10),
    )
    assert (vsl.format, vsl.sequence_length, vsl.num_samples, vsl.vocab_size, vsl.tokenizer_name) == (
        "vsl",
        L,
        6,
        None,
        None,
    )
    assert (corpus.format, corpus.sequence_length, corpus.num_samples) == ("corpus", None, None)
    assert (cut.sequence_length, cut.num_samples) == (10, 10)


def test_digest_names_the_content_wherever_it_lies(tmp_path: Path) -> None:
    here, there = prepared(tmp_path / "here"), prepared(tmp_path / "there")
    assert describe_data(here).digest == describe_data(there).digest
    write(there / "data-00001.h5", sample_rows(50, 7))
    assert describe_data(here).digest != describe_data(there).digest


def test_a_shard_the_manifest_lists_must_be_there_with_its_rows(tmp_path: Path) -> None:
    train = prepared(tmp_path)
    write(train / "data-00002.h5", sample_rows(12, 3))
    with pytest.raises(DataError, match=r"data-00002.h5 has 3 samples, .*dataset.json says 4"):
        describe_data(train)
    (train / "data-00002.h5").unlink()
    with pytest.raises(DataError, match=r"data-00002.h5 is missing: .*dataset.json lists it"):
        GptHDF5MapDataProcessor({"data_dir": str(train), "batch_size": 2})


def test_folders_of_different_tokenizers_are_refused(tmp_path: Path) -> None:
    one, two = (
        prepared(tmp_path / "one"),
        prepared(tmp_path / "two", tokenizer=Tokenizer("llama", "g", 1, 100)),
    )
    with pytest.raises(DataError, match="tokenized differently"):
        describe_data([one, two])


def test_a_damaged_manifest_is_an_error_and_a_bare_one_is_not(tmp_path: Path) -> None:
    train = prepared(tmp_path)
    (tmp_path / "dataset.json").write_text("{}")
    assert describe_data(train).vocab_size is None
    (tmp_path / "dataset.json").write_text("{")
    with pytest.raises(
        DataError, match=r"dataset.json cannot be used.*remove .*dataset.json to read the shards without"
    ):
        describe_data(train)
    (tmp_path / "dataset.json").unlink()
    os.mkfifo(tmp_path / "dataset.json")
    with pytest.raises(DataError, match="not a regular file"):
        describe_data(train)


def test_a_shard_of_another_size_than_the_manifest_says(tmp_path: Path) -> None:
    train = prepared(tmp_path)
    write(train / "data-00002.h5", sample_rows(12, 4), chunks=(1, 3, L))
    with pytest.raises(DataError, match=r"data-00002.h5 has \d+ bytes, .*dataset.json says"):
        describe_data(train)


def test_a_dataset_may_be_given_where_its_split_is_meant(tmp_path: Path) -> None:
    three_shards(tmp_path / "validation")
    train = prepared(tmp_path)
    params = load_params(
        "params_btlm_tiny_2k.yaml", [f"train_input.data_dir={tmp_path}", f"eval_input.data_dir=[{tmp_path}]"]
    )
    resolved = with_splits(params)
    assert resolved.train is not None
    assert resolved.train.data_dir == str(train)
    assert resolved.validation[0].data_dir == [str(tmp_path / "validation")]
    with pytest.raises(InputError, match=f"Give the folder of a split: {train}"):
        describe_data(tmp_path)
