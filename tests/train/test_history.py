"""What a run read, named afterwards: against the batches that the reader delivered, sample by sample."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from btlm_data.errors import ConfigError, DataError, InputError
from btlm_train.data import history
from btlm_train.data.history import RunHistory, add_part, describe_part
from btlm_train.data.loader import GptHDF5MapDataProcessor

LENGTH = 4
RUN = "a" * 32


class NoBatchError(Exception):
    """An epoch without a batch."""


def write_shards(folder: Path, rows: list[int], *, corpus: bool, base: int) -> int:
    """Shards whose every token is another number, from `base` on; returns the next number."""
    folder.mkdir(parents=True)
    for number, count in enumerate(rows):
        size = count if corpus else count * LENGTH
        ids = np.arange(base, base + size, dtype=np.int32)
        base += size
        with h5py.File(folder / f"data-{number:05d}.h5", "w") as file:
            if corpus:
                file["data"] = ids
            else:
                inputs = ids.reshape(count, LENGTH)
                file["data"] = np.stack([inputs, np.ones_like(inputs), inputs], axis=1)
            file["data"].attrs["n_examples"] = count
    return base


@st.composite
def runs(draw: Any) -> dict[str, Any]:
    corpus = draw(st.booleans())
    sizes = st.lists(st.integers(5 if corpus else 1, 23), min_size=1, max_size=3)
    sets = draw(st.lists(sizes, min_size=1, max_size=3))
    mixed = len(sets) > 1
    return {
        "corpus": corpus,
        "sets": sets,
        "weights": [draw(st.sampled_from([0.1, 0.5, 1.0, 2.0])) for _ in sets] if mixed else None,
        "subset": draw(st.sampled_from([None, "0.0-0.5,0.7-1.0", "0.2-0.9"])),
        "config": {
            "shuffle": draw(st.booleans()),
            "shuffle_seed": draw(st.integers(0, 9)),
            "num_samples": draw(st.none() | st.integers(1, 60)),
            "drop_last": draw(st.booleans()),
            "pad_last": draw(st.booleans()),
        },
        # (steps, batch size, ranks) of each part; a part begins up to `lost` steps before the last one ended
        "parts": draw(
            st.lists(
                st.tuples(st.integers(1, 9), st.integers(1, 7), st.integers(1, 3)), min_size=1, max_size=3
            )
        ),
        "lost": draw(st.integers(0, 2)),
    }


def data_of(folder: Path, case: dict[str, Any]) -> dict[str, Any]:
    base, dirs = 1, []
    for number, rows in enumerate(case["sets"]):
        dirs.append(folder / f"set{number}")
        base = write_shards(dirs[-1], rows, corpus=case["corpus"], base=base)
    config: dict[str, Any] = dict(case["config"])
    if case["corpus"]:
        config["max_sequence_length"] = LENGTH
    if case["weights"] is None:
        config |= {"data_dir": str(dirs[0]), "data_subset": case["subset"]}
    else:
        config["mixture"] = [
            {"data_dir": str(d), "weight": w, "data_subset": case["subset"]}
            for d, w in zip(dirs, case["weights"], strict=True)
        ]
    return config


def deliver(
    folder: Path, config: dict[str, Any], case: dict[str, Any]
) -> dict[int, list[tuple[int, int, list[int]]]]:
    """Run the reader in parts, as a trainer does: step -> (rank, place, input ids) of each sample that it delivered last."""
    delivered: dict[int, list[tuple[int, int, list[int]]]] = {}
    states: dict[int, Any] = {}  # before each step
    step = 0
    for steps, batch_size, ranks in case["parts"]:
        step = max(0, step - case["lost"])
        loaders = [
            GptHDF5MapDataProcessor({**config, "batch_size": batch_size}).create_dataloader(
                rank=r, world_size=ranks
            )
            for r in range(ranks)
        ]
        for loader in loaders:
            if step:
                loader.load_state_dict(states[step])
        add_part(folder, RUN, describe_part(loaders[0], step, step + steps))
        streams: list[Any] = [iter(()) for _ in loaders]
        for _ in range(steps):
            states.setdefault(step, loaders[0].state_dict())
            states[step] = loaders[0].state_dict()
            found: list[tuple[int, int, list[int]]] = []
            for rank, loader in enumerate(loaders):
                batch = next(streams[rank], None)
                if batch is None:  # the pass is over; a trainer gives up where a whole one has no batch
                    streams[rank] = iter(loader)
                    batch = next(streams[rank], None)
                if batch is None:
                    raise NoBatchError
                found += [(rank, len(found) + k, row) for k, row in enumerate(batch["input_ids"].tolist())]
            delivered[step] = [(rank, place, row) for rank, place, row in found if any(row)]
            step += 1
        states[step] = loaders[0].state_dict()
        delivered = {number: batch for number, batch in delivered.items() if number < step}
    return delivered


def ids_of(path: str, row: int, *, corpus: bool) -> list[int]:
    """Input ids of a sample that begins at a row of a shard."""
    if not corpus:
        with h5py.File(path) as file:
            return list(map(int, file["data"][row, 0]))
    files = sorted(Path(path).parent.glob("*.h5"))
    first = sum(len(h5py.File(p)["data"]) for p in files if str(p) < path) + row
    stream = np.concatenate([h5py.File(p)["data"][:] for p in files])
    return list(map(int, stream[first : first + LENGTH]))


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(runs())
def test_history_says_what_the_reader_delivered(case: dict[str, Any]) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        config = data_of(folder, case)
        try:
            delivered = deliver(folder, config, case)
        except (InputError, NoBatchError):
            return  # a set that the subset empties, or fewer samples than a batch: no run begins
        except ConfigError as error:
            assert "No set of mixture has more than 5%" in str(error)  # noqa: PT017
            return
        run = RunHistory(folder)
        seen: dict[tuple[int, ...], set[tuple[int, int, int]]] = {}
        for step, batch in delivered.items():
            told = [
                (
                    one.rank,
                    one.batch_index,
                    ids_of(one.shard, one.row, corpus=case["corpus"]),
                )
                for one in run.batch(step)
            ]
            assert told == batch, step
            for rank, place, ids in batch:
                seen.setdefault(tuple(ids), set()).add((step, rank, place))
        # The other way: every row of every shard, and where it was seen.
        asked, wanted = [], []
        for path in sorted(folder.glob("set*/*.h5")):
            with h5py.File(path) as file:
                data = file["data"][:]
            if case["corpus"]:
                # One token: the samples of which it is an input or a label.
                for row in range(len(data)):
                    asked.append((str(path), None, row, row + 1))
                    token = int(data[row])
                    wanted.append(
                        {
                            at
                            for ids, places in seen.items()
                            for at in places
                            if token in ids or token == ids[-1] + 1
                        }
                    )
            else:
                for row in range(len(data)):
                    asked.append((str(path), None, row, row + 1))
                    wanted.append(seen.get(tuple(data[row, 0].tolist()), set()))
        answers: list[set[tuple[int, int, int]]] = [set() for _ in asked]
        last = max(delivered)
        for found in run.seen(asked):
            if found.step <= last:
                answers[found.query].add((found.step, found.rank, found.batch_index))
        if not case["corpus"] or len(case["sets"]) == 1:
            assert answers == wanted


def test_a_run_without_a_history_and_a_damaged_one_are_said(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"has no data\.json"):
        RunHistory(tmp_path)
    case = {"corpus": False, "sets": [[9]], "weights": None, "subset": None, "config": {}}
    config = data_of(tmp_path, case)
    loader = GptHDF5MapDataProcessor({**config, "batch_size": 2}).create_dataloader(rank=0, world_size=1)
    add_part(tmp_path, RUN, describe_part(loader, 0, 3))
    with pytest.raises(ConfigError, match=r"has no step 3; it has 0 to 2"):
        RunHistory(tmp_path).batch(3)
    add_part(tmp_path, "b" * 32, describe_part(loader, 0, 3))  # another run in the same folder begins anew
    assert len(RunHistory(tmp_path).history.parts) == 1
    path = tmp_path / history.FILE_NAME
    path.write_bytes(path.read_bytes().replace(b'"batch_size": 2', b'"batch_size": 3'))
    with pytest.raises(DataError, match="checksum"):
        RunHistory(tmp_path)
