from __future__ import annotations

import functools
import itertools
import json
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from btlm_data import pipeline, preparation
from btlm_data.errors import DataError
from btlm_data.formats import dataset, input_digest, ledger
from btlm_data.output_folder import OutputFolder
from btlm_data.progress import Lines
from btlm_data.recipe.load import load
from btlm_data.sources.local import SAMPLE
from btlm_data.stages import file_ranges, read, shard, shuffle
from btlm_data.task import Step, Task
from btlm_data.tokenizer import load_tokenizer
from tests.reference import documents as reference
from tests.reference import stream as plain
from tests.strategies import corpus_line, texts

SPLITS = ("train", "validation", "test")
Rows = npt.NDArray[Any]


@pytest.fixture(autouse=True, scope="module")
def tokenizer_checked_once() -> Iterator[None]:
    """A tokenizer checks itself for a second whenever it is loaded; once is enough here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(preparation, "load_tokenizer", functools.lru_cache(load_tokenizer))
        yield


def run(source: Path | str, out: Path, **options: Any) -> pipeline.Prepared:
    """Prepare in this process, without deduplication; options by dotted key with `__` for the dot."""
    given = {"source.name": str(source), "run.out": str(out), "run.workers": 1, "dedupe.method": "none"}
    given |= {key.replace("__", "."): value for key, value in options.items()}
    return pipeline.prepare(load(None, {key: (value, "test") for key, value in given.items()}), Lines())


def rows(out: Path, split: str = "train") -> Rows:
    """All shards of a split, one after another."""
    parts = []
    for path in sorted((out / split).glob("*.h5")):
        with h5py.File(path) as file:
            parts.append(file["data"][:])
    return np.concatenate(parts)


def stream(out: Path, split: str = "train") -> Rows:
    """The token stream, from samples in stream order or from a corpus."""
    data = rows(out, split)
    if data.ndim == 1:
        return data
    real = data[:, 1] == 1
    last = data[-1, 2][data[-1, 1] == 1][-1]
    return np.append(data[:, 0][real], last)


def contents(out: Path) -> dict[str, bytes]:
    """Every file of a dataset that must be the same every time."""
    return {
        path.relative_to(out).as_posix(): path.read_bytes()
        for path in out.rglob("*")
        if path.is_file() and ".work" not in path.relative_to(out).parts and path.name != "provenance.json"
    }


def assert_balanced(out: Path) -> None:
    entries = json.loads((out / "dataset.json").read_text())["ledger"]
    assert {entry["stage"] for entry in entries} == set(ledger.STAGES)
    assert ledger.imbalances(dataset.read_set(out).ledger) == []


def write(path: Path, documents: list[str]) -> Path:
    path.write_bytes(b"".join(map(corpus_line, documents)))
    return path


@functools.cache
def sample_texts(split: str) -> list[str]:
    """Cleaned texts of the sample corpus in source order, by the plain reader."""
    found: list[str] = []
    for path in sorted(
        (SAMPLE / split).rglob("*.jsonl.zst"), key=lambda path: path.relative_to(SAMPLE).as_posix()
    ):
        with path.open("rb") as raw:
            data = zstandard.ZstdDecompressor().stream_reader(raw, read_across_frames=True).read()
        found += [record.text for record in reference.read(data) if isinstance(record, reference.Document)]
    return plain.cleaned(found)


# Token for token ---------------------------------------------------------------------------------------------------


def test_the_sample_corpus_gives_the_stream_of_hugging_face_tokenizers(tmp_path: Path) -> None:
    run("sample", tmp_path / "s", shuffle="none", seq_len=["2048", "100"], shards__samples_per_file=300)
    run("sample", tmp_path / "c", shuffle="none", format="corpus")
    held = [text for split in ("validation", "test") for text in sample_texts(split)]
    for split in SPLITS:
        chosen = plain.without(sample_texts(split), held) if split == "train" else sample_texts(split)
        expected = plain.token_stream(chosen)
        assert np.array_equal(stream(tmp_path / "c", split), expected)
        for length in (2048, 100):
            assert np.array_equal(rows(tmp_path / f"s/msl{length}", split), plain.samples(expected, length))
    assert_balanced(tmp_path / "c")
    assert_balanced(tmp_path / "s/msl100")


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    documents=st.lists(texts, min_size=1, max_size=30),
    length=st.integers(1, 70),
    per_file=st.integers(1, 40),
    tail=st.sampled_from(["pad", "drop"]),
    form=st.sampled_from(["sample", "corpus"]),
)
def test_random_documents_give_the_stream_of_hugging_face_tokenizers(
    tmp_path_factory: pytest.TempPathFactory,
    documents: list[str],
    length: int,
    per_file: int,
    tail: str,
    form: str,
) -> None:
    folder = tmp_path_factory.mktemp("run")
    expected = plain.token_stream(plain.cleaned(documents, 0))
    source = write(folder / "a.jsonl", documents)
    run(
        source,
        folder / "out",
        shuffle="none",
        format=form,
        seq_len=length,
        tail=tail,
        clean__min_chars=0,
        shards__samples_per_file=per_file,
    )
    wanted = expected if form == "corpus" else plain.samples(expected, length, tail)
    if form == "corpus" and len(expected) < 2:
        wanted = expected[:0]
    if len(wanted):
        found = rows(folder / "out")
        assert np.array_equal(found, wanted)
        sizes = [h5py.File(path)["data"].shape[0] for path in sorted((folder / "out/train").glob("*.h5"))]
        assert set(sizes[:-1]) <= {per_file * (length if form == "corpus" else 1)}
    else:
        assert not list((folder / "out/train").glob("*.h5"))
    assert_balanced(folder / "out")
    shutil.rmtree(folder)


def lengths_corpus(seed: int) -> list[str]:
    """Documents of 0 to 100,000 tokens, each unlike every other, around powers of two among them."""
    chance = np.random.default_rng(seed)
    lengths = [
        0,
        1,
        2,
        63,
        64,
        65,
        127,
        128,
        129,
        4095,
        4096,
        4097,
        int(chance.integers(5_000, 100_000)),
        *chance.integers(0, 300, 60).tolist(),
    ]
    return [
        (f" {number}" * length)[: max(0, length * 5)]
        for number, length in zip(chance.permutation(10**3), lengths, strict=False)
    ]


@pytest.mark.parametrize(
    ("length", "shuffle", "tail", "per_file", "seed"),
    [(1, "samples", "pad", 5000, 0), (64, "samples", "pad", 37, 1), (128, "documents", "drop", 100, 2), (999, "none", "drop", 7, 3), (9000, "samples", "drop", 1, 4), (2048, "samples", "pad", 8192, 5)],
)  # fmt: skip
def test_what_is_read_back_is_what_was_put_in(
    tmp_path: Path, length: int, shuffle: str, tail: str, per_file: int, seed: int
) -> None:
    documents = lengths_corpus(seed)
    source = write(tmp_path / "a.jsonl", documents)
    options = {
        "clean__min_chars": 0,
        "seq_len": length,
        "tail": tail,
        "seed": seed,
        "shards__samples_per_file": per_file,
    }
    run(source, tmp_path / "out", shuffle=shuffle, **options)
    run(
        source,
        tmp_path / "corpus",
        **{**options, "shuffle": "none" if shuffle == "none" else "documents", "format": "corpus"},
    )
    tokens = stream(tmp_path / "corpus")
    table = pq.read_table(tmp_path / "corpus/train/documents.parquet")
    places = list(
        zip(
            table["stream_offset"].to_pylist(),
            table["tokens"].to_pylist(),
            table["line"].to_pylist(),
            strict=True,
        )
    )
    assert sorted(line for _, _, line in places) == list(range(len(documents)))
    assert [start for start, _, _ in places] == list(
        itertools.accumulate([0, *(count + 1 for _, count, _ in places[:-1])])
    )
    for start, count, line in places:
        assert plain.tokenizer().decode(tokens[start : start + count].tolist()) == documents[line]
        assert tokens[start + count] == plain.EOS
    expected = plain.samples(tokens.astype(np.int64), length, tail)
    found = rows(tmp_path / "out")
    if shuffle == "samples":
        assert Counter(row.tobytes() for row in found) == Counter(row.tobytes() for row in expected)
    else:
        assert np.array_equal(found, expected)
    assert_balanced(tmp_path / "out")


# The same bytes every time -----------------------------------------------------------------------------------------


def test_one_two_and_three_workers_give_the_same_bytes(tmp_path: Path) -> None:
    for workers in (1, 2, 3):
        run(
            "sample",
            tmp_path / str(workers),
            run__workers=workers,
            seq_len=["256:0.5", "1024:0.3"],
            shards__samples_per_file=200,
        )
    expected = contents(tmp_path / "1")
    assert any(name.endswith("data-00001.h5") for name in expected)
    assert contents(tmp_path / "2") == expected
    assert contents(tmp_path / "3") == expected


def test_sizes_of_blocks_parts_buckets_and_groups_change_no_shard(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write(tmp_path / "a.jsonl", [f"document {i} " + "word " * (i % 90) for i in range(800)])
    options: dict[str, Any] = {"clean__min_chars": 0, "seq_len": 128, "shards__samples_per_file": 50}
    run(source, tmp_path / "whole", **options)
    monkeypatch.setattr(file_ranges, "RANGE_BYTES", 50_000)
    monkeypatch.setattr(input_digest, "STRETCH_BYTES", 50_000)
    monkeypatch.setattr(read, "records", functools.partial(read.records, block_bytes=9_000))
    monkeypatch.setenv("BTLM_SCATTER", "1")
    monkeypatch.setattr(shuffle, "BUCKET_BYTES", 30_000)
    monkeypatch.setattr(shuffle, "GROUP_DOCUMENTS", 150)
    run(source, tmp_path / "pieces", run__memory=100_000, **options)
    assert len(list((tmp_path / "pieces/.work/read").glob("*.docs"))) > 15
    assert len(list((tmp_path / "pieces/.work/shuffle/sort").iterdir())) > 3
    assert len(list((tmp_path / "pieces/.work/receipts/pack.pieces").glob("*.json"))) > 2
    whole, pieces = contents(tmp_path / "whole"), contents(tmp_path / "pieces")
    assert {name for name in whole if whole[name] != pieces[name]} <= {
        "train/documents.parquet",
        "dropped.parquet",
        "dataset.json",
    }
    for table in ("train/documents.parquet", "dropped.parquet"):
        one, other = (pq.read_table(tmp_path / name / table).to_pylist() for name in ("whole", "pieces"))
        assert one == other


STAGES = ["acquire", "clean", "dedupe", "holdout", "tokenize", "shuffle", "pack", "shard"]


def test_stopping_after_each_stage_and_going_on_changes_nothing(tmp_path: Path) -> None:
    run("sample", tmp_path / "whole", seq_len=512)
    for stage in STAGES:
        prepared = run("sample", tmp_path / "stopped", seq_len=512, run__stop_after=stage)
        if stage != "shard":
            assert not prepared.complete
            assert not (tmp_path / "stopped/dataset.json").exists()
    run("sample", tmp_path / "stopped", seq_len=512)
    assert contents(tmp_path / "stopped") == contents(tmp_path / "whole")


def test_a_run_that_stops_after_dedupe_says_what_went(tmp_path: Path) -> None:
    whole = run("sample", tmp_path / "whole", seq_len=512, dedupe__method="exact")
    for stage in ("dedupe", "holdout", "tokenize"):
        stopped = run(
            "sample", tmp_path / "stopped", seq_len=512, dedupe__method="exact", run__stop_after=stage
        )
        assert stopped.stages["dedupe"].cells == whole.stages["dedupe"].cells


def receipts(out: Path) -> dict[str, set[int]]:
    """Modification times of the receipts of each step."""
    found: dict[str, set[int]] = {}
    for path in (out / ".work/receipts").rglob("*.json"):
        found.setdefault(path.parent.name, set()).add(path.stat().st_mtime_ns)
    return found


@pytest.mark.parametrize(
    ("change", "redone"),
    [
        ({"shards__compression": "none"}, {"shard.write"}),
        ({"seq_len": 300}, {"shard.write"}),
        ({"tail": "drop"}, {"shard.write"}),
        ({"shuffle": "documents"}, {"shard.write"}),
        (
            {"seed": 5},
            {
                "shuffle.scatter",
                "shuffle.sort",
                "shard.write",
                "shard.documents",
            },
        ),
        (
            {"shuffle": "none"},
            {
                "shuffle.scatter",
                "shuffle.sort",
                "shard.write",
                "shard.documents",
            },
        ),
        ({"format": "corpus", "shuffle": "documents"}, {"shard.write"}),
        (
            {"clean__min_chars": 300},
            {
                "read",
                "acquire.rejects",
                "acquire.listed",
                "holdout.draw",
                "holdout.hashes",
                "holdout.equal",
                "shuffle.scatter",
                "shuffle.sort",
                "shard.write",
                "shard.documents",
                "shard.dropped",
            },
        ),
        ({"run__workers": 2}, set()),
    ],
    ids=lambda value: next(iter(value), "nothing") if isinstance(value, dict) else "",
)
def test_changing_an_option_redoes_only_what_depends_on_it(
    tmp_path: Path, base: Path, change: dict[str, Any], redone: set[str]
) -> None:
    out = tmp_path / "out"
    shutil.copytree(base, out)
    before = receipts(out)
    run("sample", out, **{"seq_len": 512, "shards__samples_per_file": 500, "run__overwrite": True, **change})
    after = receipts(out)
    assert {step for step in after if not after[step] <= before.get(step, set())} == redone


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("base") / "out"
    run("sample", out, seq_len=512, shards__samples_per_file=500)
    return out


def test_shuffling_by_scattering_gives_the_same_bytes_as_in_memory(
    tmp_path: Path, base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BTLM_SCATTER", "1")
    run("sample", tmp_path / "out", seq_len=512, shards__samples_per_file=500, run__memory=1_000_000)
    assert "pack.pieces" in receipts(tmp_path / "out")
    assert "pack.pieces" not in receipts(base)
    assert contents(tmp_path / "out") == contents(base)


def test_losing_a_shard_or_a_table_brings_it_back(tmp_path: Path, base: Path) -> None:
    out = tmp_path / "out"
    shutil.copytree(base, out)
    for lost in ("train/data-00001.h5", "validation/documents.parquet"):
        (out / lost).unlink()
        run("sample", out, seq_len=512, shards__samples_per_file=500)
        assert contents(out) == contents(base)
    with (out / "train/data-00000.h5").open("ab") as file:
        file.write(b"more")
    run("sample", out, seq_len=512, shards__samples_per_file=500)
    assert contents(out) == contents(base)


def test_what_one_process_puts_together_is_begun_before_the_shards(tmp_path: Path) -> None:
    started: list[Step] = []

    class Events(Lines):
        def step_started(self, step: Step, todo: Sequence[Task], done: Sequence[Task]) -> None:
            started.append(step)

    chosen = {"source__name": "sample", "seq_len": 512, "shards__samples_per_file": 500}
    overrides = {
        key.replace("__", "."): (value, "test")
        for key, value in {**chosen, "run__out": str(tmp_path / "out"), "run__workers": 1}.items()
    }
    pipeline.prepare(load(None, overrides), Events())
    names = [name for task in started[-1].tasks for _, name in task.outputs]
    are_shards = [name.endswith(".h5") for name in names]
    assert sum(are_shards) > 1
    assert are_shards == sorted(are_shards)
    described = dataset.read_set(tmp_path / "out")
    assert sorted(names) == sorted(file.name for file in described.stored())


def test_the_recorded_configuration_repeats_the_run(tmp_path: Path, base: Path) -> None:
    recipe = load(
        base / "dataset.json", {"run.out": (str(tmp_path / "again"), "test"), "run.workers": (1, "test")}
    )
    pipeline.prepare(recipe, Lines())
    assert contents(tmp_path / "again") == contents(base)


# Order, sets, mixes, holdout ---------------------------------------------------------------------------------------


def order(out: Path, split: str = "train") -> list[tuple[str, int]]:
    table = pq.read_table(out / split / "documents.parquet")
    return list(zip(table["file"].to_pylist(), table["line"].to_pylist(), strict=True))


def numbered(folder: Path, count: int = 400) -> Path:
    return write(
        folder / "a.jsonl", [f"This is document number {i}; " + f"{i} " * (i % 13) for i in range(count)]
    )


def test_shuffles_are_permutations_and_seeds_matter(tmp_path: Path) -> None:
    source = numbered(tmp_path)
    orders: dict[str, dict[str, Any]] = {
        "none": {"shuffle": "none"},
        "a": {"seed": 1},
        "b": {"seed": 2},
        "d": {"seed": 1, "shuffle": "documents"},
    }
    for name, options in orders.items():
        run(source, tmp_path / name, clean__min_chars=0, seq_len=16, **options)
    assert order(tmp_path / "none") == [("a.jsonl", i) for i in range(400)]
    assert sorted(order(tmp_path / "a")) == sorted(order(tmp_path / "b")) == order(tmp_path / "none")
    assert order(tmp_path / "a") == order(tmp_path / "d")
    assert order(tmp_path / "a") not in (order(tmp_path / "b"), order(tmp_path / "none"))
    moved = np.array([line for _, line in order(tmp_path / "a")])
    assert abs(np.corrcoef(moved, np.arange(400))[0, 1]) < 0.2
    shuffled, straight = rows(tmp_path / "a"), rows(tmp_path / "d")
    assert not np.array_equal(shuffled, straight)
    assert Counter(map(np.ndarray.tobytes, shuffled)) == Counter(map(np.ndarray.tobytes, straight))


def test_sets_with_shares_are_disjoint_and_cover_what_they_should(tmp_path: Path) -> None:
    source = numbered(tmp_path, 2000)
    run(source, tmp_path / "out", clean__min_chars=0, seq_len=["32:0.75", "64:0.25"])
    parts = [{line for _, line in order(tmp_path / f"out/msl{length}")} for length in (32, 64)]
    assert not parts[0] & parts[1]
    assert parts[0] | parts[1] == set(range(2000))
    assert abs(len(parts[0]) - 1500) < 100
    assert_balanced(tmp_path / "out/msl32")
    run(source, tmp_path / "less", clean__min_chars=0, seq_len=["32:0.5", "64:0.25"])
    parts = [{line for _, line in order(tmp_path / f"less/msl{length}")} for length in (32, 64)]
    assert not parts[0] & parts[1]
    assert abs(len(parts[0] | parts[1]) - 1500) < 100
    assert_balanced(tmp_path / "less/msl64")


def test_a_mix_repeats_and_leaves_out_whole_documents(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"".join(corpus_line(f"text {i} of its source", "ABC"[i % 3]) for i in range(1500)))
    run(path, tmp_path / "out", clean__min_chars=0, seq_len=16, mix={"A": 2.5, "B": 0})
    counts = Counter(line for _, line in order(tmp_path / "out"))
    assert {counts[i] for i in range(0, 1500, 3)} == {2, 3}
    assert abs(sum(counts[i] for i in range(0, 1500, 3)) - 1250) < 60
    assert {counts[i] for i in range(1, 1500, 3)} == {0}
    assert {counts[i] for i in range(2, 1500, 3)} == {1}
    assert_balanced(tmp_path / "out")


def texts_of(out: Path, split: str) -> list[str]:
    tokens = stream(out, split)
    table = pq.read_table(out / split / "documents.parquet")
    return [
        plain.tokenizer().decode(tokens[start : start + count].tolist())
        for start, count in zip(table["stream_offset"].to_pylist(), table["tokens"].to_pylist(), strict=True)
    ]


def test_no_train_document_equals_a_drawn_holdout_document(tmp_path: Path) -> None:
    documents = [f"Text number {i % 300} of three hundred, some of them twice." for i in range(500)]
    source = write(tmp_path / "a.jsonl", documents)
    run(
        source,
        tmp_path / "out",
        clean__min_chars=0,
        format="corpus",
        shuffle="documents",
        holdout__fraction=0.2,
        holdout__test_fraction=0.1,
    )
    found = {split: texts_of(tmp_path / "out", split) for split in SPLITS}
    assert all(found.values())
    assert not set(found["train"]) & {*found["validation"], *found["test"]}
    assert sorted(itertools.chain(*found.values())) == sorted(documents)  # equal texts are drawn together
    assert_balanced(tmp_path / "out")


def test_the_sources_own_holdout_is_kept_and_train_loses_what_equals_it(tmp_path: Path) -> None:
    source = tmp_path / "in"
    for split, numbers in {"train": [0, 1, 2, 3, 1], "validation": [1, 9], "test": [3]}.items():
        (source / split).mkdir(parents=True)
        write(source / split / "a.jsonl", [f"Text number {i}." for i in numbers])
    run(source, tmp_path / "out", clean__min_chars=0, seq_len=4, holdout__fraction=0.4)
    assert [line for _, line in sorted(order(tmp_path / "out"))] == [0, 2]
    assert len(order(tmp_path / "out", "validation")) == 2
    entries = json.loads((tmp_path / "out/dataset.json").read_text())["ledger"]
    assert [
        e["dropped"]["equals_holdout"]["documents"]
        for e in entries
        if e["stage"] == "holdout" and e["dropped"]
    ] == [3]


def test_every_document_is_found_in_the_stream_at_its_place(tmp_path: Path, base: Path) -> None:
    run("sample", tmp_path / "out", format="corpus", shuffle="documents")
    for split in SPLITS:
        tokens = stream(tmp_path / "out", split)
        table = pq.read_table(tmp_path / "out" / split / "documents.parquet").to_pylist()
        assert (
            len(table)
            == json.loads((tmp_path / "out/dataset.json").read_text())["splits"][split]["documents"]
        )
        for row in table[::7]:
            data = _sample_file(row["file"])
            record = json.loads(data[row["offset"] :].split(b"\n", 1)[0])
            assert data[: row["offset"]].count(b"\n") == row["line"]
            (text,) = plain.cleaned([record["text"]])
            assert (len(text.encode()), record["meta"]["redpajama_set_name"]) == (row["bytes"], row["source"])
            found = tokens[row["stream_offset"] : row["stream_offset"] + row["tokens"] + 1]
            assert np.array_equal(found, plain.token_stream([text]))


@functools.cache
def _sample_file(name: str) -> bytes:
    with (SAMPLE / name).open("rb") as raw:
        return zstandard.ZstdDecompressor().stream_reader(raw, read_across_frames=True).read()


@pytest.mark.parametrize("limit", [1, 37, 10**6])
def test_a_limit_takes_the_first_records_of_each_split(tmp_path: Path, limit: int) -> None:
    run("sample", tmp_path / "out", seq_len=64, source__limit=limit, clean__min_chars=0)
    entries = json.loads((tmp_path / "out/dataset.json").read_text())["ledger"]
    came = Counter[str]()
    for entry in entries:
        if entry["stage"] == "acquire":
            came[entry["split"]] += entry["in"]["documents"]
    everything = {split: sum(len(reference.read(data)) for data in _sample_files(split)) for split in SPLITS}
    assert came == {split: min(limit, everything[split]) for split in SPLITS}


def _sample_files(split: str) -> Iterator[bytes]:
    for path in (SAMPLE / split).rglob("*.zst"):
        yield _sample_file(path.relative_to(SAMPLE).as_posix())


def test_a_run_killed_behind_its_dataset_json_is_finished_by_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        pass

    def killed(self: Any) -> None:
        raise Killed

    (tmp_path / "a.jsonl").write_bytes(corpus_line("some text that is long enough " * 20))
    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr(OutputFolder, "finish", killed)
        with pytest.raises(Killed):
            run(tmp_path / "a.jsonl", out, seq_len=4)
    assert (out / "preparing.json").exists()
    assert run(tmp_path / "a.jsonl", out, seq_len=4).already_done
    assert not (out / "preparing.json").exists()


@pytest.mark.parametrize("name", ["clusters.parquet", "rejects.jsonl", "examples.jsonl"])
def test_a_file_that_is_damaged_before_it_is_copied_is_not_part_of_a_dataset(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    lines = [corpus_line("the same long text, twice " * 5)] * 2 + [b"{broken\n", corpus_line("short")]
    (tmp_path / "a.jsonl").write_bytes(b"".join(lines))
    options = {"seq_len": 4, "dedupe__method": "exact", "clean__min_chars": 20, "source__max_rejected": 1.0}
    options["dedupe__max_removed"] = 1.0
    run(tmp_path / "a.jsonl", tmp_path / "sound", **options)
    from btlm_data import finish

    write_files = finish._write_files

    def damaging(p: Any) -> Any:
        [path] = (tmp_path / "out/.work").rglob(name)
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
        return write_files(p)

    with monkeypatch.context() as patch:
        patch.setattr(finish, "_write_files", damaging)
        with pytest.raises(DataError, match=f"{name} is damaged"):
            run(tmp_path / "a.jsonl", tmp_path / "out", **options)
    assert not (tmp_path / "out" / name).exists()
    run(tmp_path / "a.jsonl", tmp_path / "out", **options)
    assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "sound" / name).read_bytes()


def test_what_a_worker_that_died_was_writing_is_removed_at_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.jsonl").write_bytes(corpus_line("some text that is long enough " * 20))
    out = tmp_path / "out"
    write = shard.work

    def dying(*args: Any) -> Any:
        for folder in (out / "train", out / ".work/shard"):
            folder.mkdir(parents=True, exist_ok=True)
            (folder / ".data-00000.h5.1-00.btlm-tmp").write_bytes(b"half")
        return write(*args)

    monkeypatch.setattr(shard, "work", dying)
    run(tmp_path / "a.jsonl", out, seq_len=4)
    assert list(out.rglob(".*.btlm-tmp")) == []
