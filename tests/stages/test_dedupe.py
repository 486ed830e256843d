"""Fates and clusters against a brute-force twin; in memory or on disk, one worker or two, resumed or not, in a fresh work
folder or a used one: the same bytes. What is damaged is noticed.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import json
import shutil
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasketch
import msgspec
import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from btlm_data import task_files
from btlm_data.blocks import Block, write_table
from btlm_data.dedupe.cluster_table import ClusterRows
from btlm_data.dedupe.clusters import COPIES, FATES
from btlm_data.dedupe.index import Index, IndexKind
from btlm_data.engine.local import LocalEngine
from btlm_data.errors import ConfigError, DataError, SafetyStop
from btlm_data.fates import Fate
from btlm_data.fingerprint import digest
from btlm_data.formats import columns
from btlm_data.formats.columns import DamagedError
from btlm_data.kernels import minhash, normalisation
from btlm_data.recipe.models import DedupeSettings, Run
from btlm_data.stages import dedupe
from btlm_data.stages.dedupe import Deduplicated
from btlm_data.storage import open_store
from btlm_data.task import Artifact, Counts, Step, Task
from btlm_data.task_files import TaskFiles
from tests.reference import clusters as reference
from tests.reference import minhash as reference_minhash
from tests.reference.clusters import Document
from tests.stages.runs import Context, Killed, Mortal, column, flip, joined, no_texts, opened, plan_places

BANDS = 3
NUM_PERM = 8
TINY = 10_000  # bytes of memory: everything goes through many groups and partitions
SETTINGS = DedupeSettings(bands=BANDS, rows=2, num_perm=NUM_PERM, max_removed=1, verify="none")
NOTHING = Artifact("", 0, "")
COMPONENTS = "dedupe/components.json"
TABLE, REMOVALS = "dedupe/table/clusters.parquet", "dedupe/table/removals.parquet"


def write_block(
    work_dir: Path,
    blocks: list[Block],
    split: str,
    docs: dict[str, npt.NDArray[Any]],
    meta: dict[str, Any],
    sketch: dict[str, npt.NDArray[Any]],
) -> None:
    """Lay one block down as the pass over the text would, behind the `blocks` there are."""
    store = open_store(work_dir)
    stem = f"read/{len(blocks):06d}-00000"
    first = blocks[-1].last_ordinal if blocks else 0
    content = digest(sketch["exact"].tolist())
    docs_file = columns.write(store, f"{stem}.docs", docs, meta)
    sketch_file = columns.write(store, f"{stem}.sketch", sketch, {"content": content})
    blocks.append(
        Block(
            stem,
            split,
            first,
            len(docs["offset"]),
            0,
            docs_file,
            NOTHING,
            sketch_file,
            None,
            None,
            None,
            None,
        )
    )


def write_blocks(
    work_dir: Path, documents: Sequence[Document], per_block: int = 7, bands: int = BANDS
) -> list[Block]:
    """Lay documents down; a block holds one split, at most per_block documents. bands: how many of theirs are kept."""
    blocks: list[Block] = []
    place = 0
    while place < len(documents):
        end = place + 1
        while (
            end < len(documents)
            and end - place < per_block
            and documents[end].split == documents[place].split
        ):
            end += 1
        mine = documents[place:end]
        sources = sorted({d.source for d in mine})
        docs: dict[str, npt.NDArray[Any]] = {
            "offset": np.arange(place, end, dtype=np.uint64),
            "line": np.arange(end - place, dtype=np.uint32),
            "file": np.zeros(end - place, np.uint16),
            "source": np.array([sources.index(d.source) for d in mine], np.uint32),
            "num_bytes": np.array([d.num_bytes for d in mine], np.uint32),
        }
        sketch: dict[str, npt.NDArray[Any]] = {
            "exact": np.array([[mix(d.exact), d.exact] for d in mine], np.uint64),
            "bands": np.array(
                [[mix(1000 * (b + 1) + key) for b, key in enumerate(d.bands[:bands])] for d in mine],
                np.uint64,
            ),
            "signatures": np.array(
                [[d.bands[min(p // 2, BANDS - 1)] for p in range(NUM_PERM)] for d in mine], np.uint32
            ),
        }
        meta = {"sources": sources, "files": [f"file-{len(blocks)}"]}
        write_block(work_dir, blocks, documents[place].split, docs, meta, sketch)
        place = end
    return blocks


def mix(value: int) -> int:
    """Spread small numbers over 64 bits, so that partitions see all of them."""
    return (value + 1) * 0x9E3779B97F4A7C15 % 2**64


def deduplicate(
    work_dir: Path,
    blocks: list[Block],
    settings: DedupeSettings = SETTINGS,
    context: Context | None = None,
    how: Run | None = None,
) -> Deduplicated:
    """Run the stage."""
    table = write_table(open_store(work_dir), blocks)
    context = context or Context(work_dir)
    context.index = settings.index
    with context.runner() as runner:
        result = dedupe.run(
            runner,
            blocks,
            table,
            settings,
            how or Run(workers=1),
            functools.partial(plan_places, blocks),
            no_texts,
        )
    assert result is not None
    return result


def run(
    work_dir: Path, blocks: list[Block], context: Context | None = None, memory: int = 10**9, **changes: Any
) -> list[str]:
    """Names of the fates."""
    context = context or Context(work_dir)
    how = Run(workers=context.workers, accept_removal=changes.pop("accept", False)).model_copy(
        update={"memory": memory * context.workers}  # less than a user may give
    )
    result = deduplicate(work_dir, blocks, SETTINGS.model_copy(update=changes), context, how)
    return fates_of(work_dir, result)


def fates_of(work_dir: Path, result: Deduplicated) -> list[str]:
    """Names of the fates that a result names."""
    return [Fate(code).reason for code in column(work_dir, result.fates.name, "fate")]


@st.composite
def corpora(draw: st.DrawFn) -> list[Document]:
    """Up to 40 documents that share texts and bands; equal texts have equal bands, as they do in life."""
    texts = draw(st.lists(st.tuples(*[st.integers(0, 6)] * BANDS), min_size=1, max_size=12))
    one = st.builds(
        lambda text, split, source, size: Document(text, texts[text], split, source, size),
        st.integers(0, len(texts) - 1),
        st.sampled_from(["train", "train", "train", "validation", "test"]),
        st.sampled_from("abc"),
        st.integers(1, 5),
    )
    return draw(st.lists(one, min_size=1, max_size=40))


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    documents=corpora(),
    keep=st.sampled_from(["first", "longest", "source-priority"]),
    holdout=st.booleans(),
    memory=st.sampled_from([10**9, TINY, 2000]),
    how=st.sampled_from(["whole", "ranges", "wide"]),
)
def test_fates_are_those_of_comparing_all_pairs(
    tmp_path_factory: pytest.TempPathFactory,
    documents: list[Document],
    keep: Any,
    holdout: bool,
    memory: int,
    how: str,
) -> None:
    work_dir = tmp_path_factory.mktemp("work")
    blocks = write_blocks(work_dir, documents)
    with joined(how):
        found = run(work_dir, blocks, memory=memory, keep=keep, source_priority=("c", "a"), holdout=holdout)
    assert found == reference.fates(documents, keep, ("c", "a"), holdout)
    assert column(work_dir, COMPONENTS, "cluster").tolist() == reference.clusters(documents, holdout)


def some_documents(count: int = 200, seed: int = 1) -> list[Document]:
    rng = np.random.default_rng(seed)
    texts = rng.integers(0, 150, (count // 2, BANDS)).tolist()
    choice = rng.integers(0, len(texts), count)
    splits = np.repeat(["train", "validation", "test"], [count - 20, 10, 10])
    return [
        Document(int(t), tuple(texts[t]), str(s), "ab"[int(t) % 2], int(n))
        for t, s, n in zip(choice, splits, rng.integers(1, 9, count), strict=True)
    ]


def outputs(work_dir: Path) -> dict[str, bytes]:
    named = [(FATES, "fate"), *((COPIES, name) for name in ("copies", "several", "text_stays"))]
    made = {f"{listed} {name}": column(work_dir, listed, name).tobytes() for listed, name in named}
    return made | {name: (work_dir / name).read_bytes() for name in (TABLE, REMOVALS)}


def test_memory_and_workers_change_no_byte(tmp_path: Path) -> None:
    documents = some_documents()
    made, how_made = [], [(10**9, 1, "whole"), (TINY, 1, "whole"), (TINY, 2, "whole"), (3000, 1, "whole")]
    how_made += [(10**9, 1, "ranges"), (TINY, 2, "ranges"), (3000, 1, "ranges")]
    for number, (memory, workers, how) in enumerate(how_made):
        work_dir = tmp_path / str(number)
        blocks = write_blocks(work_dir, documents)
        context = Context(work_dir, workers)
        with joined(how):
            run(work_dir, blocks, context, memory)
        assert any("sort" in task for task in context.ran) == (memory < 10**9 or how == "ranges")
        assert any("small-1" in task for task in context.ran) == (how == "ranges" or memory == 3000)
        made.append(outputs(work_dir))
    assert made[1:] == made[:1] * 6


def test_memory_of_a_finished_run_may_change(tmp_path: Path) -> None:
    blocks = write_blocks(tmp_path, some_documents())
    run(tmp_path, blocks, memory=TINY)
    context = Context(tmp_path)
    run(tmp_path, blocks, context, memory=10**9)
    assert context.ran == []
    run(tmp_path, blocks, context, memory=3000)
    assert context.ran == []
    assert not list(tmp_path.glob("dedupe/split-*")), "intermediates are removed"
    run(tmp_path, blocks, context, memory=3000, keep="longest")
    assert any(task.startswith("dedupe.components") for task in context.ran)


STEPS = [
    "dedupe.split-exact",
    "dedupe.sort-exact",
    "dedupe.exact",
    "dedupe.split-bands",
    "dedupe.sort-bands",
    "dedupe.documents",
    "dedupe.components",
    "dedupe.members",
    "dedupe.decide",
    "dedupe.fates",
    "dedupe.cluster",
    "dedupe.table",
]


# Where documents are joined in ranges: how many rounds of stars there are follows from the edges.
IN_RANGES = [
    "dedupe.split-exact",
    "dedupe.split-exact-2",
    "dedupe.sort-exact",
    "dedupe.exact",
    "dedupe.split-bands",
    "dedupe.split-bands-2",
    "dedupe.sort-bands",
    "dedupe.documents",
    *(f"dedupe.{star}-{number}" for number in (1, 2, 3, 4) for star in ("small", "large")),
    "dedupe.labels",
    "dedupe.whole",
    "dedupe.numbers",
    "dedupe.places",
    *STEPS[STEPS.index("dedupe.components") :],
]


def die(name: str, step: Step) -> None:
    if step.name == name:
        raise Killed


@pytest.mark.parametrize(("how", "steps"), [("whole", STEPS), ("ranges", IN_RANGES)])
def test_killed_before_any_step_and_resumed_is_never_killed(
    tmp_path: Path, how: str, steps: list[str]
) -> None:
    with joined(how):
        check_kills(tmp_path, steps)


def check_kills(tmp_path: Path, steps: list[str]) -> None:
    documents = some_documents()
    whole = tmp_path / "whole"
    context = Context(whole)
    run(whole, write_blocks(whole, documents), context, TINY)
    names = list(dict.fromkeys(task.rsplit(" ", 1)[0] for task in context.ran))
    assert names == steps
    for name in names:
        work_dir = tmp_path / name
        blocks = write_blocks(work_dir, documents)

        with pytest.raises(Killed):
            run(work_dir, blocks, Context(work_dir, before=functools.partial(die, name)), TINY)
        resumed = Context(work_dir)
        run(work_dir, blocks, resumed, TINY)
        assert outputs(work_dir) == outputs(whole)
        done = names[: names.index(name)]
        assert not [task for task in resumed.ran if task.rsplit(" ", 1)[0] in done], (
            "what was finished is not done again"
        )


@pytest.mark.parametrize(
    "written",
    [
        "{",
        '{"lineage": "LINEAGE", "partitioned": true, "log": -3}',
        '{"lineage": "LINEAGE", "partitioned": true, "log": 2000}',
    ],
)
def test_a_plan_that_is_none_is_made_anew(tmp_path: Path, written: str) -> None:
    blocks = write_blocks(tmp_path, some_documents())
    with joined("ranges"):
        expected = run(tmp_path, blocks)
        path = tmp_path / "dedupe/joining.json"
        plan = path.read_text()
        path.write_text(written.replace("LINEAGE", json.loads(plan)["lineage"]))
        assert run(tmp_path, blocks) == expected
        assert path.read_text() == plan


def test_hot_keys_beyond_the_memory_are_one_cluster(tmp_path: Path) -> None:
    """Every document shares its first band with all others: one key is 100 times larger than a partition may be."""
    documents = [Document(i, (0, i + 10, i + 10)) for i in range(3000)]
    blocks = write_blocks(tmp_path, documents, per_block=100)
    found = run(tmp_path, blocks, memory=TINY, accept=True)
    assert found == ["kept"] + ["near_duplicate"] * 2999


def test_clusters_parquet_lists_every_component_of_two_or_more(tmp_path: Path) -> None:
    documents = some_documents()
    blocks = write_blocks(tmp_path, documents)
    found = run(tmp_path, blocks)
    rows = pq.read_table(tmp_path / TABLE).to_pylist()
    roots = reference.clusters(documents)
    expected = [
        {
            "document": i,
            "cluster": roots[i],
            "kept": found[i] == "kept",
            "fate": found[i],
            "split": d.split,
            "source": d.source,
            "file": f"file-{[b.first_ordinal <= i < b.last_ordinal for b in blocks].index(True)}",
            "line": i - next(b.first_ordinal for b in blocks if b.first_ordinal <= i < b.last_ordinal),
            "offset": i,
            "bytes": d.num_bytes,
        }
        for i, d in enumerate(documents)
        if roots.count(roots[i]) > 1
    ]
    assert rows == expected


def test_summary_and_counts_add_up(tmp_path: Path) -> None:
    documents = some_documents()
    blocks = write_blocks(tmp_path, documents)
    result = deduplicate(tmp_path, blocks)
    summary, counts = result.summary, result.counts
    receipt = json.loads((tmp_path / "receipts/dedupe.cluster/000000.json").read_text())["receipt"]
    assert Counts.from_json(receipt["counts"]).cells == counts.cells
    roots = reference.clusters(documents)
    sizes = {root: roots.count(root) for root in roots if roots.count(root) > 1}
    assert summary["clusters"] == len(sizes)
    assert summary["documents_in_clusters"] == sum(sizes.values())
    shown = [(c["documents"], -c["cluster"]) for c in summary["largest_clusters"]]
    assert shown == sorted(((size, -root) for root, size in sizes.items()), reverse=True)[:10]
    fates = reference.fates(documents)
    for split, source in {(d.split, d.source) for d in documents}:
        mine = [
            (d, f) for d, f in zip(documents, fates, strict=True) if (d.split, d.source) == (split, source)
        ]
        for reason in {f for _, f in mine}:
            cell = counts.cells[split, source, "out" if reason == "kept" else f"drop:{reason}"]
            assert cell[:2] == (
                sum(f == reason for _, f in mine),
                sum(d.num_bytes for d, f in mine if f == reason),
            )
        assert counts.cells[split, source, "in"].documents == len(mine)


def test_exact_method_ignores_bands(tmp_path: Path) -> None:
    documents = [Document(0, (1, 1, 1)), Document(1, (1, 1, 1)), Document(0, (1, 1, 1))]
    for memory in (10**9, 300):
        work_dir = tmp_path / str(memory)
        found = run(work_dir, write_blocks(work_dir, documents), memory=memory, method="exact")
        assert found == ["kept", "kept", "exact_duplicate"]


def test_safety_stop_shows_the_largest_clusters_and_is_overridden(tmp_path: Path) -> None:
    documents = [Document(0, (1, 1, 1), source="web", num_bytes=100)] * 9 + [
        Document(1, (2, 2, 2), source="books", num_bytes=100)
    ]
    blocks = write_blocks(tmp_path, documents)
    with pytest.raises(
        SafetyStop,
        match=r"88\.9% of the bytes of web, more than dedupe\.max_removed = 80%(?s:.)*9 documents like .* file-0",
    ):
        run(tmp_path, blocks, max_removed=0.8)
    assert run(tmp_path, blocks, max_removed=0.9).count("kept") == 2
    assert run(tmp_path, blocks, max_removed=0.8, accept=True).count("kept") == 2


def test_a_handful_of_documents_stops_no_run(tmp_path: Path) -> None:
    few = [Document(0, (1, 1, 1), source="web")] * 5
    assert run(tmp_path / "few", write_blocks(tmp_path / "few", few)).count("kept") == 1
    blocks = write_blocks(tmp_path / "more", [*few, few[0]])
    with pytest.raises(SafetyStop, match="of web, more than"):
        run(tmp_path / "more", blocks, max_removed=0.5)


def test_verification_drops_candidates_that_are_not_alike(tmp_path: Path) -> None:
    """Signatures repeat bands as 0 0 1 1 2 2 2 2: sharing bands 0 and 1 agrees in 4 of 8 values, sharing 2 as well in 8."""
    documents = [
        Document(0, (1, 1, 1)),
        Document(1, (1, 1, 2)),
        Document(2, (1, 5, 2)),
        Document(3, (1, 5, 2)),
    ]
    for memory in (10**9, 300):
        work_dir = tmp_path / str(memory)
        blocks = write_blocks(work_dir, documents, per_block=2)
        found = run(work_dir, blocks, memory=memory, verify="signature", threshold=0.7)
        # 2 and 3 share a text's worth of values and 1 shares six of eight with both; 0 is like none of them but 1 (four of eight).
        assert found == ["kept", "kept", "near_duplicate", "near_duplicate"]
        assert (
            run(work_dir, blocks, memory=memory, verify="signature", threshold=0.5)
            == ["kept"] + ["near_duplicate"] * 3
        )


def test_verification_counts_what_it_compared(tmp_path: Path) -> None:
    documents = [Document(0, (1, 10, 20)), Document(1, (1, 11, 21)), Document(2, (1, 11, 22))]
    verifying = SETTINGS.model_copy(update={"verify": "signature", "threshold": 0.5})
    result = deduplicate(tmp_path, write_blocks(tmp_path, documents), verifying)
    # In band 0: (0,1) no, (0,2) no, (1,2) yes; in band 1: (1,2) yes.
    assert result.summary["verified_pairs"] == {"compared": 4, "below_threshold": 2}


@pytest.mark.parametrize("verify", ["none", "signature"])
@pytest.mark.parametrize("memory", [10**9, TINY])
def test_index_drops_what_an_earlier_run_has_and_a_rerun_changes_nothing(
    tmp_path: Path, verify: bool, memory: int
) -> None:
    everything = [dataclasses.replace(d, split="train") for d in some_documents(300)]
    today, tomorrow = everything[:150], everything[150:]
    index = str(tmp_path / "index")
    first = run(
        tmp_path / "1",
        write_blocks(tmp_path / "1", today),
        memory=memory,
        index=index,
        verify=verify,
        threshold=0.01,
    )
    assert "in_index" not in first
    second = run(
        tmp_path / "2",
        write_blocks(tmp_path / "2", tomorrow),
        memory=TINY,
        index=index,
        verify=verify,
        threshold=0.01,
    )
    # What of tomorrow is connected to today, by a run over both.
    roots = reference.clusters(everything)
    connected = {roots[i] for i in range(150)}
    linked_only_tomorrow = reference.clusters(tomorrow)
    known = {linked_only_tomorrow[i] for i in range(150) if any(_touch(tomorrow[i], d) for d in today)}
    assert [f == "in_index" for f in second] == [linked_only_tomorrow[i] in known for i in range(150)]
    assert all(roots[150 + i] in connected for i in range(150) if second[i] == "in_index")
    names = sorted(p.name for p in Path(index).iterdir())
    # Both again, in fresh work folders: same fates although the index now holds both runs.
    assert (
        run(
            tmp_path / "3",
            write_blocks(tmp_path / "3", today),
            memory=memory,
            index=index,
            verify=verify,
            threshold=0.01,
        )
        == first
    )
    assert (
        run(
            tmp_path / "4",
            write_blocks(tmp_path / "4", tomorrow),
            memory=memory,
            index=index,
            verify=verify,
            threshold=0.01,
        )
        == second
    )
    assert sorted(p.name for p in Path(index).iterdir()) == names
    assert len(names) == 2


def _touch(one: Document, other: Document) -> bool:
    return one.exact == other.exact or any(a == b for a, b in zip(one.bands, other.bands, strict=True))


@pytest.mark.parametrize("memory", [10**9, TINY])
def test_a_removed_index_is_made_again(tmp_path: Path, memory: int) -> None:
    blocks = write_blocks(tmp_path, some_documents())
    index = tmp_path / "index"
    first = run(tmp_path, blocks, memory=memory, index=str(index))
    made = {path.relative_to(index): path.read_bytes() for path in index.rglob("*.cols")}
    shutil.rmtree(index)
    assert run(tmp_path, blocks, memory=memory, index=str(index)) == first
    assert {path.relative_to(index): path.read_bytes() for path in index.rglob("*.cols")} == made


def test_index_of_other_bands_is_refused(tmp_path: Path) -> None:
    documents = some_documents(30)
    run(tmp_path / "1", write_blocks(tmp_path / "1", documents), index=str(tmp_path / "index"))
    with pytest.raises(
        ConfigError, match=r"3 bands x 2 rows, 8 permutations, this run has .* 3 bands x 1 rows"
    ):
        run(tmp_path / "2", write_blocks(tmp_path / "2", documents), index=str(tmp_path / "index"), rows=1)


def test_damaged_index_says_what_to_do(tmp_path: Path) -> None:
    index = tmp_path / "index"
    run(tmp_path / "1", write_blocks(tmp_path / "1", some_documents(30)), index=str(index))
    next(index.glob("*/index.json")).write_text("{")
    with pytest.raises(DataError, match=r"cannot be read .* remove its folder"):
        run(tmp_path / "2", write_blocks(tmp_path / "2", some_documents(30, seed=2)), index=str(index))


# A work folder's history --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Attempt:
    """One run in a work folder. ends: by a SafetyStop, or dead after so many jobs (of one step, or of any), or well."""

    bands: int = BANDS
    rows: int = 2
    memory: int = TINY
    documents: int = 200
    method: str = "minhash"
    keep: str = "first"
    holdout: bool = True
    verify: str = "none"
    index: bool = False
    joined: str = "whole"
    ends: tuple[str | None, int] | str | None = None


def attempt(work_dir: Path, one: Attempt, index: Path, documents: Sequence[Document]) -> Deduplicated:
    """Lay the documents down as this attempt has them, and run. Raises what it ends by. index: a folder per kind."""
    blocks = write_blocks(work_dir, documents[-one.documents :], bands=one.bands)
    chosen = SETTINGS.model_copy(
        update={
            "bands": one.bands,
            "rows": one.rows,
            "method": one.method,
            "keep": one.keep,
            "holdout": one.holdout,
            "verify": one.verify,
            "threshold": 0.5,
            "max_removed": 0.001 if one.ends == "safety" else 1,
            "index": str(index / f"{one.method}-{one.bands}-{one.rows}") if one.index else None,
        }
    )
    how = Run(workers=1).model_copy(update={"memory": one.memory})
    engine: Any = LocalEngine
    if isinstance(one.ends, tuple):
        step, left = one.ends
        engine = lambda _: Mortal(left, step)  # noqa: E731
    with joined(one.joined):
        return deduplicate(work_dir, blocks, chosen, Context(work_dir, engine=engine), how)


def contents(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()
    }


def check_history(folder: Path, history: Sequence[Attempt], documents: Sequence[Document]) -> None:
    """Attempts in one work folder; whenever one ends well, everything is as in a fresh folder, and as it was before."""
    used, index = folder / "used", folder / "index"
    before: dict[Attempt, dict[str, bytes]] = {}
    for number, one in enumerate(history):
        fresh, fresh_index = folder / f"fresh-{number}", folder / f"index-{number}"
        if index.exists():
            shutil.copytree(index, fresh_index)
        try:
            found = attempt(used, one, index, documents)
        except (SafetyStop, Killed):
            assert one.ends is not None
            continue
        expected = attempt(fresh, dataclasses.replace(one, ends=None), fresh_index, documents)
        # Ranges of fates follow from the documents alone; that "joined" changes them, too, is the tests' doing.
        left_out = dict.fromkeys(("fates", "copies"), NOTHING)
        assert msgspec.structs.replace(found, **left_out) == msgspec.structs.replace(expected, **left_out), (
            one
        )
        if one.joined == "whole":
            assert found == expected, one
        assert outputs(used) == outputs(fresh), one
        assert contents(index) == contents(fresh_index), one
        kind = "wide" if one.joined == "wide" else ""  # its tables have ordinals of 64 bits
        same = dataclasses.replace(one, memory=0, joined=kind, ends=None)
        assert before.setdefault(same, outputs(used)) == outputs(used), one


ENDS = ["safety", *((step, 0) for step in STEPS), *((step, 1) for step in STEPS if "-" in step)]
OTHERS = {
    "other bands and rows": Attempt(bands=2, rows=4),
    "more memory": Attempt(memory=10**9),
    "some more memory": Attempt(memory=3 * TINY),
    "less memory": Attempt(memory=3000),
    "in ranges": Attempt(joined="ranges"),
    "fewer blocks": Attempt(documents=60),
    "other fates": Attempt(keep="longest", holdout=False),
    "no bands": Attempt(method="exact"),
    "the same": Attempt(),
}


@pytest.mark.parametrize("other", OTHERS)
@pytest.mark.parametrize(
    "ends", ENDS, ids=lambda ends: ends if isinstance(ends, str) else f"{ends[0]}-{ends[1]}"
)
def test_what_a_stopped_or_killed_run_left_changes_nothing(tmp_path: Path, ends: Any, other: str) -> None:
    check_history(tmp_path, [Attempt(ends=ends), OTHERS[other]], some_documents())


def test_a_stopped_run_is_accepted_later_with_other_memory(tmp_path: Path) -> None:
    for memory in (10**9, TINY, 3000):
        history = [Attempt(ends="safety"), Attempt(ends="safety", memory=memory), Attempt(memory=memory)]
        check_history(tmp_path / str(memory), history, some_documents())


attempts = st.builds(
    Attempt,
    bands=st.sampled_from([3, 3, 1, 2]),
    rows=st.sampled_from([2, 2, 1]),
    memory=st.sampled_from([TINY, TINY, 3000, 3 * TINY, 10**9]),
    documents=st.sampled_from([120, 120, 60, 13]),
    method=st.sampled_from(["minhash", "minhash", "minhash", "exact"]),
    keep=st.sampled_from(["first", "longest"]),
    holdout=st.booleans(),
    verify=st.sampled_from(["none", "signature"]),
    joined=st.sampled_from(["whole", "whole", "ranges", "wide"]),
    ends=st.one_of(
        st.none(),
        st.just("safety"),
        st.tuples(st.just(None), st.integers(0, 40)),
        st.tuples(st.sampled_from(IN_RANGES), st.integers(0, 3)),
    ),
)


@settings(deadline=None, max_examples=20, suppress_health_check=list(HealthCheck))
@given(history=st.lists(attempts, min_size=1, max_size=4), last=attempts, seed=st.integers(0, 3))
def test_no_history_of_a_work_folder_changes_an_outcome(
    tmp_path_factory: pytest.TempPathFactory, history: list[Attempt], last: Attempt, seed: int
) -> None:
    last = dataclasses.replace(last, ends=None)
    check_history(tmp_path_factory.mktemp("history"), [*history, last], some_documents(120, seed))


@settings(deadline=None, max_examples=12, suppress_health_check=list(HealthCheck))
@given(history=st.lists(attempts, min_size=2, max_size=5), last=attempts, seed=st.integers(0, 3))
def test_no_history_of_a_work_folder_changes_an_outcome_with_an_index(
    tmp_path_factory: pytest.TempPathFactory, history: list[Attempt], last: Attempt, seed: int
) -> None:
    """One kind of index, which the runs that end well fill; others have no use for it."""
    all_attempts = [
        dataclasses.replace(one, bands=BANDS, rows=2, index=True)
        for one in [*history, dataclasses.replace(last, ends=None)]
    ]
    check_history(tmp_path_factory.mktemp("history"), all_attempts, some_documents(120, seed))


# Damage -------------------------------------------------------------------------------------------------------------

# Folder (or file) of damaged files -> the step that reads them.
READERS = [
    ("dedupe/split-exact", "dedupe.sort-exact"),
    ("dedupe/sort-exact", "dedupe.exact"),
    ("dedupe/exact", "dedupe.split-bands"),
    ("dedupe/exact", "dedupe.components"),
    ("dedupe/split-bands", "dedupe.sort-bands"),
    ("dedupe/sort-bands", "dedupe.components"),
    ("dedupe/documents", "dedupe.components"),
    ("dedupe/small-1", "dedupe.large-1"),
    ("dedupe/large-1", "dedupe.small-2"),
    ("dedupe/exact", "dedupe.labels"),
    ("dedupe/sort-bands", "dedupe.labels"),
    ("dedupe/labels", "dedupe.whole"),
    ("dedupe/whole", "dedupe.numbers"),
    ("dedupe/numbers", "dedupe.places"),
    ("dedupe/decide", "dedupe.fates"),
    ("dedupe/cluster", "dedupe.table"),
]
LISTS = [
    ("dedupe/groups-exact.json", "dedupe.sort-exact"),
    ("dedupe/groups-bands.json", "dedupe.sort-bands"),
    ("dedupe/members.json", "dedupe.decide"),
    ("dedupe/decided-groups.json", "dedupe.fates"),
    ("dedupe/clusters.json", "dedupe.table"),
    ("dedupe/fates.json", "dedupe.cluster"),
    ("dedupe/copies.json", "dedupe.cluster"),
    ("dedupe/components.json", "dedupe.cluster"),
    ("dedupe/small-1.json", "dedupe.large-1"),
    ("dedupe/documents.json", "dedupe.labels"),
]


def flip_one(work_dir: Path, place: str, rng: np.random.Generator) -> None:
    found = sorted(path for path in [work_dir / place, *work_dir.glob(f"{place}/*")] if path.is_file())
    flip(found[rng.integers(len(found))], rng)


def forget_what_processes_keep(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a new process: tables that were read before are read again."""
    monkeypatch.setattr(task_files, "_kept", task_files._Kept(4))


