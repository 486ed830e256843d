"""What inspect measures, against numbers counted by hand; and that it never fails on what it cannot read."""

from __future__ import annotations

import functools
import io
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import msgspec
import numpy as np
import pytest
from rich.console import Console

from btlm_data.errors import ConfigError
from btlm_data.inspection import figures, render, summary
from btlm_data.inspection.document_measures import RunCounter, expected_run
from btlm_data.inspection.report import Report, SetsReport
from btlm_data.inspection.verify import verify
from tests.reference import dataset
from tests.reference.dataset import Document, documents, edit_manifest, stream_of


def inspect(path: Path, **options: Any) -> dict[str, Any]:
    """The report as programs get it."""
    return json.loads(msgspec.json.encode(summary.inspect(path, **options)))  # type: ignore[no-any-return]


def shown(report: dict[str, Any], width: int = 140, *, full: bool = True) -> str:
    kind: Any = SetsReport if report["kind"] == "sets" else Report
    value: SetsReport | Report = msgspec.convert(report, kind)
    console = Console(file=io.StringIO(), width=width, color_system=None)
    render.render(value, console, full=full)
    return console.file.getvalue()  # type: ignore[attr-defined, no-any-return]


@pytest.fixture
def chosen() -> list[Document]:
    return documents(300, "train", 1)


@pytest.fixture
def root(tmp_path: Path, chosen: list[Document]) -> Path:
    dataset.write(tmp_path / "shards", {"train": chosen, "validation": documents(9, "validation", 2)})
    return tmp_path / "shards"


