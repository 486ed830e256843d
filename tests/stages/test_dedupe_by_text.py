"""Duplicates decided by their texts: whole runs against sets of strings in plain Python."""

from __future__ import annotations

import contextlib
import functools
import io
import json
import os
import random
import shutil
import unicodedata
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import zstandard
from click.testing import CliRunner

from btlm_data import pipeline, preparation
from btlm_data.cli import cli
from btlm_data.dedupe import compare, gates, groups, report
from btlm_data.engine.runner import Runner
from btlm_data.errors import ConfigError, DataError, InputError, SafetyStop
from btlm_data.formats import dataset, ledger
from btlm_data.progress import Lines
from btlm_data.recipe.load import load
from btlm_data.recipe.models import DedupeSettings
from btlm_data.sources.local import SAMPLE
from btlm_data.task import Step, TaskResult
from btlm_data.tokenizer import load_tokenizer
from tests.reference.shingles import features, jaccard
from tests.stages.runs import joined
from tests.tokenizer import makers


@pytest.fixture(autouse=True, scope="module")
def tokenizer_checked_once() -> Iterator[None]:
    """A tokenizer checks itself for a second whenever it is loaded; once is enough here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(preparation, "load_tokenizer", functools.lru_cache(load_tokenizer))
        patch.setattr(compare, "BATCH_BYTES", 4000)  # so that a group is compared in several pieces
        yield


def run(source: Path | str, out: Path, **options: Any) -> dict[str, Any]:
    """Prepare in this process; options by dotted key with `__` for the dot. Returns the summary of duplicates."""
    given = {"source.name": str(source), "run.out": str(out), "run.workers": 1, "seq_len": 128}
    given |= {"clean.min_chars": 0, "dedupe.max_removed": 1}
    given |= {key.replace("__", "."): value for key, value in options.items()}
    pipeline.prepare(load(None, {key: (value, "test") for key, value in given.items()}), Lines())
    summary = dataset.read_set(out).dedupe
    assert summary is not None
    assert ledger.imbalances(dataset.read_set(out).ledger) == []
    return summary


def removals(out: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = pq.read_table(out / "removals.parquet").to_pylist()
    return rows


def write(folder: Path, texts: list[str], name: str = "train.jsonl") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    lines = (json.dumps({"text": text, "meta": {"redpajama_set_name": "web"}}) for text in texts)
    (folder / name).write_text("".join(f"{line}\n" for line in lines))
    return folder


WORDS = [
    f"{a}{b}{c}"
    for a in ("ka", "lo", "mi", "né", "Su")
    for b in ("ra", "ti", "mo", "ß")
    for c in ("x", "day", "语")
]


def some_texts(count: int, seed: int) -> list[str]:
    """Originals, copies of them with up to a fifth of the words edited, copies of copies, and pages of one template."""
    rng = random.Random(seed)
    template = " ".join(rng.choices(WORDS, k=80))
    texts: list[str] = []
    while len(texts) < count:
        chance = rng.random()
        if chance < 0.4 or not texts:
            texts.append(" ".join(rng.choices(WORDS, k=rng.randrange(30, 120))))
        elif chance < 0.55:
            texts.append(template + " " + " ".join(rng.choices(WORDS, k=rng.randrange(5, 60))))
        elif chance < 0.65:
            texts.append(rng.choice(texts).upper() + " !")
        else:
            words = rng.choice(texts).split()
            for _ in range(rng.randrange(1, 2 + len(words) // 5)):
                words[rng.randrange(len(words))] = rng.choice(WORDS)
            texts.append(" ".join(words))
    return texts


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("keep", ["first", "longest"])
def test_documents_go_exactly_where_a_text_like_theirs_stays(tmp_path: Path, seed: int, keep: str) -> None:
    """With a row to a band nearly everything alike is nominated; buckets are small enough for all pairs."""
    texts = some_texts(60, seed)
    threshold = 0.7
    run(
        write(tmp_path / "in", texts),
        tmp_path / "out",
        dedupe__bands=64,
        dedupe__rows=2,
        dedupe__threshold=threshold,
        dedupe__keep=keep,
    )
    rows = removals(tmp_path / "out")
    sets = [features(text) for text in texts]
    gone = {row["document"]: row["kept_document"] for row in rows}
    for row in rows:
        a, b = sets[row["document"]], sets[row["kept_document"]]
        assert row["similarity"] == jaccard(a, b) >= threshold
        assert (row["containment"], row["kept_containment"]) == (len(a & b) / len(a), len(a & b) / len(b))
        assert row["kept_document"] not in gone, "whatever stands for a removed document stays"
        assert (row["line"], row["kept_line"]) == (row["document"], row["kept_document"])
        assert row["bytes"] == len(unicodedata.normalize("NFC", texts[row["document"]]).encode())
    stays = [i for i in range(len(texts)) if i not in gone]
    order = {i: (-len(texts[i].encode()) if keep == "longest" else 0, i) for i in range(len(texts))}
    unseen = [
        (i, j) for i in stays for j in stays if order[i] < order[j] and jaccard(sets[i], sets[j]) >= threshold
    ]
    assert not unseen, "two that stay are not alike: 64 bands of 2 rows miss no such pair here"
    assert 5 < len(gone) < 40


def test_a_chain_keeps_its_ends(tmp_path: Path) -> None:
    words = [f"word{i:04d}" for i in range(400)]
    texts = [" ".join(words[k : k + 300]) for k in (0, 30, 60)]
    where = {"dedupe.bands": 64, "dedupe.rows": 2, "dedupe.threshold": 0.75}
    options = {key.replace(".", "__"): value for key, value in where.items()}
    run(write(tmp_path / "in", texts), tmp_path / "text", **options)
    [row] = removals(tmp_path / "text")
    assert (row["document"], row["kept_document"], row["cluster_size"]) == (1, 0, 3)
    run(tmp_path / "in", tmp_path / "none", dedupe__verify="none", **options)
    assert [row["document"] for row in removals(tmp_path / "none")] == [1, 2]
    assert [row["similarity"] for row in removals(tmp_path / "none")] == [None, None]


def test_containment_removes_what_another_document_holds(tmp_path: Path) -> None:
    words = [f"word{i:04d}" for i in range(400)]
    texts = [" ".join(words), " ".join(words[:240])]
    options = {"dedupe__bands": 64, "dedupe__rows": 2}
    assert run(write(tmp_path / "in", texts), tmp_path / "jaccard", **options)["clusters"] == 1
    assert removals(tmp_path / "jaccard") == []
    run(tmp_path / "in", tmp_path / "containment", dedupe__similarity="containment", **options)
    [row] = removals(tmp_path / "containment")
    assert (row["document"], row["containment"]) == (1, 1.0)
    assert row["similarity"] < 0.7


def test_holdout_stays_and_train_goes_only_for_a_text_like_it(tmp_path: Path) -> None:
    words = [f"word{i:04d}" for i in range(500)]
    near, far = " ".join(words[:300]), " ".join(words[60:360])
    held = " ".join(words[5:305])
    folder = write(write(tmp_path / "in", [near, far, held.upper()]), [held], "validation.jsonl")
    run(folder, tmp_path / "out", dedupe__bands=64, dedupe__rows=2)
    found = {row["document"]: (row["reason"], row["kept_split"]) for row in removals(tmp_path / "out")}
    assert found == {
        0: ("near_duplicate_of_holdout", "validation"),
        2: ("duplicate_of_holdout", "validation"),
    }


# One outcome, however it is come by ---------------------------------------------------------------------------------


def contents(out: Path) -> dict[str, bytes]:
    """What must be the same every time."""
    names = ("clusters.parquet", "removals.parquet", "dropped.parquet", "train/documents.parquet")
    return {name: (out / name).read_bytes() for name in names}


@pytest.fixture(scope="module")
def sample_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("sample") / "out"
    run("sample", out)
    return out


@pytest.mark.parametrize(
    "options",
    [
        {"run__workers": 2},
        {"run__memory": 200_000},
        {"run__memory": 30_000, "run__workers": 2},
    ],
)
def test_workers_and_memory_change_no_byte(sample_run: Path, tmp_path: Path, options: dict[str, Any]) -> None:
    run("sample", tmp_path / "out", **options)
    assert contents(tmp_path / "out") == contents(sample_run)


@pytest.mark.parametrize("how", ["ranges", "wide"])
@pytest.mark.parametrize("options", [{"run__workers": 2}, {"run__memory": 200_000}])
def test_joining_in_ranges_changes_no_byte(
    sample_run: Path, tmp_path: Path, how: str, options: dict[str, Any]
) -> None:
    with joined(how):
        run("sample", tmp_path / "out", **options)
    found, expected = contents(tmp_path / "out"), contents(sample_run)
    if how == "wide":
        for name in ("clusters.parquet", "removals.parquet"):
            assert_same_but_wide(found.pop(name), expected.pop(name))
    assert found == expected


def assert_same_but_wide(wide: bytes, narrow: bytes) -> None:
    """The same table, but for ordinals of 64 bits."""
    found, expected = (pq.read_table(io.BytesIO(data)) for data in (wide, narrow))
    ordinals = [name for name in ("document", "kept_document", "cluster") if name in expected.column_names]
    assert [str(found.schema.field(name).type) for name in ordinals] == ["uint64"] * len(ordinals)
    assert found.cast(expected.schema).equals(expected)


def test_stopped_before_each_step_and_resumed_is_never_stopped(
    sample_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One work folder, stopped before each step of deduplication in turn, as a kill between two tasks leaves it."""
    run_step, stopped = Runner.run, list[str]()

    def stop_before_the_next(runner: Runner, step: Step) -> list[TaskResult]:
        if step.name.startswith("dedupe.") and step.name not in stopped:
            stopped.append(step.name)
            raise KeyboardInterrupt
        return run_step(runner, step)

    monkeypatch.setattr(Runner, "run", stop_before_the_next)
    for _ in range(20):
        with contextlib.suppress(KeyboardInterrupt):
            run("sample", tmp_path / "out")
            break
    assert stopped[-5:] == [
        "dedupe.compare",
        "dedupe.decide",
        "dedupe.fates",
        "dedupe.cluster",
        "dedupe.table",
    ]
    assert len(stopped) == 14
    assert contents(tmp_path / "out") == contents(sample_run)