@pytest.fixture
def as_read(reader: str) -> Iterator[None]:
    """Documents are joined in ranges where only then a step reads the files."""
    with joined("whole" if reader in STEPS and reader != "dedupe.cluster" else "ranges"):
        yield


@pytest.mark.usefixtures("as_read")
@pytest.mark.parametrize(("place", "reader"), READERS)
def test_a_flipped_bit_of_a_work_file_is_noticed_by_the_next_run(
    tmp_path: Path, place: str, reader: str
) -> None:
    """What a killed run left is damaged; then the run that reads it says so, and the one after that makes it again."""
    documents, rng = some_documents(), np.random.default_rng(3)
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    expected = run(whole, write_blocks(whole, documents), memory=TINY)
    blocks = write_blocks(killed, documents)
    with pytest.raises(Killed):
        run(killed, blocks, Context(killed, before=functools.partial(die, reader)), TINY)
    for number in range(6):
        work_dir = tmp_path / str(number)
        shutil.copytree(killed, work_dir)
        flip_one(work_dir, place, rng)
        with pytest.raises(DamagedError, match=r"Rerun the same command"):
            run(work_dir, blocks, memory=TINY)
        assert run(work_dir, blocks, memory=TINY) == expected
        assert outputs(work_dir) == outputs(whole)


