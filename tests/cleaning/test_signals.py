"""Signals kept beside documents: what they are, that they follow the text, and that nothing else changes."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import h5py
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from btlm_data.cleaning import pii
from btlm_data.cleaning.document import Documents
from btlm_data.cleaning.filters import plan_filters
from btlm_data.cleaning.signals import plan_signals
from btlm_data.errors import ConfigError
from btlm_data.formats import dataset
from btlm_data.inspection import verify
from btlm_data.inspection.verify import Again
from btlm_data.tokenizer import load_tokenizer
from tests.reference import text_measures as reference
from tests.stages.runs import prepare

ALL: list[Any] = ["gopher", "repetition", "c4", "pii", "language", {"host": "meta.url"}]
WORDS = [
    "the",
    "of",
    "and",
    "river",
    "#",
    "...",
    "•",
    "house",
    "write-me@mail.example.org",
    "8.8.8.8",
    "{x}",
    "privacy",
    "policy",
]


def corpus(folder: Path, count: int = 90) -> Path:
    folder.mkdir()
    lines = []
    for i in range(count):
        words = [WORDS[(i * k + k // 3) % len(WORDS)] + "\n" * (k % 11 == 0) for k in range(i % 60 + 3)]
        url = f"HTTPS://User@Site{i % 4}.example:80/{i}" if i % 7 else None
        lines.append(json.dumps({"text": f"{i} " + " ".join(words), "meta": {"url": url}}) + "\n")
    for part in range(3):
        (folder / f"{part}.jsonl").write_text("".join(lines[part::3]))
    return folder


def made(source: Path, out: Path, **options: Any) -> Path:
    prepare(
        source,
        out,
        **{"seq_len": 32, "clean__min_chars": 0, "dedupe__max_removed": 1, "annotate": ALL, **options},
    )
    return out


def test_signals_are_those_of_the_text_and_the_shards_are_as_ever(tmp_path: Path) -> None:
    source = corpus(tmp_path / "in")
    out = made(source, tmp_path / "out", holdout__fraction=0.1)
    plain = made(source, tmp_path / "plain", annotate=[], holdout__fraction=0.1)
    for split in ("train", "validation"):
        for path in (plain / split).glob("*.h5"):
            assert path.read_bytes() == (out / split / path.name).read_bytes()
        rows = pq.read_table(out / split / dataset.DOCUMENTS)
        without = pq.read_table(plain / split / dataset.DOCUMENTS)
        assert rows.select(without.column_names).equals(without)
        for row in rows.to_pylist():
            record = json.loads((source / row["file"]).read_bytes()[row["offset"] :].splitlines()[0])
            text = record["text"]
            assert [
                row[f"gopher_{name}"] for name in ("words", "hash_ratio", "bullet_lines", "stop_words")
            ] == [reference.quality(text)[k] for k in (0, 2, 4, 7)]
            assert row["repetition_top_2_gram"] == pytest.approx(reference.repetition(text)[4])
            assert row["pii_emails"] == text.count("@")
            assert row["pii_ip_addresses"] == text.count("8.8.8.8")
            assert row["c4_curly_brackets"] == ("{" in text)
            assert row["c4_lines"] == len([line for line in text.splitlines() if line.strip()])
            url = record["meta"]["url"]
            assert row["host"] == (None if url is None else url.split("@")[1].split(":")[0].lower())
            assert len(row["language"]) == 2
            assert 0 <= row["language_probability"] <= 1
    assert [check for check in verify.verify(out, lambda _: None) if check.ok is False] == []
    assert "annotate" not in json.loads((plain / dataset.FILE_NAME).read_text())["configuration"]
    manifest = dataset.read_set(out)
    assert manifest.configuration["annotate"] == ALL
    assert len(manifest.other_inputs["signals"]) == 64


@pytest.mark.parametrize("options", [{"run__workers": 2}, {"run__memory": "20kB"}])
def test_signals_do_not_depend_on_how_the_work_is_done(tmp_path: Path, options: dict[str, Any]) -> None:
    source = corpus(tmp_path / "in")
    tables = [
        (
            made(source, tmp_path / name, **given, mix={"unnamed": 1.5}) / "train" / dataset.DOCUMENTS
        ).read_bytes()
        for name, given in (("one", {}), ("other", options))
    ]
    assert tables[0] == tables[1]


def test_other_signals_make_nothing_else_again(tmp_path: Path) -> None:
    source = corpus(tmp_path / "in")
    made(source, tmp_path / "out", annotate=["gopher"])
    tokens = {path: path.stat().st_mtime_ns for path in (tmp_path / "out/.work/read").glob("*.tokens")}
    out = made(source, tmp_path / "out", annotate=["gopher", "c4"], run__overwrite=True)
    assert tokens
    assert {path: path.stat().st_mtime_ns for path in tokens} == tokens
    fresh = made(source, tmp_path / "fresh", annotate=["gopher", "c4"])
    assert (out / dataset.FILE_NAME).read_bytes() == (fresh / dataset.FILE_NAME).read_bytes()


@pytest.mark.parametrize(
    ("specs", "words"),
    [
        (["gofer"], "annotate, entry 1: there is no signal 'gofer'. Did you mean gopher?"),
        ([{"language": {"max_charz": 1}}], "Did you mean max_chars?"),
        ([{"gopher": 3}], "gopher has no parameters"),
        ([{"host": 3}], "expected text"),
        (["pii", "pii"], "entry 2: pii is named twice"),
        ([{}], "there is no signal"),
    ],
)
def test_what_is_no_signal_is_refused(specs: list[Any], words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        plan_signals(specs)
    assert words in str(caught.value)


TRUE = {
    "emails": ["a@b.co", "first.last+tag@sub.example.org", "x_y%z@a-b.travel"],
    "ip_addresses": ["8.8.8.8", "2001:4860:4860::8888", "93.184.216.34"],
    "phones": [
        "+49 30 12345678",
        "+1 (555) 010-9999",
        "(212) 555-0100",
        "212-555-0100",
        "212.555.0100",
        "+442071838750",
    ],
}
FALSE = ["a@b", "@home", "a @b.co", "1.2.3", "1.2.3.4.5", "10.0.0.1", "127.0.0.1", "::1", "256.1.1.1", "v8.8.8.8", "12:30:45",
         "2020-01-02", "+12", "123-456-7890", "1234567890123", "x212-555-0100", "fe80::1", "std::vector", "1:2:3:4:5:6:7:8:9"]  # fmt: skip


def test_personal_data_is_counted_and_what_looks_like_it_is_not() -> None:
    for kind, texts in TRUE.items():
        for text in texts:
            for around in ("{}", "at {}, or", "({})", "<{}>\n"):
                assert pii.count(around.format(text), kind) == 1, text
    for text in FALSE:
        assert [pii.count(f"see {text} here", kind) for kind in pii.KINDS] == [0, 0, 0], text


def test_personal_data_is_masked_before_tokenizing_and_nothing_else_changes(tmp_path: Path) -> None:
    source = corpus(tmp_path / "in")
    plain = {"format": "corpus", "shuffle": "none", "dedupe__method": "none"}
    out = made(source, tmp_path / "out", annotate=["pii"], clean__filters=["mask_pii"], **plain)
    tokens = [token for path in sorted((out / "train").glob("*.h5")) for token in stored(path)]
    text = load_tokenizer("gpt2", backend="reference").decode(tokens)
    lines = [line for path in sorted(source.iterdir()) for line in path.read_text().splitlines()]
    expected = "".join(json.loads(line)["text"] + "<|endoftext|>" for line in lines)
    for word, by in (("write-me@mail.example.org", "|||EMAIL_ADDRESS|||"), ("8.8.8.8", "|||IP_ADDRESS|||")):
        assert word in expected
        expected = expected.replace(word, by)
    assert text == expected
    for row in pq.read_table(out / "train" / dataset.DOCUMENTS).to_pylist():
        assert (row["pii_emails"], row["pii_ip_addresses"], row["pii_phones"]) == (0, 0, 0)
    checks = verify.verify(out, lambda _: None, source=source, again=Again(documents=30))
    assert [check for check in checks if check.ok is False] == []


def stored(path: Path) -> list[int]:
    with h5py.File(path) as file:
        tokens: list[int] = file["data"][:].tolist()
    return tokens


@given(
    st.lists(
        st.sampled_from([*(text for texts in TRUE.values() for text in texts), *FALSE, "a", "日本"]),
        max_size=12,
    )
)
def test_a_mask_takes_all_and_only_what_is_counted(words: list[str]) -> None:
    text = " | ".join(words)
    for kind in pii.KINDS:
        masked = pii.mask(text, kind, "X")
        assert pii.count(masked, kind) == 0
        assert (masked is text) == (pii.count(text, kind) == 0)
        kept = [word for word in words if word not in TRUE[kind]]
        assert [word for word in masked.split(" | ") if word not in ("X", "")] == kept


def test_what_a_mask_leaves_alone() -> None:
    text = "to a@b.co, 8.8.8.8 or 10.0.0.1, +49 30 12345678"
    filters = plan_filters([{"mask_pii": {"phone": None, "email": ""}}])
    reasons, [masked] = filters.apply(Documents([text], [""], [""], [0]))
    assert reasons == [None]
    assert masked == "to , |||IP_ADDRESS||| or 10.0.0.1, +49 30 12345678"


def test_patterns_take_time_in_proportion_to_the_text() -> None:
    for part in ("a", "a.", "1.", "1", "1-", ":", "1:", "a@", "a@a.", "+1 ", "(212) ", "+1-23-", "f:"):
        start = time.process_time()
        for kind in pii.KINDS:
            pii.count(part * 100_000, kind)
        assert time.process_time() - start < 2, part


@given(st.lists(st.text(max_size=200), min_size=1, max_size=3))
def test_any_text_has_signals(texts: list[str]) -> None:
    signals = plan_signals(["gopher", "repetition", "c4", "pii"])
    clean = [text.encode("utf-8", "replace").decode() for text in texts]
    values = signals.measure(Documents(clean, [""] * len(texts), [""] * len(texts), [0] * len(texts)))
    assert list(values) == list(signals.columns)
    assert {len(column) for column in values.values()} == {len(texts)}