@pytest.mark.parametrize(
    ("preset", "unit", "size", "bands", "rows"),
    [("fineweb", "words", 5, 14, 8), ("nemotron", "chars", 24, 20, 13), ("slimpajama", "chars", 13, 9, 13)],
)
def test_a_preset_from_its_curve_to_its_removals(
    tmp_path: Path, preset: str, unit: str, size: int, bands: int, rows: int
) -> None:
    """As published, components decide: near copies go, unlike texts stay. With texts compared, its own features count."""
    printed = CliRunner().invoke(cli, ["dedupe-curve", "--preset", preset]).output
    assert f"features of {size} {unit}, verify: none" in printed
    assert f"0.80   {1 - (1 - 0.8**rows) ** bands:.3f}" in printed
    rng = random.Random(9)
    originals = [" ".join(rng.choices(WORDS, k=600)) for _ in range(30)]
    copies = [text.replace(" ", "  ") for text in originals[:5]]  # normalised, the same
    copies += [f"{text} {rng.choice(WORDS)}" for text in originals[5:15]]
    options = {"dedupe__preset": preset}
    run(write(tmp_path / "in", originals + copies), tmp_path / "published", **options)
    gone = {row["document"]: row["kept_document"] for row in removals(tmp_path / "published")}
    assert gone == {30 + k: k for k in range(15)}
    run(tmp_path / "in", tmp_path / "text", dedupe__verify="text", **options)
    sets = [features(text, unit, size) for text in originals + copies]
    found = removals(tmp_path / "text")
    assert {row["document"]: row["kept_document"] for row in found} == gone
    for row in found:
        assert row["similarity"] == jaccard(sets[row["document"]], sets[row["kept_document"]])


