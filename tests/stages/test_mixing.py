"""A mix by the number of copies that deduplication removed, beside one by sources, against a plain computation."""

from __future__ import annotations

import json
import random
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from btlm_data import seeding
from btlm_data.formats import dataset, ledger
from btlm_data.mix_plan import Mixing
from btlm_data.recipe.mix import MixSettings
from btlm_data.recipe.models import Settings
from tests.stages.runs import prepare

SOURCES = ("Web", "Books")
BY_COPIES = {"1": 0.5, "2-5": 2.5, "6-": 3.0}


def corpus(folder: Path, seed: int = 0, documents: int = 60) -> Path:
    """Texts with 1 to 9 exact copies each, shuffled, in two files."""
    draw = random.Random(seed)
    lines = []
    for number in range(documents):
        text = " ".join(f"word{draw.randrange(10_000)}" for _ in range(60))
        for _ in range(draw.choice([1, 1, 1, 2, 3, 5, 6, 9])):
            record = {"text": text, "meta": {"redpajama_set_name": SOURCES[number % 2]}}
            lines.append(json.dumps(record) + "\n")
    draw.shuffle(lines)
    folder.mkdir()
    for part in range(2):
        (folder / f"{part}.jsonl").write_text("".join(lines[part::2]))
    return folder


def made(source: Path, out: Path, **options: Any) -> Path:
    options = {"seq_len": 64, "dedupe__max_removed": 1, "mix": {"by_copies": BY_COPIES}, **options}
    assert prepare(source, out, **options).complete
    return out


def documents(out: Path, split: str = "train") -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = pq.read_table(out / split / dataset.DOCUMENTS).to_pylist()
    return rows


def plain_epochs(copies: int, by_copies: dict[str, float]) -> float:
    for key, epochs in by_copies.items():
        low, dash, high = key.partition("-")
        if int(low) <= copies <= (int(high) if high else (10**9 if dash else int(low))):
            return epochs
    return 1.0


def expected(row: dict[str, Any], mix: dict[str, Any], seed: int = 0) -> int:
    epochs = mix.get(row["source"], 1.0) * plain_epochs(row["copies"], mix["by_copies"])
    key = seeding.document_keys(row["file"], np.array([row["offset"]], np.uint64))
    return int(epochs) + int(float(seeding.unit_interval(key, seed, "mix")[0]) < epochs - int(epochs))


@pytest.mark.parametrize("options", [
    {},
    {"dedupe__method": "exact", "seed": 7, "mix": {"Books": 0.5, "Web": 2.0, "by_copies": BY_COPIES}},
    {"holdout__fraction": 0.2, "mix": {"by_copies": {"2-": 4.0}}, "seq_len": ["64:0.5", "32:0.5"]},
])  # fmt: skip
def test_every_document_is_seen_as_often_as_its_copies_and_its_source_say(
    tmp_path: Path, options: dict[str, Any]
) -> None:
    out = made(corpus(tmp_path / "in"), tmp_path / "out", **options)
    mix = options.get("mix", {"by_copies": BY_COPIES})
    folders = [out] if (out / "train").exists() else [out / "msl64", out / "msl32"]
    whole = made(tmp_path / "in", tmp_path / "whole", **{**options, "seq_len": 64, "mix": {}})
    for row in documents(whole):
        assert row["copies"] == Counter(text_of(tmp_path / "in"))[text_at(tmp_path / "in", row)]
    want = {(r["file"], r["offset"]): expected(r, mix, options.get("seed", 0)) for r in documents(whole)}
    seen = Counter((row["file"], row["offset"]) for folder in folders for row in documents(folder))
    assert seen == Counter({place: times for place, times in want.items() if times})
    for folder in folders:
        manifest = dataset.read_set(folder)
        assert ledger.imbalances(manifest.ledger) == []
        assert manifest.configuration["mix"] == mix
        counted: Counter[tuple[str, str]] = Counter()
        left_out: Counter[str] = Counter()
        for entry in manifest.rows("shuffle"):
            counted.update({(entry.source, reason): a.documents for reason, a in entry.added.items()})
            left_out[entry.split] += entry.dropped.get("left_out_by_mix", ledger.Amounts()).documents
        by_range: Counter[tuple[str, str]] = Counter()
        times: Counter[tuple[str, int]] = Counter()
        for row in documents(folder):
            times[row["file"], row["offset"]] += 1
            if times[row["file"], row["offset"]] > 1:
                by_range[row["source"], f"repeated_by_mix_{label(row['copies'], mix['by_copies'])}"] += 1
        assert counted == by_range
        if len(folders) == 1:
            assert left_out["train"] == sum(not times for times in want.values())
        validation = folder / "validation" / dataset.DOCUMENTS
        if validation.exists():
            places = [(row["file"], row["offset"]) for row in documents(folder, "validation")]
            assert len(places) == len(set(places)) > 0