@pytest.mark.usefixtures("as_read")
@pytest.mark.parametrize(("place", "reader"), READERS + LISTS)
@pytest.mark.parametrize("workers", [1, 2])
def test_a_flipped_bit_of_a_work_file_is_noticed_by_the_next_step(
    tmp_path: Path, place: str, reader: str, workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    documents, rng = some_documents(), np.random.default_rng(4)
    whole, work_dir = tmp_path / "whole", tmp_path / "damaged"
    expected = run(whole, write_blocks(whole, documents), memory=TINY)
    blocks = write_blocks(work_dir, documents)
    forget_what_processes_keep(monkeypatch)

    def damage(step: Step) -> None:
        if step.name == reader:
            flip_one(work_dir, place, rng)

    with pytest.raises(DamagedError, match=r"Rerun the same command"):
        run(work_dir, blocks, Context(work_dir, workers, before=damage), TINY)
    assert run(work_dir, blocks, memory=TINY) == expected
    assert outputs(work_dir) == outputs(whole)


def read_result(task: Task, settings: None, files: TaskFiles) -> Counts:
    """Read a result of deduplication, as later stages do."""
    [artifact] = task.reads["result"]
    if artifact.name.endswith(".cols"):
        result = files.columns(artifact)
        for name in result.names:
            _ = result[name]
    else:
        files.read(artifact)
    return Counts()


@pytest.mark.parametrize("name", ["dedupe/fates/000000.cols", "dedupe/fates/copies-000000.cols", TABLE])
@pytest.mark.parametrize("memory", [10**9, TINY])
def test_a_flipped_bit_of_a_result_is_noticed_by_its_reader(tmp_path: Path, name: str, memory: int) -> None:
    rng = np.random.default_rng(5)
    blocks = write_blocks(tmp_path, some_documents())
    run(tmp_path, blocks, memory=memory)
    expected = outputs(tmp_path)
    written = (tmp_path / "receipts").glob("dedupe.*/*.json")
    outputs_of = [json.loads(path.read_text())["receipt"]["outputs"] for path in written]
    [artifact] = [Artifact(*output) for found in outputs_of for output in found if output[0] == name]
    step = Step("read", 1, read_result, [Task("all", reads={"result": [artifact]})], None, "")
    for number in range(6):
        flip(tmp_path / name, rng)
        with Context(tmp_path).runner() as runner, pytest.raises(DamagedError):
            runner.run(msgspec.structs.replace(step, version=number))
        run(tmp_path, blocks, memory=memory)
        assert outputs(tmp_path) == expected
        with Context(tmp_path).runner() as runner:
            runner.run(msgspec.structs.replace(step, version=number))


@pytest.mark.parametrize("kind", ["exact", "bands"])
@pytest.mark.parametrize("memory", [10**9, TINY])
@pytest.mark.parametrize("place", ["dedupe/index-split-{}", "dedupe/index-groups-{}.json"])
def test_a_damaged_key_file_is_not_added_to_an_index(
    tmp_path: Path, kind: str, memory: int, place: str
) -> None:
    """A run that was killed has left keys, damaged since then; the next would add them."""
    documents, rng = some_documents(), np.random.default_rng(6)
    index, whole = tmp_path / "index", tmp_path / "whole"
    run(tmp_path / "work", write_blocks(tmp_path / "work", documents), memory=memory, index=str(whole))
    blocks = write_blocks(tmp_path, documents)
    reader, place = f"dedupe.index-{kind}", place.format(kind)

    def damage(step: Step) -> None:
        if step.name == reader:
            flip_one(tmp_path, place, rng)

    for _ in range(4):
        with pytest.raises(Killed):
            run(
                tmp_path,
                blocks,
                Context(tmp_path, before=functools.partial(die, reader)),
                memory,
                index=str(index),
            )
        with pytest.raises(DamagedError):
            run(tmp_path, blocks, Context(tmp_path, before=damage), memory, index=str(index))
        assert not list(index.rglob("index.json"))
    run(tmp_path, blocks, memory=memory, index=str(index))
    assert contents(index) == contents(whole)
    assert not list(tmp_path.glob("dedupe/index-*/*")), "intermediates are removed"


INDEX_STEPS = [
    "dedupe.index-split-exact",
    "dedupe.index-exact",
    "dedupe.index-split-bands",
    "dedupe.index-bands",
]


@pytest.mark.parametrize("how", ["whole", "ranges", "wide"])
@pytest.mark.parametrize("step", [*INDEX_STEPS, "dedupe.index-signatures"])
def test_a_run_that_was_killed_while_it_added_itself_adds_the_same(
    tmp_path: Path, step: str, how: str
) -> None:
    """The file that the killed task was about to write is cut off; nothing of it is taken for whole."""
    documents = some_documents()
    index, whole = tmp_path / "index", tmp_path / "whole"
    with joined(how):
        run(tmp_path / "work", write_blocks(tmp_path / "work", documents), memory=TINY, index=str(whole))
        blocks = write_blocks(tmp_path, documents)
        context = Context(tmp_path, before=functools.partial(die, step))
        with pytest.raises(Killed):
            run(tmp_path, blocks, context, TINY, index=str(index))
        [run_folder] = index.iterdir()
        assert {path.name for path in run_folder.iterdir()} == {"building.json"} | {
            path.name for path in run_folder.glob("*.cols")
        }
        for name in ("exact-000000", "bands-000000", "signatures-000000"):
            path = run_folder / f"{name}.cols"
            path.write_bytes(path.read_bytes()[:-1] if path.exists() else b"")
        run(tmp_path, blocks, memory=TINY, index=str(index))
    assert contents(index) == contents(whole)


@pytest.mark.parametrize("part", ["meta", "signatures"])
def test_a_damaged_sketch_that_only_an_index_reads_is_made_again(tmp_path: Path, part: str) -> None:
    """Whoever reads a damaged work file, it is removed, or the next run would stumble over it again."""
    documents = some_documents()
    blocks = write_blocks(tmp_path, documents, per_block=100)
    with pytest.raises(SafetyStop):
        run(tmp_path, blocks, index=str(tmp_path / "index"), max_removed=0.001)
    [first, *_] = blocks
    assert first.sketch is not None
    path = tmp_path / first.sketch.name
    data = bytearray(path.read_bytes())
    place = (
        data.index(b'"content"')
        if part == "meta"
        else data.index(opened(tmp_path, first.sketch.name)["signatures"].tobytes())
    )
    data[place + 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(DamagedError):
        run(tmp_path, blocks, index=str(tmp_path / "index"))
    assert not path.exists()


def index_of_a_run(folder: Path, memory: int = 10**9) -> tuple[Path, list[Document]]:
    """An index of one run, and documents of which many are in it; kind of the runs: `INDEXED`."""
    everything = [dataclasses.replace(d, split="train") for d in some_documents(300)]
    blocks = write_blocks(folder / "indexed", everything[:150], per_block=150)
    run(folder / "indexed", blocks, memory=memory, index=str(folder / "index"), **INDEXED)
    return folder / "index", everything[150:]


INDEXED: dict[str, Any] = {"verify": "signature", "threshold": 0.5}


@pytest.mark.parametrize("memory", [10**9, TINY])
@pytest.mark.parametrize("kind", ["exact", "bands", "signatures", "index.json"])
@pytest.mark.parametrize("damage", ["missing", "truncated", "flipped"])
def test_a_damaged_index_is_an_error_and_never_a_smaller_index(
    tmp_path: Path, kind: str, damage: str, memory: int
) -> None:
    index, documents = index_of_a_run(tmp_path, memory)
    rng = np.random.default_rng(7)
    for number in range(5):
        damaged, work_dir = tmp_path / f"index-{number}", tmp_path / f"work-{number}"
        shutil.copytree(index, damaged)
        paths = sorted(damaged.glob(f"*/{kind}*"))
        path = paths[rng.integers(len(paths))]
        if damage == "missing":
            path.unlink()
        elif damage == "truncated":
            path.write_bytes(path.read_bytes()[: int(rng.integers(path.stat().st_size))])
        elif kind == "index.json":
            path.write_bytes(path.read_bytes().replace(b'"files":[["', b'"files":[["_', 1))
        else:
            flip(path, rng)
        blocks = write_blocks(work_dir, documents)
        with pytest.raises(DataError, match=str(damaged)):
            run(work_dir, blocks, memory=memory, index=str(damaged), **INDEXED)
        # No attempt makes it good: it is still an error.
        with pytest.raises(DataError, match=str(damaged)):
            run(work_dir, blocks, memory=memory, index=str(damaged), **INDEXED)
    again = tmp_path / "again"
    assert "in_index" in run(
        again, write_blocks(again, documents), memory=memory, index=str(index), **INDEXED
    )


@pytest.mark.parametrize("kind", ["exact", "bands", "signatures"])
@pytest.mark.parametrize("damage", ["missing", "truncated", "flipped"])
def test_a_damaged_index_says_that_no_rerun_makes_it_good(tmp_path: Path, kind: str, damage: str) -> None:
    index, documents = index_of_a_run(tmp_path)
    [path] = index.glob(f"*/{kind}*")
    if damage == "missing":
        path.unlink()
    elif damage == "truncated":
        path.write_bytes(path.read_bytes()[:-1])
    else:
        flip(path, np.random.default_rng(8))
    blocks = write_blocks(tmp_path / "work", documents)
    with pytest.raises(DataError, match=r"index .* is damaged.* Restore (it|the file), or remove the folder"):
        run(tmp_path / "work", blocks, index=str(index), **INDEXED)


def test_no_flipped_bit_of_an_index_record_makes_a_smaller_index(tmp_path: Path) -> None:
    """Every byte of index.json, one bit of it flipped: an error, or all that the index has is found."""
    index, _ = index_of_a_run(tmp_path)
    kind = IndexKind(SETTINGS.scheme, BANDS, 2, NUM_PERM)

    def held() -> list[Any]:
        reader = Index(str(index), "another run", kind, "signatures").reader
        found: list[Any] = [len(reader.runs)]
        for name in ("exact", "bands"):
            for _, arrays in reader.ranges(name, 0, 0):
                found += [(name, key, array.tolist()) for key, array in arrays.items()]
        for run_name, _ in reader.runs:
            found.append(reader.signatures(run_name).read(np.arange(150, dtype=np.uint32)).tolist())
        return found

    whole = held()
    [record] = index.glob("*/index.json")
    good = record.read_bytes()
    refused = 0
    for place in range(len(good)):
        damaged = bytearray(good)
        damaged[place] ^= 1 << place % 8
        record.write_bytes(damaged)
        try:
            assert held() == whole, bytes(damaged)
        except (DataError, ConfigError):
            refused += 1
    assert refused > 0.8 * len(good)


# Real text ----------------------------------------------------------------------------------------------------------

SAMPLE = Path(__file__).resolve().parents[2] / "btlm_data/data/sample"
EDITS_OF_THE_SAME_TEXT = ("original", "exact", "whitespace", "case", "punctuation", "nfd")


def sample_documents() -> tuple[list[str], list[tuple[str, int, str]]]:
    """Texts of the sample corpus as cleaning leaves them, and (file, line, split) of each."""
    found, places = [], []
    for path in [
        p for split in ("train", "validation", "test") for p in sorted(SAMPLE.glob(f"{split}/**/*.zst"))
    ]:
        name = path.relative_to(SAMPLE).as_posix()
        for line, record in enumerate(
            zstandard.ZstdDecompressor().stream_reader(path.read_bytes()).read().split(b"\n")
        ):
            try:
                text = unicodedata.normalize("NFC", json.loads(record)["text"])
                text.encode()
            except (ValueError, KeyError, TypeError):
                continue
            if len(reference_minhash.normalise(text)) >= 200:
                found.append(text)
                places.append((name, line, name.split("/")[0]))
    return found, places


def sketch(
    documents: Sequence[str], scheme: minhash.Scheme = "affine32"
) -> tuple[npt.NDArray[np.uint64], npt.NDArray[np.uint64]]:
    """Exact hashes and band keys."""
    encoded = [text.encode() for text in documents]
    offsets = np.concatenate((np.zeros(1, np.int64), np.cumsum([len(e) for e in encoded])))
    n = normalisation.normalise(documents, np.frombuffer(b"".join(encoded), np.uint8), offsets)
    return minhash.exact_hashes(n.utf8, n.offsets), minhash.band_keys(
        minhash.signatures(n, scheme=scheme), 9, 13
    )


def write_texts(
    work_dir: Path, documents: Sequence[str], splits: Sequence[str], scheme: minhash.Scheme = "affine32"
) -> list[Block]:
    """A block per stretch of one split."""
    blocks: list[Block] = []
    for split, group in itertools.groupby(range(len(documents)), key=lambda i: splits[i]):
        rows = list(group)
        exact, bands = sketch([documents[i] for i in rows], scheme)
        docs: dict[str, npt.NDArray[Any]] = {
            "offset": np.array(rows, np.uint64),
            "line": np.arange(len(rows), dtype=np.uint32),
            "num_bytes": np.ones(len(rows), np.uint32),
        }
        docs |= {"source": np.zeros(len(rows), np.uint32), "file": np.zeros(len(rows), np.uint16)}
        meta = {"sources": ["a"], "files": ["f"]}
        write_block(work_dir, blocks, split, docs, meta, {"exact": exact, "bands": bands})
    return blocks


def test_planted_copies_are_found_and_nothing_else_goes(tmp_path: Path) -> None:
    documents, places = sample_documents()
    number = {(name, line): i for i, (name, line, _) in enumerate(places)}
    blocks = write_texts(tmp_path, documents, [split for _, _, split in places])
    deduplicate(tmp_path, blocks, DedupeSettings(verify="none"))
    fate = [Fate(code) for code in column(tmp_path, FATES, "fate")]
    cluster = column(tmp_path, COMPONENTS, "cluster")
    truth = json.loads((SAMPLE / "truth.json").read_text())

    slightly_edited: list[bool] = []
    for copies in truth["clusters"]:
        here = {number[m["file"], m["line"]]: m for m in copies}
        same = [i for i, m in here.items() if m["edit"] in EDITS_OF_THE_SAME_TEXT]
        assert [fate[i] for i in sorted(same)[1:]] == [Fate.EXACT_DUPLICATE] * (len(same) - 1), (
            "every exact copy goes"
        )
        slightly_edited += [
            bool(cluster[i] == cluster[same[0]]) for i, m in here.items() if m["edit"].endswith("0.3%")
        ]
        if len({int(cluster[i]) for i in here}) == 1:
            assert sum(fate[i] == Fate.KEPT for i in here) == 1, "one document of a component stays"
    assert len(slightly_edited) >= 5
    assert np.mean(slightly_edited) >= 0.99
    for copy in truth["holdout_copies"]:
        equal = copy["edit"] in EDITS_OF_THE_SAME_TEXT
        found = fate[number[copy["file"], copy["line"]]]
        if equal or copy["jaccard"] >= 0.97:
            assert found == (Fate.DUPLICATE_OF_HOLDOUT if equal else Fate.NEAR_DUPLICATE_OF_HOLDOUT)

    # Precision: whatever goes is like a document of its component, by exact similarity of their features.
    features = {
        i: set(reference_minhash.features(documents[i]))
        for i in np.flatnonzero(np.bincount(cluster, minlength=len(cluster))[cluster] > 1).tolist()
    }
    for i in np.flatnonzero(fate).tolist():
        others = [j for j in features if cluster[j] == cluster[i] and j != i]
        assert max(len(features[i] & features[j]) / len(features[i] | features[j]) for j in others) > 0.6


def test_legacy_scheme_gives_the_components_of_the_reference_scripts(tmp_path: Path) -> None:
    """SlimPajama's method on its own terms: datasketch's legacy MinHash over SHA-1, a dictionary per band, connected components."""
    rng = np.random.default_rng(5)
    originals = [" ".join(text.split()[:90]) for text in sample_documents()[0][:250]]
    documents = list(originals)
    for text in originals:
        words = text.split()
        for k in rng.choice(len(words), int(rng.integers(0, 4)), replace=False):
            words[k] = "other"
        documents.append(" ".join(words))
    signed = datasketch.MinHash.bulk(
        [reference_minhash.features(text) for text in documents], num_perm=128, scheme="legacy"
    )
    edges = []
    for band in range(9):
        partner: dict[bytes, int] = {}
        for i, m in enumerate(signed):
            edges.append(
                (partner.setdefault(m.hashvalues[13 * band : 13 * band + 13].byteswap().tobytes(), i), i)
            )
    expected = reference.components(len(documents), edges)

    blocks = write_texts(tmp_path, documents, ["train"] * len(documents), "legacy")
    deduplicate(tmp_path, blocks, DedupeSettings(scheme="legacy", max_removed=1, verify="none"))
    assert column(tmp_path, COMPONENTS, "cluster").tolist() == expected
    assert 50 < len(documents) - len(set(expected)) < 250, "some edited copies are caught, and some are not"


def test_a_table_of_clusters_that_is_given_up_is_closed(tmp_path: Path) -> None:
    """An open writer that is collected behind its closed file would print a traceback."""
    with (tmp_path / "clusters.parquet").open("wb") as file:
        with pytest.raises(RuntimeError, match="given up"), ClusterRows(file, wide=False) as rows:
            raise RuntimeError("given up")
        assert not rows._writer.is_open