def outcome(out: Path) -> list[tuple[Any, ...]]:
    """Removals without what only a tokenizer or an index changes."""
    return [(row["file"], row["line"], row["reason"], row["similarity"]) for row in removals(out)]


@pytest.mark.parametrize("maker", ["llama2", "word_level"])
def test_the_tokenizer_changes_nothing(sample_run: Path, tmp_path: Path, maker: str) -> None:
    """Texts that tokens do not give back are read from the source once more."""
    path = tmp_path / "tokenizer.json"
    getattr(makers, maker)().save(str(path))
    run("sample", tmp_path / "out", tokenizer__name=str(path), tokenizer__eos=_any_token(path))
    assert outcome(tmp_path / "out") == outcome(sample_run)
    counts = _receipt_counts(tmp_path / "out", "dedupe.members")
    assert sum(one["from_source"] for one in counts) > 50
    assert sum(one["from_tokens"] for one in counts) == 0
    assert sum(one["from_source"] for one in _receipt_counts(sample_run, "dedupe.members")) == 0


def _any_token(path: Path) -> str:
    config = json.loads(path.read_text())
    added = [token["content"] for token in config["added_tokens"]]
    return str(added[-1] if added else max(config["model"]["vocab"], key=config["model"]["vocab"].get))


def _receipt_counts(out: Path, step: str) -> list[dict[str, Any]]:
    folder = out / ".work" / "receipts" / step
    return [
        json.loads(path.read_text())["receipt"]["counts"]["extra"] for path in sorted(folder.glob("*.json"))
    ]