def label(copies: int, by_copies: dict[str, float]) -> str:
    [key] = [key for key in by_copies if plain_epochs(copies, {key: -1.0}) == -1.0]
    return {"1": "1_copy"}.get(
        key, f"{key}_copies" if not key.endswith("-") else f"{key[:-1]}_or_more_copies"
    )


def text_of(folder: Path) -> list[str]:
    return [
        json.loads(line)["text"]
        for path in sorted(folder.iterdir())
        for line in path.read_text().splitlines()
    ]


def text_at(folder: Path, row: dict[str, Any]) -> str:
    text: str = json.loads((folder / row["file"]).read_bytes()[row["offset"] :].splitlines()[0])["text"]
    return text


def test_the_bytes_do_not_depend_on_workers_or_memory(tmp_path: Path) -> None:
    source = corpus(tmp_path / "in")
    contents = []
    different: list[dict[str, Any]] = [{}, {"run__workers": 2}, {"run__memory": "100kB"}]
    for number, options in enumerate(different):
        out = made(source, tmp_path / str(number), **options)
        contents.append(
            {
                path.relative_to(out).as_posix(): path.read_bytes()
                for path in sorted(out.rglob("*"))
                if path.is_file() and ".work" not in path.parts and path.name != "provenance.json"
            }
        )
    assert contents[0] == contents[1] == contents[2]


def test_changing_the_mix_does_again_only_what_follows_it(tmp_path: Path) -> None:
    source = corpus(tmp_path / "in", documents=10)
    made(source, tmp_path / "out", mix={})
    receipts = {
        path: path.stat().st_mtime_ns for path in (tmp_path / "out/.work").rglob("*.docs") if path.is_file()
    }
    made(source, tmp_path / "out", run__overwrite=True)
    assert receipts
    assert {path: path.stat().st_mtime_ns for path in receipts} == receipts
    fresh = made(source, tmp_path / "fresh")
    for path in (fresh / "train").iterdir():
        assert path.read_bytes() == (tmp_path / "out/train" / path.name).read_bytes()


RANGES = st.lists(st.tuples(st.integers(1, 20), st.integers(0, 3), st.floats(0, 10)), max_size=5)


@given(RANGES, st.booleans(), st.lists(st.integers(1, 60), min_size=1, max_size=50), st.floats(0, 10))
def test_ranges_are_those_of_a_plain_loop(
    parts: list[tuple[int, int, float]], is_open: bool, copies: list[int], epochs: float
) -> None:
    by_copies: dict[str, float] = {}
    low = 1
    for gap, length, value in parts:
        low += gap
        by_copies[f"{low}-{low + length}" if length else str(low)] = value
        low += length + 1
    if is_open:
        by_copies[f"{low}-"] = 7.5
    mix = MixSettings.model_validate({"A": epochs, "by_copies": dict(reversed(by_copies.items()))})
    rows = np.arange(len(copies))
    keys = seeding.document_keys("f", rows.astype(np.uint64))
    found = Mixing(mix, ["A"], np.array(copies, np.uint32)).copies(rows, np.zeros(len(rows), int), keys, 3)[
        :, 0
    ]
    for row, (times, number) in enumerate(zip(found.tolist(), copies, strict=True)):
        whole = epochs * plain_epochs(number, by_copies)
        assert times - int(whole) == int(
            float(seeding.unit_interval(keys[row : row + 1], 3, "mix")[0]) < whole % 1
        )
    best = max(plain_epochs(n, by_copies) / n for n in range(1, 200))
    assert mix.most_by_copies == pytest.approx(best)


@pytest.mark.parametrize(
    ("mix", "words"),
    [
        ({"by_copies": {"0": 1}}, "'0' is not a number of copies"),
        ({"by_copies": {"5-2": 1}}, "write 2-5"),
        ({"by_copies": {"1-3": 1, "3": 2}}, "1-3 and 3 both name 3 copies"),
        ({"by_copies": {"2-": 1, "9": 2}}, "2- and 9 both name 9 copies"),
        ({"by_copies": {"1": 101}}, "less than or equal to 100"),
        ({"by_copies": {"1": 20}, "A": 30}, "30 x 20 = 600 times"),
        ({"by_copies": {"1": float("nan")}}, "finite"),
        ({"by_copies": 3}, "valid dictionary"),
        ({"": 3}, "1 to 4,096 characters"),
    ],
)  # fmt: skip
def test_what_is_no_mix_is_refused_and_says_why(mix: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        MixSettings.model_validate(mix)


def test_without_deduplication_there_are_no_copies() -> None:
    with pytest.raises(ValidationError, match="counts the duplicates that were removed"):
        Settings.model_validate({"source": "x", "dedupe": "none", "mix": {"by_copies": {1: 2.0}}})
