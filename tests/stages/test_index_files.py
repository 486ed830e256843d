"""An index is the same files whatever the memory and the workers of the run that adds itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from btlm_data import by_group, planning
from btlm_data.blocks import Block
from btlm_data.by_group import GroupedFile
from btlm_data.dedupe import adding, keys
from btlm_data.dedupe import index as index_module
from btlm_data.dedupe.index import Index, IndexReader, file_name, pack, pieces_of
from btlm_data.dedupe.settings import ClusterSettings
from btlm_data.dedupe.steps import Steps
from btlm_data.errors import DataError
from btlm_data.formats import columns
from btlm_data.formats.columns import Columns
from btlm_data.kernels import buckets
from btlm_data.locations import Locations
from btlm_data.recipe.load import Override, load
from btlm_data.recipe.models import DedupeSettings
from btlm_data.storage import open_store
from btlm_data.task import Artifact, Task
from btlm_data.task_files import TaskFiles
from tests.faults.kill_targets import hashes, write_corpus
from tests.stages.runs import prepare


class Folder:
    """A work folder and an index, and tasks that write the index's files."""

    def __init__(self, folder: Path) -> None:
        self.locations = Locations(str(folder / "work"), str(folder / "out"), index=str(folder / "index"))
        self.store = open_store(folder / "index")
        self.work = open_store(folder / "work")

    def write(self, work: Any, task: Task, settings: Any) -> Columns:
        """What a task writes, opened."""
        files = TaskFiles(self.locations.open(), task)
        work(task, settings, files)
        [artifact] = files.written
        assert artifact.store == "index"
        return Columns(self.store, artifact)


@given(
    st.lists(st.tuples(st.integers(0, 5), st.integers(0, 2**62)), max_size=40),
    st.lists(st.integers(1, 9), min_size=1, max_size=5),
    st.integers(0, 3),
    st.sampled_from([1000, 10**9]),
)
def test_keys_lie_in_the_file_of_their_highest_bits(
    tmp_path_factory: pytest.TempPathFactory,
    drawn: list[tuple[int, int]],
    sizes: list[int],
    log: int,
    memory: int,
) -> None:
    """A key of many documents is that of the first few and the last few of them."""
    folder = Folder(tmp_path_factory.mktemp("keys"))
    of_documents = [(high << 61 | low % 4) % 2**64 for high, low in drawn]
    settings = ClusterSettings(DedupeSettings(), memory)
    groups: list[Artifact] = []
    begin = 0
    while begin < len(of_documents):
        size = sizes[len(groups) % len(sizes)]
        ordinals = np.arange(begin, min(begin + size, len(of_documents)), dtype=np.uint32)
        mine = np.array(of_documents, np.uint64)[ordinals]
        order = np.argsort(mine >> np.uint64(63 - log) >> np.uint64(1), kind="stable")
        partitions = (mine[order] >> np.uint64(63 - log) >> np.uint64(1)).astype(np.int64)
        bounds = np.searchsorted(partitions, np.arange((1 << log) + 1))
        files = TaskFiles(folder.locations.open(), Task("made"))
        of_group = keys.Keys(mine[order], np.empty(0, np.uint64), ordinals[order])
        groups.append(keys.write_group(files, f"split/{len(groups)}", of_group, bounds))
        begin += size
    held = [GroupedFile(file, 0, 2**32) for file in groups]
    listed = by_group.write_list(folder.work, "groups", held)
    found = []
    for number in range(1 << log):
        task = Task(
            f"{number}",
            {
                "kind": "bands",
                "log_partitions": log,
                "partition": number,
                "documents": len(drawn),
                "wide": False,
            },
            through={"groups": [listed]},
            outputs=[("index", file_name("run", "bands", number))],
        )
        file = folder.write(adding.write_keys, task, settings)
        assert all(key >> 63 - log >> 1 == number for key in file["keys"].tolist())
        found += list(zip(file["keys"].tolist(), file["ordinals"].tolist(), strict=True))
    expected = []
    for key in sorted(set(of_documents)):
        whose = [ordinal for ordinal, of_one in enumerate(of_documents) if of_one == key]
        most = buckets.LEADERS + buckets.NEIGHBOURS
        chosen = whose if len(whose) <= most else whose[: buckets.LEADERS] + whose[-buckets.NEIGHBOURS :]
        expected += [(key, ordinal) for ordinal in chosen]
    assert found == expected