def test_a_changed_source_is_noticed_where_it_is_read_again(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    makers.llama2().save(str(path))
    text = " ".join(WORDS * 2)
    folder = write(tmp_path / "in", [text, text.replace("kara", "other", 1)])
    options = {"tokenizer__name": str(path), "tokenizer__eos": _any_token(path)}
    given = {"run__stop_after": "clean", **options}
    with pytest.raises(DataError, match=r"There is no .*dataset\.json"):
        run(folder, tmp_path / "out", **given)
    stamp = (folder / "train.jsonl").stat()
    data = (folder / "train.jsonl").read_bytes().replace(b"other", b"othre")
    (folder / "train.jsonl").write_bytes(data)
    os.utime(folder / "train.jsonl", ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    with pytest.raises(DataError, match=r"train.jsonl has changed since it was read: the document at offset"):
        run(folder, tmp_path / "out", **options)


def test_two_runs_with_an_index_between_remove_what_one_run_removes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The one run compares all in one group, the two runs in several."""
    texts = sample_texts()
    half = len(texts) // 2
    write(tmp_path / "both", texts[:half], "a.jsonl")
    write(tmp_path / "both", texts[half:], "b.jsonl")
    write(tmp_path / "1", texts[:half], "a.jsonl")
    write(tmp_path / "2", texts[half:], "b.jsonl")
    run(tmp_path / "both", tmp_path / "out")
    index = str(tmp_path / "index")
    monkeypatch.setattr(groups, "GROUP_BYTES", 20_000)
    for name in ("1", "2"):
        run(tmp_path / name, tmp_path / f"out-{name}", dedupe__index=index)
        assert len(list((tmp_path / f"out-{name}/.work/dedupe/compare").iterdir())) > 1
    whole = {(row["file"], row["line"]): row["similarity"] for row in removals(tmp_path / "out")}
    parts = [removals(tmp_path / f"out-{name}") for name in ("1", "2")]
    assert {(row["file"], row["line"]): row["similarity"] for rows in parts for row in rows} == whole
    in_index = [row for row in parts[1] if row["reason"] == "in_index"]
    assert len(in_index) > 10
    assert any(0.8 <= row["similarity"] < 1 for row in in_index)
    # Again, in a fresh folder, although the index now holds both.
    run(tmp_path / "2", tmp_path / "again", dedupe__index=index)
    assert removals(tmp_path / "again") == parts[1]


def test_an_index_without_texts_says_what_it_lacks(tmp_path: Path) -> None:
    texts = sample_texts()[:40]
    index = str(tmp_path / "index")
    run(write(tmp_path / "1", texts[:20]), tmp_path / "out-1", dedupe__index=index, dedupe__verify="none")
    with pytest.raises(ConfigError, match=r"kept no texts of its documents, so dedupe\.verify=text cannot"):
        run(write(tmp_path / "2", texts[20:]), tmp_path / "out-2", dedupe__index=index)


def sample_texts() -> list[str]:
    """Texts of the sample corpus's train files, in order."""
    found = []
    for path in sorted(SAMPLE.glob("train/**/*.zst")):
        for line in zstandard.ZstdDecompressor().stream_reader(path.read_bytes()).read().split(b"\n"):
            try:
                text = json.loads(line)["text"]
                text.encode()
            except (ValueError, KeyError, TypeError, AttributeError):
                continue
            found.append(text)
    return found


@pytest.mark.parametrize("verify", ["text", "none"])
def test_kept_documents_say_how_many_they_stand_for(tmp_path: Path, verify: str) -> None:
    texts = some_texts(60, 9)
    options = {"dedupe__bands": 32, "dedupe__rows": 4, "dedupe__verify": verify, "dedupe__threshold": 0.8}
    run(write(tmp_path / "in", texts), tmp_path / "out", **options)
    table = pq.read_table(tmp_path / "out/train/documents.parquet").to_pylist()
    kept_for = Counter(row["kept_line"] for row in removals(tmp_path / "out"))
    assert {row["line"]: row["copies"] for row in table} == {
        row["line"]: 1 + kept_for[row["line"]] for row in table
    }
    assert sum(row["copies"] for row in table) == len(texts)
    assert max(row["copies"] for row in table) > 2


# Presets ------------------------------------------------------------------------------------------------------------


def test_a_preset_stands_below_what_is_given() -> None:
    preset = DedupeSettings.model_validate({"preset": "slimpajama", "rows": 12})
    assert (preset.verify, preset.bands, preset.rows, preset.max_removed) == ("none", 9, 12, 0.8)
    assert DedupeSettings().verify == "text"
    again = DedupeSettings.model_validate(preset.model_dump())
    assert again == preset


# Gates --------------------------------------------------------------------------------------------------------------


def test_a_stop_shows_the_least_similar_pairs_and_one_source_is_accepted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gates, "MIN_DOCUMENTS", 2)
    words = [f"word{i:04d}" for i in range(300)]
    texts = [" ".join(words), " ".join(["another", *words[1:]]), " ".join([*words[:270], "end"])]
    folder = write(tmp_path / "in", texts)
    with pytest.raises(SafetyStop) as stop:
        run(folder, tmp_path / "out", dedupe__max_removed=0.5)
    message = str(stop.value)
    assert "% of the bytes of web, more than dedupe.max_removed = 50%" in message
    assert "The 2 least similar pairs" in message
    least = min(jaccard(features(texts[0]), features(text)) for text in texts[1:])
    assert f"similarity {least:.3f}: train.jsonl line 3, for train.jsonl line 1" in message
    assert "    another word0001 word0002" in message
    assert "--accept-removal-of web" in message
    assert f"btlm-data dedupe-report {tmp_path}/out/.work" in message
    asked = report.make(str(tmp_path / "out"), [0.95], [])
    assert {o.rule.threshold: o.removed for o in asked.outcomes if o.rule.threshold}[0.95]["web"][0] == 1
    run(folder, tmp_path / "out", dedupe__max_removed=0.5, run__accept_removal_of=["web"])
    assert len(removals(tmp_path / "out")) == 2


def test_an_expected_range_stops_on_both_sides(tmp_path: Path) -> None:
    words = " ".join(f"word{i:04d}" for i in range(300))
    folder = write(tmp_path / "in", [words, words, "something else " * 40])
    for between in ([0.7, 0.9], [0.0, 0.3]):
        with pytest.raises(SafetyStop, match=r"dedupe\.expected_removed says"):
            run(folder, tmp_path / "out", dedupe__expected_removed={"web": between})
    run(folder, tmp_path / "out", dedupe__expected_removed={"web": [0.3, 0.6]})
    with pytest.raises(
        ConfigError, match=r'dedupe\.expected_removed names the source "wep".*Did you mean "web"'
    ):
        run(folder, tmp_path / "other", dedupe__expected_removed={"wep": [0.0, 1.0]})


def test_a_component_that_takes_much_of_a_source_stops(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gates, "FEW", 3)
    words = " ".join(f"word{i:04d}" for i in range(60))
    others = [" ".join(f"other{i:02d}{k:02d}" for k in range(60)) for i in range(20)]
    folder = write(tmp_path / "in", [words] * 5 + others)
    with pytest.raises(SafetyStop, match=r"One component .* would take 16\.0% of the documents of web"):
        run(folder, tmp_path / "out")
    run(folder, tmp_path / "out", dedupe__max_component=0.2)


def test_a_run_that_brings_nothing_new_says_so(tmp_path: Path) -> None:
    """What an index has already is no failure of the program."""
    corpus = write(tmp_path / "in", [" ".join(random.Random(n).choices(WORDS, k=300)) for n in range(20)])
    index = {"dedupe__index": str(tmp_path / "index")}
    run(corpus, tmp_path / "first", **index)
    shutil.copytree(corpus, tmp_path / "again")
    with (tmp_path / "again/train.jsonl").open("a") as file:
        file.write((tmp_path / "again/train.jsonl").read_text().splitlines()[0] + "\n")
    with pytest.raises(InputError, match=r"21 x in_index\. The index .*index has all of them"):
        run(tmp_path / "again", tmp_path / "second", **index)
