"""Fates and clusters against a brute-force twin; in memory or on disk, one worker or two, resumed or not: the same bytes."""

from __future__ import annotations

import dataclasses
import itertools
import json
import shutil
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import datasketch
import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from btlm_data.engine.local import LocalEngine
from btlm_data.engine.runner import run_step
from btlm_data.errors import BtlmError, ConfigError, DataError, SafetyStop
from btlm_data.formats import columns
from btlm_data.kernels import minhash
from btlm_data.recipe.models import DedupeSettings, Run
from btlm_data.stages import blocks as block_list
from btlm_data.stages import dedupe
from btlm_data.stages.blocks import Block
from btlm_data.stages.fates import Fate
from btlm_data.task import Counts, Step, Task
from tests.reference import clusters as reference
from tests.reference import minhash as reference_minhash
from tests.reference.clusters import Document

BANDS = 3
NUM_PERM = 8
TINY = 10_000  # bytes of memory: everything goes through many groups and partitions
SETTINGS = DedupeSettings(bands=BANDS, rows=2, num_perm=NUM_PERM, max_removed=1)


@dataclass
class Events:
    """Notes which tasks were not skipped; nobody wants to know more."""

    ran: list[str]

    def step_started(self, step: Step, todo: Sequence[Task], *_: object) -> None:
        self.ran.extend(f"{step.name} {task.id}" for task in todo)

    def step_moved(self, *_: object) -> None: ...
    def step_finished(self, *_: object) -> None: ...


@dataclass
class Context:
    """Runs steps under receipts, as the pipeline does; `ran` lists the tasks that were not skipped."""

    work_dir: Path
    workers: int = 1
    ran: list[str] = field(default_factory=list)
    before: Callable[[Step], None] = lambda step: None

    def step(self, step: Step) -> list[Counts]:
        self.before(step)
        with LocalEngine(self.workers) as engine:
            return run_step(step, self.work_dir, engine, Events(self.ran))