@given(st.lists(st.tuples(st.integers(1, 20), st.booleans()), min_size=1, max_size=9))
def test_signatures_are_cut_by_ordinal(
    tmp_path_factory: pytest.TempPathFactory, drawn: list[tuple[int, bool]]
) -> None:
    """Documents of a block without a sketch have zeros."""
    folder = Folder(tmp_path_factory.mktemp("signatures"))
    dedupe = DedupeSettings(num_perm=4, bands=1, rows=4, verify="signature")
    blocks, first = [], 0
    for number, (count, has_sketch) in enumerate(drawn):
        signatures = np.stack([np.arange(first, first + count)] * 4, axis=1).astype(np.uint32) + 1
        file = columns.write(folder.work, f"{number}.sketch", {"signatures": signatures})
        sketch = file if has_sketch else None
        blocks.append(
            Block(f"{number}", "train", first, count, 0, file, file, sketch, None, None, None, None)
        )
        first += count
    of_run = Steps(blocks, Artifact("none", 0, ""), ClusterSettings(dedupe, 10**9), "lineage")
    index = Index(folder.store.url, "run", of_run.settings.index_kind, "signatures")
    found = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(adding, "SIGNATURES_A_FILE", 16)
        step = adding._plan_signatures(of_run, index)
        for number, task in enumerate(step.tasks):
            assert task.outputs == [("index", f"run/signatures-{number:06d}.cols")]
            rows = folder.write(adding.write_signatures, task, of_run.settings)["signatures"]
            assert len(rows) == min(16, first - 16 * number)
            found += rows[:, 0].tolist()
    has_one = np.repeat([has_sketch for _, has_sketch in drawn], [count for count, _ in drawn])
    assert found == [ordinal + 1 if has_one[ordinal] else 0 for ordinal in range(first)]


@given(
    st.lists(
        st.tuples(st.lists(st.one_of(st.none(), st.integers(0, 30)), max_size=20), st.integers(1, 40)),
        max_size=6,
    ),
    st.sampled_from([0, 2**33]),
)
def test_texts_are_cut_by_their_bytes_and_found_by_their_names(
    tmp_path_factory: pytest.TempPathFactory, drawn: list[tuple[list[int | None], int]], base: int
) -> None:
    """Sizes of the texts of each document of some files; None: it has none that stays."""
    folder = Folder(tmp_path_factory.mktemp("texts"))
    texts, first = [], base
    expected: dict[int, bytes] = {}
    for number, (sizes, piece) in enumerate(drawn):
        rows = np.array([row for row, size in enumerate(sizes) if size is not None], np.int64)
        mine = [bytes([65 + row % 26]) * (sizes[row] or 0) for row in rows.tolist()]
        frames, bounds = pack(mine)
        arrays: dict[str, Any] = {"ordinals": rows.astype(np.uint32), "frames": frames, "bounds": bounds}
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(index_module, "PIECE_BYTES", piece)
            pieces = pieces_of(rows, bounds)
        assert sum(size for _, size in pieces) == len(frames)
        texts.append(adding.PackedTexts(first, columns.write(folder.work, f"{number}", arrays), pieces))
        expected |= {first + row: text for row, text in zip(rows.tolist(), mine, strict=True)}
        first += len(sizes)
    none = Artifact("none", 0, "")
    block = Block("0", "train", 0, max(1, first), 0, none, none, none, None, None, None, None)
    of_run = Steps([block], none, ClusterSettings(DedupeSettings(), 10**9), "lineage")
    index = Index(folder.store.url, "run", of_run.settings.index_kind, "texts")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(adding, "TEXT_BYTES_A_FILE", 64)
        step = adding._plan_texts(of_run, index, texts)
    written = []
    for task in step.tasks:
        file = folder.write(adding.write_texts, task, of_run.settings)
        assert file["ordinals"].dtype == (np.int64 if base else np.uint32)
        files = TaskFiles(folder.locations.open(), task)
        adding.write_texts(task, of_run.settings, files)
        written += files.written
        assert len(file["frames"]) <= 64 + 40 + 60 or len(file["ordinals"]) == 1
    reader = IndexReader(folder.store.url, (("run", tuple(written)),))
    wanted = np.array(sorted(expected)[::-1], np.int64)
    assert reader.texts(0, wanted) == [expected[ordinal] for ordinal in wanted.tolist()]
    for missing in {first, base} - set(expected):
        with pytest.raises(DataError, match="has not kept its text"):
            reader.texts(0, np.array([missing]))


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


@pytest.mark.parametrize("options", [{}, {"dedupe__verify": "signature"}, {"dedupe__method": "exact"}])
def test_a_plan_says_what_an_index_takes(tmp_path: Path, options: dict[str, str]) -> None:
    index = tmp_path / "index"
    given = {"source.name": "sample", "run.out": str(tmp_path / "out"), "dedupe.index": str(index)}
    given |= {key.replace("__", "."): value for key, value in options.items()}
    plan = planning.measure(load(None, {key: Override(value, "test") for key, value in given.items()}))
    assert not index.exists()
    steps = {step.step for step in plan.steps}
    prepare("sample", tmp_path / "out", dedupe__index=str(index), run__report=False, **options)
    present = sum(path.stat().st_size for path in index.rglob("*.cols"))
    assert 0.9 * present <= plan.index_bytes <= 1.7 * present
    receipts = {path.name for path in (tmp_path / "out/.work/receipts").glob("dedupe.index-*")}
    assert not receipts, "they prove files that are proved by the index from now on"
    kinds = ["exact"] if options.get("dedupe__method") == "exact" else ["exact", "bands"]
    assert steps >= {f"dedupe.index-{kind}" for kind in kinds}