def test_counts_are_those_of_the_documents(root: Path, chosen: list[Document]) -> None:
    report = inspect(root)
    tokens = len(stream_of(chosen))
    split = report["splits"]["train"]
    assert split["documents"] == 300
    assert (split["stream_tokens"], split["label_tokens"]) == (tokens, tokens - 1)
    assert split["samples"] == -(-(tokens - 1) // 16)
    assert split["packing_efficiency"] == pytest.approx((tokens - 1) / (16 * split["samples"]))
    size = sum(path.stat().st_size for path in (root / "train").glob("*.h5"))
    assert split["disk_bytes"] == size
    assert split["bytes_per_token"] == pytest.approx(size / (tokens - 1))
    sources = {row["source"]: row for row in report["sources"]["train"]}
    web = [document for document in chosen if document.source == "Web"]
    assert sources["Web"]["documents"] == len(web)
    assert sources["Web"]["shares"]["tokens"] == pytest.approx(sum(len(d.tokens) + 1 for d in web) / tokens)
    acquire = report["ledger"][0]
    assert acquire["dropped"] == {"invalid_json": {"documents": 8, "bytes": 200, "tokens": 0}}
    lengths = report["lengths"]["train"]
    assert lengths["tokens"]["quantiles"]["0.5"] == np.median([len(d.tokens) for d in chosen])
    assert sum(bar["count"] for bar in lengths["tokens"]["histogram"]) == 300
    assert report["tokens"]["train"]["eos_share"] == pytest.approx(
        (np.array(stream_of(chosen)) == 0).mean(), abs=0.001
    )


def test_shuffle_quality_tells_order_from_disorder(tmp_path: Path, chosen: list[Document]) -> None:
    dataset.write(tmp_path / "ordered", {"train": chosen}, shuffle="none")
    found = inspect(tmp_path / "ordered")["shuffle"]["train"]
    assert found["documents"]["rank_correlation"] == pytest.approx(1)
    assert found["samples"] is None
    assert found["neighbours"]["continue"] == 1
    order = np.random.default_rng(0).permutation(300)
    dataset.write(tmp_path / "mixed", {"train": [chosen[k] for k in order]})
    found = inspect(tmp_path / "mixed")["shuffle"]["train"]
    assert abs(found["documents"]["rank_correlation"]) < 4 * found["documents"]["standard_deviation"]
    assert abs(found["samples"]["rank_correlation"]) < 4 * found["samples"]["standard_deviation"]
    assert found["neighbours"]["continue"] < 0.2
    sorted_by_source = sorted(chosen, key=lambda document: document.source)
    dataset.write(tmp_path / "grouped", {"train": sorted_by_source}, shuffle="documents")
    runs = inspect(tmp_path / "grouped")["shuffle"]["train"]["runs"]
    assert (runs["source"], runs["longest_run"]) == ("Web", sum(d.source == "Web" for d in chosen))
    assert runs["expected"] < 30


def test_the_longest_run_goes_on_over_row_groups() -> None:
    codes = np.array([0, 1, 1, 1, 1, 1, 0, 0, 1, 1])
    for cuts in ([], [3], [2, 4, 5], list(range(1, 10))):
        runs = RunCounter()
        for piece in np.split(codes, cuts):
            runs.add(piece, joined=True)
        report = runs.longest_run(["a", "b"], np.bincount(codes))
        assert report is not None
        assert (report.longest_run, report.source) == (5, "b")


def test_the_expected_run_is_that_of_random_orders() -> None:
    rng = np.random.default_rng(2)
    for share in (0.1, 0.5, 0.8):
        longest = []
        for _ in range(200):
            runs = RunCounter()
            runs.add(rng.permutation(np.arange(2000) < 2000 * share).astype(np.int64), joined=True)
            edges = np.flatnonzero(
                np.diff(
                    np.concatenate([[0], rng.permutation(np.arange(2000) < 2000 * share).astype(int), [0]])
                )
            )
            longest.append((edges[1::2] - edges[::2]).max())
        assert expected_run(2000, int(2000 * share)) == pytest.approx(np.mean(longest), rel=0.15, abs=0.5)


def test_a_sample_asked_for_is_shown_with_its_documents(root: Path) -> None:
    report = inspect(root, sample=[3], split="validation")
    assert [(view["split"], view["sample"]) for view in report["samples"]] == [("validation", 3)]
    text = shown(report)
    assert "validation/a.jsonl" in text
    assert "EOS" in text
    with pytest.raises(ConfigError, match="There is no split 'dev'"):
        inspect(root, split="dev")
    with pytest.raises(ConfigError, match="There is no sample 99999"):
        inspect(root, sample=[99999])


def test_a_split_folder_or_a_shard_finds_its_dataset(root: Path) -> None:
    assert list(inspect(root / "train")["splits"]) == ["train"]
    one = inspect(root / "train/data-00001.h5")
    assert one["kind"] == "dataset"
    assert one["splits"]["train"]["samples"] == 7
    assert one["splits"]["train"]["label_tokens"] == 112
    assert shown(one)


def test_several_sets(tmp_path: Path, chosen: list[Document]) -> None:
    names = ("msl8", "msl16")
    for index, name in enumerate(names):
        (tmp_path / name).mkdir()
        dataset.write(tmp_path / name, {"train": chosen}, seq_len=8 * (index + 1), sets=(index, names, None))
    dataset.write_set_list(tmp_path, [*names, "msl99"])
    report = inspect(tmp_path)
    assert list(report["sets"]) == ["msl8", "msl16"]
    assert "msl99" in report["unknown"][0]
    assert "msl16" in shown(report)


def test_what_the_corpus_holds_cannot_command_the_terminal_or_the_layout(root: Path) -> None:
    edit_manifest(
        root, lambda m: [e.update(source="[red]Web\x1b[2J") for e in m["ledger"] if e["source"] == "Web"]
    )
    text = shown(inspect(root))
    assert "\x1b" not in text
    assert r"[red]Web\x1b[2J" in text
    assert r"a\x1b[31mb" in text


def make_foreign(root: Path, chosen: list[Document]) -> None:
    planes, _ = dataset.samples_of(dataset.stream_of(chosen), 16, "pad")
    dataset.write_shard(root / "output_chunk_0_0.h5", planes[:100])
    dataset.write_shard(root / "output_chunk_0_1.h5", planes[100:])


def test_foreign_shards_are_measured(tmp_path: Path, chosen: list[Document]) -> None:
    make_foreign(tmp_path, chosen)
    (tmp_path / "data_params.json").write_text(
        json.dumps({"processing": {"eos_id": 0, "max_seq_length": 16, "pad_id": 0}})
    )
    report = inspect(tmp_path)
    split = report["splits"][tmp_path.name]
    tokens = len(stream_of(chosen))
    assert report["kind"] == "shards"
    assert (split["samples"], split["layout"], split["compression"]) == (
        -(-(tokens - 1) // 16),
        "sample",
        "gzip",
    )
    assert split["label_tokens"] == pytest.approx(tokens, rel=0.01)
    assert split["documents"] is None
    assert report["tokens"][tmp_path.name]["eos_share"] == pytest.approx(300 / tokens, rel=0.1)
    assert report["shuffle"][tmp_path.name]["neighbours"]["continue"] > 0.95
    assert any("no dataset.json" in line for line in report["unknown"])
    assert "without dataset.json" in shown(report)


def test_gpt2_is_guessed_from_its_end_of_text_and_said_to_be_a_guess(tmp_path: Path) -> None:
    planes = np.zeros((4, 3, 8), np.int32)
    planes[:, 0], planes[:, 1] = [15496, 995, 50256, 15496, 995, 15496, 995, 15496], 1
    dataset.write_shard(tmp_path / "x.h5", planes)
    report = inspect(tmp_path)
    assert report["samples"][0]["segments"][0]["text"] == "Hello world"
    assert "(a guess)" in shown(report)


def test_a_foreign_corpus_and_other_layouts(tmp_path: Path) -> None:
    dataset.write_shard(tmp_path / "corpus.h5", np.arange(5000, dtype=np.uint16) % 99)
    report = inspect(tmp_path / "corpus.h5")
    assert report["splits"][tmp_path.name]["layout"] == "corpus"
    assert report["splits"][tmp_path.name]["samples"] == 3
    assert report["tokens"][tmp_path.name]["distinct"] == 99
    dataset.write_shard(tmp_path / "other.h5", np.zeros((3, 2), np.int32))
    report = inspect(tmp_path / "other.h5")
    assert any("in no layout" in line for line in report["unknown"])
    assert shown(report)


DAMAGE: dict[str, Callable[[Path], object]] = {
    "truncated shard": lambda root: (root / "train/data-00000.h5").write_bytes(
        (root / "train/data-00000.h5").read_bytes()[:900]
    ),
    "empty shard": lambda root: (root / "train/data-00000.h5").write_bytes(b""),
    "no shards": lambda root: shutil.rmtree(root / "train"),
    "one shard gone": lambda root: (root / "train/data-00003.h5").unlink(),
    "garbage manifest": lambda root: (root / "dataset.json").write_bytes(b"\xff{"),
    "wrong types": lambda root: edit_manifest(root, lambda m: m.update(splits=[1])),
    "configuration of another kind": lambda root: edit_manifest(
        root, lambda m: m.update(configuration={"dedupe": 3, "shards": []})
    ),
    "dedupe of another kind": lambda root: edit_manifest(
        root, lambda m: m.update(configuration={}, dedupe={"clusters": "x", "largest_clusters": [1, {}]})
    ),
    "no table": lambda root: (root / "train/documents.parquet").unlink(),
    "torn table": lambda root: (root / "train/documents.parquet").write_bytes(b"PAR1"),
    "torn examples": lambda root: (root / "examples.jsonl").write_text('{"reason": "x", "te'),
    "examples of another kind": lambda root: (root / "examples.jsonl").write_text("[1]\n3\n"),
    "clusters of another kind": lambda root: (root / "clusters.parquet").write_bytes(b"?"),
    "more rows promised": lambda root: edit_manifest(
        root, lambda m: m["splits"]["train"]["files"][0].update(n_examples=70)
    ),
    "fewer rows promised": lambda root: edit_manifest(
        root, lambda m: m["splits"]["train"]["files"][0].update(n_examples=2)
    ),
}


@pytest.mark.parametrize("kind", list(DAMAGE))
def test_damage_is_told_not_thrown(root: Path, kind: str) -> None:
    edit_manifest(root, lambda m: m["configuration"].update(dedupe={"method": "minhash"}))
    DAMAGE[kind](root)
    report = inspect(root, num_samples=5)
    assert shown(report)
    expected_silence = {
        "configuration of another kind",
        "dedupe of another kind",
        "more rows promised",
        "fewer rows promised",
    }
    told = (
        report["unknown"]
        or any(view["note"] for view in report["samples"])
        or kind in expected_silence | {"one shard gone", "no shards"}
    )
    assert told


def set_tokenizer(name: str, manifest: dict[str, Any]) -> None:
    manifest["tokenizer"]["name"] = name


def test_a_tokenizer_of_the_hub_is_not_fetched(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("socket.socket.connect", lambda *_: pytest.fail("inspect went to the network"))
    monkeypatch.setattr("socket.getaddrinfo", lambda *_, **__: pytest.fail("inspect went to the network"))
    for name in ("some/repository", "no name of any // kind", "../../etc"):
        edit_manifest(root, functools.partial(set_tokenizer, name))
        report = inspect(root)
        assert any("tokenizer" in line for line in report["unknown"])
        assert report["samples"][0]["segments"][0]["ids"]


def test_a_group_instead_of_data(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file.create_group("data")
    report = inspect(tmp_path)
    assert any("x.h5 is not a shard" in line for line in report["unknown"])
    assert shown(report)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (999_999, "1 M"),
        (1234, "1,234"),
        (1_234_567, "1.23 M"),
        (3.4e9, "3.4 G"),
        (627e9, "627 G"),
        (None, "unknown"),
    ],
)
def test_numbers(value: float | None, text: str) -> None:
    assert figures.number(value) == text


@pytest.mark.parametrize(
    ("share", "text"),
    [(0.452, "45.2 %"), (1, "100.0 %"), (0.999999, "99.999 %"), (0, "0.0 %"), (0.00012, "0.012 %")],
)
def test_percentages(share: float, text: str) -> None:
    assert figures.percent(share) == text


@pytest.mark.parametrize(
    ("value", "text"), [(812, "812 B"), (3.4e9, "3.4 GB"), (999.9e6, "1 GB"), (1500, "1.5 kB")]
)
def test_sizes(value: float, text: str) -> None:
    assert figures.size(value) == text


# The first screen -------------------------------------------------------------------------------------------


def verdicts(report: dict[str, Any]) -> dict[tuple[str, str | None], tuple[str, str]]:
    return {(v["subject"], v["split"]): (v["level"], v["text"]) for v in report["verdicts"]}


def crowd(root: Path) -> None:
    """A dataset with everything that takes room: many sources, reasons, warnings, damaged files, long names."""

    def change(manifest: Any) -> None:
        rows = [row for row in manifest["ledger"] if row["stage"] == "shuffle" and row["split"] == "train"]
        for number in range(40):
            name = f"a source with a long name, number {number}"
            manifest["ledger"].append(json.loads(json.dumps(rows[0])) | {"source": name})
        for row in manifest["ledger"]:
            for number in range(20):
                row["dropped"][f"a_reason_with_many_words_{number}"] = {"documents": 12345678}

    edit_manifest(root, change)
    (root / "examples.jsonl").write_text("{")
    (root / "provenance.json").write_text("{")
    for path in (root / "train").glob("data-*"):
        path.write_bytes(b"")


@pytest.mark.parametrize("width", [80, 120])
@pytest.mark.parametrize("crowded", [False, True])
def test_the_first_screen_has_forty_lines_at_most_and_cuts_no_digit(
    root: Path, width: int, crowded: bool
) -> None:
    if crowded:
        crowd(root)
    text = shown(inspect(root, num_samples=0), width, full=False)
    lines = text.splitlines()
    assert len(lines) <= 40
    assert max(map(len, lines[1:])) <= width  # the first is the path, on one line whatever its length
    assert "…" not in text
    train, validation = (
        next(k for k, line in enumerate(lines) if name in line) for name in ("train", "valid")
    )
    assert train < validation


def test_no_digit_of_the_whole_report_is_cut_on_80_columns(root: Path) -> None:
    text = shown(inspect(root, num_samples=0), 80)
    assert not [line for line in text.splitlines() if "…" in line]


def test_verdicts_say_what_figures_mean(tmp_path: Path, chosen: list[Document]) -> None:
    order = np.random.default_rng(0).permutation(300)
    mixed = [chosen[k] for k in order]
    dataset.write(tmp_path / "mixed", {"train": mixed, "validation": documents(9, "validation", 2)})
    said = verdicts(inspect(tmp_path / "mixed"))
    assert said["shuffle", "train"] == ("good", "train is shuffled well")
    assert said["size", "validation"][0] == "warning"
    assert said["size", "validation"][1].startswith(
        "validation is too small to tell similar models apart: 9 doc"
    )
    assert said["records", None] == ("warning", said["records", None][1])
    assert said["duplicates", None] == ("warning", "duplicates were not looked for")
    dataset.write(tmp_path / "ordered", {"train": chosen}, shuffle="documents")
    said = verdicts(inspect(tmp_path / "ordered"))
    assert said["shuffle", "train"][0] == "warning"
    assert "documents follow their source order" in said["shuffle", "train"][1]
    assert "there is no validation split" in said["size", None][1]
    dataset.write(tmp_path / "asked", {"train": chosen}, shuffle="none")
    assert verdicts(inspect(tmp_path / "asked"))["shuffle", "train"][0] == "good"
    dataset.write(tmp_path / "small", {"train": chosen[:9]})
    assert verdicts(inspect(tmp_path / "small"))["shuffle", "train"][0] == "unknown"


def test_a_folder_that_is_being_prepared_is_no_error(tmp_path: Path) -> None:
    (tmp_path / "preparing.json").write_text(json.dumps({"run": "0" * 64, "files": []}))
    assert "work folder is elsewhere" in inspect(tmp_path)["unknown"][0]
    for step, tasks in (("read", 3), ("cluster", 1)):
        (tmp_path / ".work/receipts" / step).mkdir(parents=True)
        for task in range(tasks):
            (tmp_path / ".work/receipts" / step / f"{task}.json").write_text("{}")
    report = inspect(tmp_path)
    assert "being prepared" in report["unknown"][0]
    assert "read 3, cluster 1" in report["unknown"][0]
    assert "no shards yet" in shown(report, full=False)
    assert [check.name for check in verify(tmp_path, lambda check: None) if check.ok is False] == ["manifest"]
    dataset.write_shard(tmp_path / "train/data-00000.h5", np.ones((4, 3, 8), np.int32))
    assert inspect(tmp_path)["splits"]["train"]["samples"] == 4
    (tmp_path / "preparing.json").write_text("[")
    assert "being prepared" in inspect(tmp_path)["unknown"][0]


def test_an_edited_dataset_json_is_said_to_be_edited(root: Path) -> None:
    edit_manifest(root, lambda m: m.update(dedupe={}), seal=False)
    report = inspect(root)
    assert report["kind"] == "dataset"
    assert "the file was changed or damaged" in report["unknown"][0]
    assert report["unknown"][0].endswith("What follows is what it says now.")


def test_pipes_do_not_hang_inspect(root: Path) -> None:
    for name in ("examples.jsonl", "train/documents.parquet", "train/data-00000.h5"):
        (root / name).unlink()
        os.mkfifo(root / name)
    os.mkfifo(root / "clusters.parquet")
    os.mkfifo(root / "provenance.json")
    edit_manifest(root, lambda m: m["configuration"].update(dedupe={"method": "minhash"}))
    report = inspect(root)
    assert sum("not a regular file" in line for line in report["unknown"]) >= 4