def write_blocks(work_dir: Path, documents: Sequence[Document], per_block: int = 7) -> list[Block]:
    """Lay documents down as the read stage would; a block holds one split, at most per_block documents."""
    stems: list[tuple[str, str, int]] = []
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
        stem = f"read/{len(stems):06d}-00000"
        sources = sorted({d.source for d in mine})
        docs: dict[str, npt.NDArray[Any]] = {
            "offset": np.arange(place, end, dtype=np.uint64),
            "line": np.arange(end - place, dtype=np.uint32),
            "file": np.zeros(end - place, np.uint16),
            "source": np.array([sources.index(d.source) for d in mine], np.uint16),
            "num_bytes": np.array([d.num_bytes for d in mine], np.uint32),
        }
        columns.write(work_dir / f"{stem}.docs", docs, {"sources": sources, "files": [f"file-{len(stems)}"]})
        exact = np.array([[mix(d.exact), d.exact] for d in mine], np.uint64)
        bands = np.array(
            [[mix(1000 * (b + 1) + key) for b, key in enumerate(d.bands)] for d in mine], np.uint64
        )
        signatures = np.array(
            [[d.bands[min(p // 2, BANDS - 1)] for p in range(NUM_PERM)] for d in mine], np.uint32
        )
        columns.write(work_dir / f"{stem}.sketch", {"exact": exact, "bands": bands, "signatures": signatures})
        stems.append((stem, documents[place].split, end - place))
        place = end
    return block_list.number(stems)


def mix(value: int) -> int:
    """Spread small numbers over 64 bits, so that partitions see all of them."""
    return (value + 1) * 0x9E3779B97F4A7C15 % 2**64


def run(
    work_dir: Path, blocks: list[Block], context: Context | None = None, memory: int = 10**9, **changes: Any
) -> list[str]:
    """Names of the fates."""
    context = context or Context(work_dir)
    how = Run(
        memory=memory * context.workers, workers=context.workers, accept_removal=changes.pop("accept", False)
    )
    path, *_ = dedupe.run(context, blocks, "lineage", SETTINGS.model_copy(update=changes), how)
    return [Fate(code).reason for code in columns.read(work_dir / path)["fate"]]


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
)
def test_fates_are_those_of_comparing_all_pairs(
    tmp_path_factory: pytest.TempPathFactory, documents: list[Document], keep: Any, holdout: bool, memory: int
) -> None:
    work_dir = tmp_path_factory.mktemp("work")
    blocks = write_blocks(work_dir, documents)
    found = run(work_dir, blocks, memory=memory, keep=keep, source_priority=("c", "a"), holdout=holdout)
    assert found == reference.fates(documents, keep, ("c", "a"), holdout)
    assert columns.read(work_dir / dedupe.CLUSTERS)["cluster"].tolist() == reference.clusters(
        documents, holdout
    )


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
    return {
        name: (work_dir / name).read_bytes()
        for name in (dedupe.FATES, dedupe.CLUSTERS, dedupe.CLUSTERS_PARQUET)
    }


def test_memory_and_workers_change_no_byte(tmp_path: Path) -> None:
    documents = some_documents()
    made = []
    for number, (memory, workers) in enumerate([(10**9, 1), (TINY, 1), (TINY, 2), (3000, 1)]):
        work_dir = tmp_path / str(number)
        blocks = write_blocks(work_dir, documents)
        context = Context(work_dir, workers)
        run(work_dir, blocks, context, memory)
        assert (len(context.ran) > 1) == (memory < 10**9)
        made.append(outputs(work_dir))
    assert made[1:] == made[:1] * 3


def test_memory_of_a_finished_run_may_change(tmp_path: Path) -> None:
    blocks = write_blocks(tmp_path, some_documents())
    run(tmp_path, blocks, memory=TINY)
    context = Context(tmp_path)
    run(tmp_path, blocks, context, memory=10**9)
    assert context.ran == []
    run(tmp_path, blocks, context, memory=3000)
    assert context.ran == []
    assert not list(tmp_path.glob("dedupe/*-split")), "intermediates are removed"
    run(tmp_path, blocks, context, memory=3000, keep="longest")
    assert "cluster all" in context.ran


class Killed(Exception):
    """What ends a run in a test."""


def test_killed_before_any_step_and_resumed_is_never_killed(tmp_path: Path) -> None:
    documents = some_documents()
    whole = tmp_path / "whole"
    context = Context(whole)
    run(whole, write_blocks(whole, documents), context, TINY)
    names = list(dict.fromkeys(task.rsplit(" ", 1)[0] for task in context.ran))
    assert names == ["split exact", "sort exact", "exact", "split bands", "sort bands", "cluster"]
    for name in names:
        work_dir = tmp_path / name
        blocks = write_blocks(work_dir, documents)

        def die(step: Step, name: str = name) -> None:
            if step.name == name:
                raise Killed

        with pytest.raises(Killed):
            run(work_dir, blocks, Context(work_dir, before=die), TINY)
        resumed = Context(work_dir)
        run(work_dir, blocks, resumed, TINY)
        assert outputs(work_dir) == outputs(whole)
        done = names[: names.index(name)]
        assert not [task for task in resumed.ran if task.rsplit(" ", 1)[0] in done], (
            "what was finished is not done again"
        )


def test_hot_keys_beyond_the_memory_are_one_cluster(tmp_path: Path) -> None:
    """Every document shares its first band with all others: one key is 100 times larger than a partition may be."""
    documents = [Document(i, (0, i + 10, i + 10)) for i in range(3000)]
    blocks = write_blocks(tmp_path, documents, per_block=100)
    found = run(tmp_path, blocks, memory=TINY)
    assert found == ["kept"] + ["near_duplicate"] * 2999


def test_clusters_parquet_lists_every_component_of_two_or_more(tmp_path: Path) -> None:
    documents = some_documents()
    blocks = write_blocks(tmp_path, documents)
    found = run(tmp_path, blocks)
    rows = pq.read_table(tmp_path / dedupe.CLUSTERS_PARQUET).to_pylist()
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
    context = Context(tmp_path)
    _, summary, *_ = dedupe.run(context, blocks, "lineage", SETTINGS, Run(workers=1))
    counts = Counts.from_json(json.loads((tmp_path / "receipts/cluster/all.json").read_text())["counts"])
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
        found = run(work_dir, blocks, memory=memory, verify=True, threshold=0.7)
        # 2 and 3 share a text's worth of values and 1 shares six of eight with both; 0 is like none of them but 1 (four of eight).
        assert found == ["kept", "kept", "near_duplicate", "near_duplicate"]
        assert (
            run(work_dir, blocks, memory=memory, verify=True, threshold=0.5)
            == ["kept"] + ["near_duplicate"] * 3
        )


def test_verification_counts_what_it_compared(tmp_path: Path) -> None:
    documents = [Document(0, (1, 10, 20)), Document(1, (1, 11, 21)), Document(2, (1, 11, 22))]
    _, summary, *_ = dedupe.run(
        Context(tmp_path),
        write_blocks(tmp_path, documents),
        "x",
        SETTINGS.model_copy(update={"verify": True, "threshold": 0.5}),
        Run(workers=1),
    )
    # In band 0: (0,1) no, (0,2) no, (1,2) yes; in band 1: (1,2) yes.
    assert summary["verified_pairs"] == {"compared": 4, "below_threshold": 2}


@pytest.mark.parametrize("verify", [False, True])
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


def test_too_many_documents_are_refused(tmp_path: Path) -> None:
    block = Block("read/000000-00000", "train", 0, 2**32)
    with pytest.raises(BtlmError, match="in parts, each with --dedupe-index"):
        dedupe.run(Context(tmp_path), [block], "x", SETTINGS, Run(workers=1))


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
    n = minhash.normalise(documents, np.frombuffer(b"".join(encoded), np.uint8), offsets)
    return minhash.exact_hashes(n), minhash.band_keys(minhash.signatures(n, scheme=scheme), 9, 13)


def write_texts(
    work_dir: Path, documents: Sequence[str], splits: Sequence[str], scheme: minhash.Scheme = "affine32"
) -> list[Block]:
    """A block per stretch of one split."""
    stems: list[tuple[str, str, int]] = []
    for split, group in itertools.groupby(range(len(documents)), key=lambda i: splits[i]):
        rows = list(group)
        exact, bands = sketch([documents[i] for i in rows], scheme)
        stem = f"read/{len(stems):06d}-00000"
        columns.write(work_dir / f"{stem}.sketch", {"exact": exact, "bands": bands})
        docs: dict[str, npt.NDArray[Any]] = {
            "offset": np.array(rows, np.uint64),
            "num_bytes": np.ones(len(rows), np.uint32),
        }
        docs |= {"source": np.zeros(len(rows), np.uint16), "file": np.zeros(len(rows), np.uint16)}
        columns.write(work_dir / f"{stem}.docs", docs, {"sources": ["a"], "files": ["f"]})
        stems.append((stem, split, len(rows)))
    return block_list.number(stems)


def test_planted_copies_are_found_and_nothing_else_goes(tmp_path: Path) -> None:
    documents, places = sample_documents()
    number = {(name, line): i for i, (name, line, _) in enumerate(places)}
    blocks = write_texts(tmp_path, documents, [split for _, _, split in places])
    path, *_ = dedupe.run(Context(tmp_path), blocks, "sample", DedupeSettings(), Run(workers=1))
    fate = [Fate(code) for code in columns.read(tmp_path / path)["fate"]]
    cluster = columns.read(tmp_path / dedupe.CLUSTERS)["cluster"]
    truth = json.loads((SAMPLE / "truth.json").read_text())

    slightly_edited: list[bool] = []
    for members in truth["clusters"]:
        here = {number[m["file"], m["line"]]: m for m in members}
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
    dedupe.run(
        Context(tmp_path), blocks, "legacy", DedupeSettings(scheme="legacy", max_removed=1), Run(workers=1)
    )
    assert columns.read(tmp_path / dedupe.CLUSTERS)["cluster"].tolist() == expected
    assert 50 < len(documents) - len(set(expected)) < 250, "some edited copies are caught, and some are not"
