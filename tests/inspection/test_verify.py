"""Every way a dataset can be wrong is found by the check meant for it, which names the place."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from btlm_data import terminal
from btlm_data.errors import InputError
from btlm_data.formats import input_digest
from btlm_data.inspection.check import Check, show, summary
from btlm_data.inspection.description_checks import GPT2
from btlm_data.inspection.verify import passed, verify
from btlm_data.tokenizer import load_tokenizer
from tests.reference import dataset
from tests.reference.dataset import EOS, VOCABULARY, documents, edit_manifest, edit_shard, resign

SPLITS = {"train": 40, "validation": 9}
Change = Callable[[Any], object]


def run(path: Path) -> dict[str, Check]:
    lines: list[Check] = []
    checks = verify(path, lines.append)
    assert checks == lines
    assert len({check.name for check in checks}) == len(checks)
    return {check.name: check for check in checks}


def failures(path: Path) -> dict[str, str]:
    found = {name: check for name, check in run(path).items() if check.ok is False}
    assert all(check.place for check in found.values())
    return {name: check.place or "" for name, check in found.items()}


def make(root: Path, **options: Any) -> Path:
    dataset.write(
        root, {split: documents(count, split, seed=count) for split, count in SPLITS.items()}, **options
    )
    return root


@pytest.fixture
def sound(tmp_path: Path) -> Path:
    return make(tmp_path / "shards")


@pytest.mark.parametrize("seq_len", [1, 5, 16, 1000])
@pytest.mark.parametrize("shuffle", ["samples", "documents"])
@pytest.mark.parametrize("tail", ["pad", "drop"])
def test_a_sound_dataset_passes_every_check(tmp_path: Path, seq_len: int, shuffle: str, tail: str) -> None:
    checks = run(make(tmp_path, seq_len=seq_len, shuffle=shuffle, tail=tail))
    assert {name: check.place for name, check in checks.items() if check.ok is False} == {}
    nothing = seq_len == 1000 and tail == "drop"  # too few tokens for one whole sample
    assert {name for name, check in checks.items() if check.ok is None} == {"tokenizer", "provenance"} | (
        {"mask", "padding", "label shift"} if nothing else set()
    )


def test_a_sound_corpus_passes(tmp_path: Path) -> None:
    checks = run(make(tmp_path, form="corpus"))
    assert passed(checks.values())
    assert {name for name, check in checks.items() if check.ok is None} == {
        "tokenizer",
        "provenance",
        "mask",
        "padding",
        "label shift",
        "label shift across samples",
    }
    assert checks["ends of documents"].ok


def test_a_split_a_shard_and_the_manifest_can_be_named(sound: Path) -> None:
    for path in (sound / "train", sound / "train/data-00001.h5", sound / "dataset.json"):
        assert failures(path) == {}
    assert run(sound / "train/data-00001.h5")["label shift across samples"].ok is None
    assert run(sound / "train")["splits disjoint"].ok is None


# Shards -----------------------------------------------------------------------------------------------------


def set_cell(row: int, plane: int, position: int, value: int) -> Change:
    def change(data: Any) -> None:
        data[row, plane, position] = value

    return change


def test_a_flipped_bit_fails_the_checksum(sound: Path) -> None:
    path = sound / "train/data-00000.h5"
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 4
    path.write_bytes(raw)
    found = failures(sound)
    assert found["checksums"].startswith("train/data-00000.h5: sha256 ")


def test_a_shard_open_for_writing_elsewhere_is_named_as_that(sound: Path) -> None:
    path = sound / "train/data-00000.h5"
    with h5py.File(path, "r+"):
        found = failures(sound)
        assert list(found) == ["checksums"]
        assert "its data are right, but a program has it open for writing" in found["checksums"]
        marked = bytearray(path.read_bytes())
    assert failures(sound) == {}
    marked[len(marked) // 2] ^= 4
    path.write_bytes(marked)
    assert failures(sound)["checksums"].startswith("train/data-00000.h5: sha256 ")


def test_a_mask_value_is_named(sound: Path) -> None:
    edit_shard(sound, "train/data-00001.h5", set_cell(3, 1, 5, 2))
    found = failures(sound)
    assert found["mask"].startswith(
        "train/data-00001.h5 row 3, attention_mask position 5: 2, expected 0 or 1"
    )


def test_an_unmasked_hole_is_named(sound: Path) -> None:
    edit_shard(sound, "train/data-00001.h5", set_cell(3, 1, 5, 0))
    found = failures(sound)
    assert found["mask"].startswith("train/data-00001.h5 row 3, attention_mask position 6: 1, expected 0")
    assert "row 3" in found["padding"]
    assert "data-00001.h5: " in found["token sums"]


def test_padding_elsewhere_than_in_the_last_sample_is_named(sound: Path) -> None:
    def blank(data: Any) -> None:
        data[2, :, 10:] = 0

    edit_shard(sound, "train/data-00000.h5", blank)
    assert failures(sound)["padding"] == "train/data-00000.h5 row 2: 10 real positions, expected 16"


def padded_row(root: Path) -> tuple[str, int]:
    for path in sorted((root / "train").glob("*.h5")):
        with h5py.File(path) as file:
            short = np.flatnonzero((file["data"][:, 1] == 0).any(axis=1))
        if len(short):
            return f"train/{path.name}", int(short[0])
    raise AssertionError("no padded row")


@pytest.mark.parametrize(("plane", "name"), [(0, "input_ids"), (2, "labels")])
def test_padding_that_is_not_zero_is_named(sound: Path, plane: int, name: str) -> None:
    shard, row = padded_row(sound)
    edit_shard(sound, shard, set_cell(row, plane, 15, 9))
    assert failures(sound) == {
        "padding": f"{shard} row {row}, {name} position 15: 9, expected 0 where the mask is 0"
    }


def test_a_label_that_is_not_the_next_input_is_named(sound: Path) -> None:
    def change(data: Any) -> None:
        data[4, 2, 7] = 1 + data[4, 0, 8] % 98

    edit_shard(sound, "train/data-00000.h5", change)
    found = failures(sound)
    assert set(found) == {"label shift"}
    assert found["label shift"].startswith("train/data-00000.h5 row 4, labels position 7: ")
    assert "expected the next input" in found["label shift"]


def test_two_rows_that_changed_places_are_found(sound: Path) -> None:
    def swap(data: Any) -> None:
        data[[1, 2]] = data[[2, 1]]

    edit_shard(sound, "train/data-00000.h5", swap)
    found = failures(sound)
    assert "the first input of the next sample of the stream" in found["label shift across samples"]
    assert "ends of documents" in found


def test_a_last_label_is_compared_with_the_next_sample(sound: Path) -> None:
    shard, row = padded_row(sound)
    chosen = 0 if row != 0 else 1

    def change(data: Any) -> None:
        data[chosen, 2, 15] = 1 + data[chosen, 2, 15] % 98

    edit_shard(sound, shard, change)
    found = failures(sound)
    assert set(found) == {"label shift across samples"}
    assert found["label shift across samples"].startswith(f"{shard} row {chosen}, labels position 15: ")


@pytest.mark.parametrize("value", [VOCABULARY, -1])
def test_an_id_outside_the_vocabulary_is_named(sound: Path, value: int) -> None:
    edit_shard(sound, "validation/data-00000.h5", set_cell(0, 0, 3, value))
    place = failures(sound)["token ids"]
    assert place.startswith(
        f"validation/data-00000.h5 row 0, input_ids position 3: {value}, expected an id from 0 to 99"
    )


def test_an_eos_where_no_document_ends_is_named(tmp_path: Path) -> None:
    root = make(tmp_path, shuffle="documents", seq_len=4)
    with h5py.File(root / "train/data-00000.h5") as file:
        ids = file["data"][:, 0]
    row, position = next((r, t) for r, t in zip(*np.nonzero(ids != EOS), strict=True) if t > 0)

    def change(data: Any) -> None:
        data[row, 0, position] = data[row, 2, position - 1] = EOS

    edit_shard(root, "train/data-00000.h5", change)
    expected = f"train/data-00000.h5 row {row}, input_ids position {position}: EOS (0), but no document of documents.parquet ends there"
    assert failures(root) == {"ends of documents": expected}


def test_a_missing_eos_is_named_with_its_document(sound: Path) -> None:
    with h5py.File(sound / "train/data-00001.h5") as file:
        ids = file["data"][:, 0]
    row, position = next((r, t) for r, t in zip(*np.nonzero(ids == EOS), strict=True) if t > 0)

    def change(data: Any) -> None:
        data[row, 0, position] = data[row, 2, position - 1] = 50

    edit_shard(sound, "train/data-00001.h5", change)
    found = failures(sound)
    assert set(found) == {"ends of documents"}
    start = f"train/data-00001.h5 row {row}, input_ids position {position}: 50, expected EOS (0): document "
    assert found["ends of documents"].startswith(start)


def test_the_last_label_of_the_stream_must_be_eos(tmp_path: Path) -> None:
    root = make(tmp_path, shuffle="none")
    shard, row = padded_row(root)
    with h5py.File(root / shard) as file:
        last = int(file["data"][row, 1].sum()) - 1
    edit_shard(root, shard, set_cell(row, 2, last, 44))
    assert failures(root)["ends of documents"].startswith(
        f"{shard} row {row}, labels position {last}: 44, expected EOS (0): document 39 "
    )


def test_a_wrong_token_of_a_corpus_is_named(tmp_path: Path) -> None:
    root = make(tmp_path, form="corpus")

    def change(data: Any) -> None:
        data[5], data[20] = 100, EOS

    edit_shard(root, "train/data-00001.h5", change)
    found = failures(root)
    assert found["token ids"] == "train/data-00001.h5 token 5: 100, expected an id from 0 to 99"
    assert "train/data-00001.h5 token " in found["ends of documents"]


def test_rows_of_another_shape_or_type_are_named(sound: Path) -> None:
    path = sound / "train/data-00001.h5"
    with h5py.File(path) as file:
        data = file["data"][:]
    dataset.write_shard(path, data[:, :, :-1])
    resign(sound)
    found = failures(sound)
    assert found["layout"].startswith("train/data-00001.h5: data of shape (7, 3, 15), expected (n, 3, 16)")
    dataset.write_shard(path, data.astype(np.int64))
    resign(sound)
    assert failures(sound) == {
        "layout": "train/data-00001.h5: data of type int64, expected int32 (and 1 more)"
    }
    assert run(sound)["label shift"].ok


def test_lost_rows_are_counted(sound: Path) -> None:
    path = sound / "train/data-00001.h5"
    with h5py.File(path) as file:
        data = file["data"][:]
    dataset.write_shard(path, data[:-1])
    resign(sound)
    found = failures(sound)
    assert found["counts"] == "train/data-00001.h5: 6 rows, dataset.json says 7"
    assert re.search(r"data-00001.h5: \d+ label positions, dataset.json says \d+", found["token sums"])
    assert run(sound)["label shift across samples"].ok is None


def test_a_wrong_attribute_is_named(sound: Path) -> None:
    with h5py.File(sound / "train/data-00001.h5", "r+") as file:
        file.attrs["n_examples"] = 8
    resign(sound)
    assert failures(sound) == {"counts": "train/data-00001.h5: attribute n_examples is 8, data has 7 rows"}


# Files ------------------------------------------------------------------------------------------------------


def test_missing_unlisted_and_resized_files_are_named(sound: Path) -> None:
    shard = sound / "train/data-00000.h5"
    (sound / "train/zz.h5").write_bytes(shard.read_bytes())
    assert failures(sound) == {"files": "train/zz.h5: a shard that dataset.json does not list"}
    (sound / "train/zz.h5").unlink()
    (sound / "validation/documents.parquet").unlink()
    found = failures(sound)
    assert found["files"] == "validation/documents.parquet: missing"
    assert "There is no" in found["documents"]
    shard.unlink()
    found = failures(sound)
    assert found["files"] == "train/data-00000.h5: missing (and 1 more)"
    assert run(sound)["ends of documents"].ok is None


@pytest.mark.parametrize("keep", [0, 7, 200, 900, -1])
def test_a_truncated_shard_is_named_not_a_traceback(sound: Path, keep: int) -> None:
    path = sound / "train/data-00001.h5"
    path.write_bytes(path.read_bytes()[:keep])
    found = failures(sound)
    assert found["files"].startswith("train/data-00001.h5: ")
    assert "data-00001.h5" in found["readable"]
    assert "checksums" not in found  # a file of another size is not hashed: it may claim terabytes


@pytest.mark.parametrize("kind", ["empty", "text", "group", "no data", "float", "scalar", "folder"])
def test_anything_may_be_called_h5(sound: Path, kind: str) -> None:
    path = sound / "train/data-00001.h5"
    path.unlink()
    if kind in ("empty", "text"):
        path.write_bytes(b"" if kind == "empty" else b"not HDF5 " * 100)
    elif kind == "folder":
        path.mkdir()
    else:
        with h5py.File(path, "w") as file:
            if kind == "group":
                file.create_group("data")
            elif kind == "float":
                file["data"] = np.zeros((7, 3, 16), np.float32)
            elif kind == "scalar":
                file["data"] = 5
    if kind != "folder":
        resign(sound)
    found = failures(sound)
    assert any("data-00001.h5" in found.get(name, "") for name in ("readable", "layout"))


@pytest.mark.parametrize(
    "garbage",
    [
        b"",
        b"{",
        b"\xff\xfe",
        b"[]",
        b"null",
        b'{"format_version": 99}',
        b'{"format_version": true}',
        b"[" * 100000,
    ],
)
def test_a_garbage_manifest_leaves_the_structural_checks(sound: Path, garbage: bytes) -> None:
    (sound / "dataset.json").write_bytes(garbage)
    checks = run(sound)
    assert {name for name, check in checks.items() if check.ok is False} == {"manifest"}
    assert "dataset.json" in (checks["manifest"].place or "")
    assert checks["label shift"].ok
    assert checks["ledger"].ok is None


@pytest.mark.parametrize(
    ("change", "place"),
    [
        (lambda m: m.pop("splits"), "splits"),
        (lambda m: m.update(seq_len="16"), "dataset.json: seq_len: Expected int, got str, found '16'"),
        (lambda m: m.update(format="parquet"), "format is 'parquet', expected one of sample, corpus, vsl"),
        (
            lambda m: m["splits"]["train"].update(documents=None),
            "splits.train.documents: Expected int, got null",
        ),
        (
            lambda m: m["splits"]["train"].update(stream_tokens=-4),
            "splits.train.stream_tokens: Expected int >= 0, found -4",
        ),
        (
            lambda m: m["splits"]["train"]["files"][0].update(name="../x.h5"),
            "splits.train.files[0].name: Expected the name of a shard, such as data-00000.h5, found "
            "'../x.h5'",
        ),
        (lambda m: m["tokenizer"].update(eos_id=10**6), "tokenizer: eos_id is 1000000, expected an id below"),
        (lambda m: m["ledger"][0].update({"in": 5}), "ledger[0].in: Expected object, got int"),
        (lambda m: m.update(seq_len=0), "seq_len: Expected int >= 1, found 0"),
    ],
)
def test_a_manifest_of_wrong_types_names_the_key(sound: Path, change: Change, place: str) -> None:
    edit_manifest(sound, change)
    checks = run(sound)
    assert checks["manifest"].ok is False
    assert place in (checks["manifest"].place or "")


# Accounts ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "check", "place"),
    [
        (
            lambda m: m["ledger"][0]["in"].update(documents=999),
            "ledger",
            "acquire train Books: in + added is 999 documents, out + dropped",
        ),
        (
            lambda m: m["ledger"][1]["dropped"].update(too_short={"documents": 1}),
            "ledger",
            "clean train Books: in + added is",
        ),
        (lambda m: m["ledger"].pop(2), "ledger", "train Books: clean passed on"),
        (lambda m: m["ledger"].append(m["ledger"][0]), "ledger", "two rows for acquire train Books"),
        (
            lambda m: m["ledger"][0].update(stage="cook"),
            "manifest",
            "ledger[0].stage: Invalid enum value 'cook'",
        ),
        (
            lambda m: m["splits"]["train"].update(label_tokens=1),
            "token sums",
            "splits.train.label_tokens: 1, its files add up to",
        ),
        (
            lambda m: m["splits"]["train"].update(samples=1),
            "counts",
            "splits.train.samples: 1, its files add up to",
        ),
        (
            lambda m: m["splits"]["train"].update(documents=41),
            "documents",
            "40 rows, dataset.json says 41 documents",
        ),
        (
            lambda m: m["splits"]["train"]["files"][0].update(tokens=5),
            "token sums",
            "train/data-00000.h5: 112 label positions, dataset.json says 5",
        ),
        (lambda m: m["inputs"].pop(0), "documents", "row 0, file: 'train/a.jsonl' is not among the inputs"),
        (
            lambda m: m["splits"]["train"]["files"].append(m["splits"]["train"]["files"][0]),
            "manifest",
            "splits.train: the shard data-00000.h5 is listed twice",
        ),
        (
            lambda m: m["outputs"].append({"name": "x.parquet", "sha256": "0" * 64, "bytes": 1}),
            "files",
            "x.parquet: missing",
        ),
        (lambda m: m["outputs"][0].update(sha256="0" * 64), "checksums", "examples.jsonl: sha256"),
        (lambda m: m["outputs"][0].update(bytes=1), "files", "examples.jsonl: "),
        (
            lambda m: m["splits"]["train"]["files"][0].update(xxh3="0" * 32),
            "checksums",
            "train/data-00000.h5: xxh3 ",
        ),
    ],
)
def test_a_wrong_number_is_named(sound: Path, change: Change, check: str, place: str) -> None:
    edit_manifest(sound, change)
    assert place in failures(sound)[check]


def test_a_chain_is_compared_source_by_source(sound: Path) -> None:
    def trade(manifest: dict[str, Any]) -> None:
        rows = [e for e in manifest["ledger"] if e["stage"] == "dedupe" and e["split"] == "train"]
        for side in ("in", "out"):
            rows[0][side]["documents"] += 1
            rows[1][side]["documents"] -= 1

    edit_manifest(sound, trade)
    assert failures(sound)["ledger"].startswith("dataset.json ledger: train Books: clean passed on ")


def rewrite_documents(
    root: Path, change: Callable[[list[dataset.Document]], object], offsets: list[int] | None = None
) -> None:
    chosen = documents(40, "train", seed=40)
    change(chosen)
    dataset.write_documents(root / "train/documents.parquet", chosen, offsets=offsets)
    resign(root)


def test_a_wrong_offset_is_named(sound: Path) -> None:
    lengths = [len(document.tokens) + 1 for document in documents(40, "train", seed=40)]
    offsets = np.cumsum([0, *lengths[:-1]]).tolist()
    offsets[13] += 1
    rewrite_documents(sound, lambda chosen: None, offsets)
    assert failures(sound) == {
        "documents": f"train/documents.parquet row 13, stream_offset: {offsets[13]}, expected {offsets[13] - 1} (after the document before it)"
    }


def test_a_document_whose_tokens_do_not_stand_there_is_found(sound: Path) -> None:
    def lengthen(chosen: list[dataset.Document]) -> None:
        first, second = chosen[5], chosen[6]
        moved = dataset.Document(first.file, first.line, first.source, first.tokens + (7,))
        chosen[5:7] = [moved, dataset.Document(second.file, second.line, second.source, second.tokens[1:])]

    rewrite_documents(sound, lengthen)
    assert "ends of documents" in failures(sound)


def test_a_document_of_another_source_is_found(sound: Path) -> None:
    def relabel(chosen: list[dataset.Document]) -> None:
        chosen[0] = dataset.Document(chosen[0].file, chosen[0].line, "Elsewhere", chosen[0].tokens)

    rewrite_documents(sound, relabel)
    assert (
        "of Elsewhere, the ledger (shuffle, out) says 0" in failures(sound)["documents"]
        or "the ledger (shuffle, out)" in failures(sound)["documents"]
    )


def test_a_damaged_table_is_named(sound: Path) -> None:
    path = sound / "train/documents.parquet"
    path.write_bytes(path.read_bytes()[:300])
    resign(sound)
    found = failures(sound)
    assert "documents.parquet is damaged" in found["documents"]
    assert run(sound)["ends of documents"].ok is None


def test_a_document_in_two_splits_is_named(tmp_path: Path) -> None:
    train = documents(20, "train", 1)
    dataset.write(tmp_path, {"train": train, "validation": [train[4], *documents(5, "validation", 2)]})
    place = "train/a.jsonl offset 400 is in train/documents.parquet row 4 and in validation/documents.parquet row 0"
    assert failures(tmp_path)["splits disjoint"] == place


# Sets -------------------------------------------------------------------------------------------------------


def make_sets(
    root: Path, share: float | None, first: list[dataset.Document], second: list[dataset.Document]
) -> None:
    names = ("msl8", "msl16")
    for index, (name, chosen) in enumerate(zip(names, (first, second), strict=True)):
        (root / name).mkdir(parents=True)
        dataset.write(root / name, {"train": chosen}, seq_len=8 * (index + 1), sets=(index, names, share))
    dataset.write_set_list(root, names)


def test_sets_with_shares_must_be_disjoint(tmp_path: Path) -> None:
    chosen = documents(30, "train", 5)
    make_sets(tmp_path / "good", 0.5, chosen[:17], chosen[17:])
    assert {name: check.place for name, check in run(tmp_path / "good").items() if check.ok is False} == {}
    assert run(tmp_path / "good")["sets disjoint"].ok
    make_sets(tmp_path / "bad", 0.5, chosen[:17], chosen[16:])
    place = "train/a.jsonl offset 1600 is in msl8/train/documents.parquet row 16 and in msl16/train/documents.parquet row 0"
    assert failures(tmp_path / "bad") == {"sets disjoint": place}
    make_sets(tmp_path / "whole", None, chosen, chosen)
    assert run(tmp_path / "whole")["sets disjoint"].ok is None


def test_keys_are_compared_in_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("btlm_data.inspection.account_checks.KEYS_IN_MEMORY", 4)
    chosen = documents(30, "train", 5)
    make_sets(tmp_path, 0.5, chosen[:17], chosen[16:])
    assert "train/a.jsonl offset 1600" in failures(tmp_path)["sets disjoint"]


def test_a_missing_or_changed_set_is_named(tmp_path: Path) -> None:
    chosen = documents(30, "train", 5)
    make_sets(tmp_path, 0.5, chosen[:17], chosen[17:])
    edit_manifest(tmp_path / "msl8", lambda m: m.update(dedupe={}))
    assert failures(tmp_path)["sets"].startswith("msl8/dataset.json: checksum ")
    (tmp_path / "msl8/dataset.json").unlink()
    assert failures(tmp_path)["sets"].startswith("msl8/dataset.json: missing")


# Shards that others made ------------------------------------------------------------------------------------


def make_foreign(root: Path, pad_id: int = EOS) -> None:
    """As the Model Zoo's scripts leave them: flat, gzip, a chunk a row, n_examples; labels and inputs padded
    with pad_id.
    """
    planes, _ = dataset.samples_of(dataset.stream_of(documents(40, "train", 40)), 16, "pad")
    padded = planes[:, 1] == 0
    planes[:, 0][padded] = planes[:, 2][padded] = pad_id
    dataset.write_shard(root / "output_chunk_0_0.h5", planes[:20])
    dataset.write_shard(root / "output_chunk_0_1.h5", planes[20:])


def test_foreign_shards_get_the_structural_checks_only(tmp_path: Path) -> None:
    make_foreign(tmp_path, pad_id=7)
    checks = run(tmp_path)
    assert {name for name, check in checks.items() if check.ok} == {
        "readable",
        "layout",
        "counts",
        "mask",
        "label shift",
        "token ids",
    }
    assert passed(checks.values())
    assert {"checksums", "ledger", "padding", "manifest"} <= {
        name for name, check in checks.items() if check.ok is None
    }


def test_foreign_faults_are_named(tmp_path: Path) -> None:
    make_foreign(tmp_path)
    with h5py.File(tmp_path / "output_chunk_0_1.h5", "r+") as file:
        file["data"][2, 1, 3] = 5
        file["data"][4, 2, 3] = 1 + file["data"][4, 0, 4] % 98
        file["data"][0, 0, 0] = -5
    found = failures(tmp_path)
    assert found["mask"] == "output_chunk_0_1.h5 row 2, attention_mask position 3: 5, expected 0 or 1"
    assert found["label shift"].startswith("output_chunk_0_1.h5 row 4, labels position 3: ")
    assert found["token ids"].startswith("output_chunk_0_1.h5 row 0, input_ids position 0: -5")
    with h5py.File(tmp_path / "output_chunk_0_2.h5", "w") as file:
        file["data"] = np.zeros((3, 3, 8), np.int32)
    assert (
        failures(tmp_path)["layout"]
        == "output_chunk_0_2.h5: rows of (3, 8) int32, but (3, 16) int32 in the first shard"
    )


def test_model_zoo_parameters_tell_the_vocabulary(tmp_path: Path) -> None:
    make_foreign(tmp_path)
    (tmp_path / "data_params.json").write_text(
        json.dumps({"processing": {"eos_id": 0, "vocab_size": 50}, "setup": 3})
    )
    assert "expected an id from 0 to 49" in failures(tmp_path)["token ids"]


def test_nothing_there_is_an_error_in_words(tmp_path: Path) -> None:
    for path in (tmp_path / "no", tmp_path):
        with pytest.raises(InputError, match="Name a dataset folder"):
            verify(path, lambda check: None)
    (tmp_path / "x.txt").write_text("x")
    with pytest.raises(InputError, match="is no shard"):
        verify(tmp_path / "x.txt", lambda check: None)


def test_a_line_names_check_and_place_and_cannot_command_the_terminal(
    capsys: pytest.CaptureFixture[str],
) -> None:
    console = terminal.console()
    show(Check("files", False, "1 fault", "a\x1b]0;x\x07[red]\u202e.h5: missing"), console)
    show(Check("ledger", None, "not made"), console)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["FAILED", "files", "1", "fault"]
    assert lines[1].strip() == r"a\x1b]0;x\x07[red]\u202e.h5: missing"
    assert lines[2].startswith("-")


def test_the_last_line_sums_up() -> None:
    good, bad, skipped = Check("a", True, ""), Check("b", False, "", "x"), Check("c", None, "")
    assert summary([good, good], 1) == Check("dataset", True, "2 checks passed, in 1.0 s")
    said = summary([good, bad, skipped], 1)
    assert said.ok is False
    assert said.detail == "1 of 2 checks failed: b, 1 not made, in 1.0 s"


# What dataset.json implies ----------------------------------------------------------------------------------


def change_configuration(**values: Any) -> Change:
    def change(manifest: Any) -> None:
        manifest["configuration"].update(values)
        refingerprint(manifest)

    return change


def refingerprint(manifest: Any) -> None:
    inputs = [
        [f["split"], f["name"], f["size"], f["digest"], f["source"], f["text_field"]]
        for f in manifest["inputs"]
    ]
    parts = [2, manifest["configuration"], inputs, manifest["tokenizer"]["fingerprint"], {}]
    manifest["fingerprint"] = dataset._digest(parts)


def reject_more(root: Path) -> None:
    with (root / "rejects.jsonl").open("a") as file:
        file.write('{"reason": "invalid_json"}\n')
    resign(root)


def empty(root: Path, name: str) -> None:
    (root / name).write_bytes(b"")
    resign(root)


CONTRADICTIONS: dict[str, tuple[Change, str, str]] = {
    "false configuration": (
        lambda root: edit_manifest(root, lambda m: m["configuration"].update(tail="drop")),
        "fingerprint",
        "what it describes gives",
    ),
    "other seed": (
        lambda root: edit_manifest(root, change_configuration(seed=9)),
        "configuration",
        "seed: 3, configuration.seed is 9",
    ),
    "other shuffle": (
        lambda root: edit_manifest(root, change_configuration(shuffle="none")),
        "configuration",
        "shuffle: 'samples', configuration.shuffle is 'none'",
    ),
    "other length": (
        lambda root: edit_manifest(root, change_configuration(seq_len=[{"seq_len": 99, "share": None}])),
        "configuration",
        "seq_len and set.share: 16 and None, configuration.seq_len[0] is 99 and None",
    ),
    "other files": (
        lambda root: edit_manifest(
            root,
            lambda m: (m["configuration"]["shards"].update(samples_per_file=6), refingerprint(m)),
        ),
        "configuration",
        "splits.train: ",
    ),
    "files in another order": (
        lambda root: edit_manifest(root, lambda m: m["splits"]["train"]["files"].reverse()),
        "configuration",
        "splits.train.files[0]: data-",
    ),
    "tail said to be dropped": (
        lambda root: edit_manifest(root, change_configuration(tail="drop")),
        "configuration",
        "splits.train.label_tokens: ",
    ),
    "no such setting": (
        lambda root: edit_manifest(root, change_configuration(sed=1)),
        "configuration",
        "there is no setting 'sed'. Did you mean seed?",
    ),
    "wrong value": (
        lambda root: edit_manifest(root, change_configuration(seed=-1)),
        "configuration",
        "configuration: seed",
    ),
    "other type of ids": (
        lambda root: edit_manifest(root, lambda m: m.update(dtype="uint32")),
        "configuration",
        "dtype: uint32, 100 ids need uint16",
    ),
    "not gpt2": (
        lambda root: edit_manifest(root, lambda m: m["tokenizer"].update(name="gpt2")),
        "tokenizer",
        "tokenizer.fingerprint: '0', expected",
    ),
    "dedupe without clusters": (
        lambda root: edit_manifest(root, change_configuration(dedupe={"method": "minhash"})),
        "outputs",
        "no clusters.parquet, which deduplication writes",
    ),
    "output left out": (
        lambda root: edit_manifest(root, lambda m: m["outputs"].pop()),
        "outputs",
        "no rejects.jsonl, which every dataset has",
    ),
    "emptied output": (
        lambda root: empty(root, "rejects.jsonl"),
        "outputs",
        "rejects.jsonl: 0 records of invalid_json, the ledger says 8",
    ),
    "one reject more": (reject_more, "outputs", "9 records of invalid_json, the ledger says 8"),
    "torn output": (
        lambda root: ((root / "rejects.jsonl").write_text('{"rea'), resign(root)),
        "outputs",
        "rejects.jsonl line 1: ",
    ),
    "a whole stage gone": (
        lambda root: edit_manifest(
            root, lambda m: m.update(ledger=[r for r in m["ledger"] if r["stage"] != "dedupe"])
        ),
        "ledger",
        "no row of the stage dedupe",
    ),
    "a split gone": (
        lambda root: edit_manifest(root, lambda m: m["splits"].pop("validation")),
        "configuration",
        "splits: no validation, which the ledger has after the shuffle",
    ),
    "no inputs": (
        lambda root: edit_manifest(root, lambda m: (m["inputs"].clear(), refingerprint(m))),
        "configuration",
        "inputs: none of train",
    ),
    "edited by hand": (
        lambda root: edit_manifest(root, lambda m: m.update(dedupe={}), seal=False),
        "manifest",
        "the file was changed or damaged",
    ),
}


def test_the_tokenizer_inside_the_package_is_the_one_that_verify_knows() -> None:
    tokenizer = load_tokenizer("gpt2", backend="reference")
    assert tokenizer.fingerprint == GPT2.fingerprint
    assert (tokenizer.eos_id, tokenizer.vocab_size) == (GPT2.eos_id, GPT2.vocab_size)


@pytest.mark.parametrize("kind", list(CONTRADICTIONS))
def test_a_dataset_that_contradicts_itself_is_found(sound: Path, kind: str) -> None:
    change, check, words = CONTRADICTIONS[kind]
    change(sound)
    assert words in failures(sound)[check]


@pytest.mark.parametrize(
    "name", ["train/data-00000.h5", "train/documents.parquet", "examples.jsonl", "rejects.jsonl"]
)
def test_a_pipe_in_place_of_a_file_is_named_and_does_not_hang(sound: Path, name: str) -> None:
    (sound / name).unlink()
    os.mkfifo(sound / name)
    assert failures(sound)["files"] == f"{name}: missing"


# The source -------------------------------------------------------------------------------------------------


def test_the_source_is_compared_byte_for_byte(sound: Path, tmp_path: Path) -> None:
    source = tmp_path / "source"
    content = {"train/a.jsonl": b"some text", "validation/a.jsonl": b"other text"}
    for name, data in content.items():
        (source / name).parent.mkdir(parents=True)
        (source / name).write_bytes(data)

    def record(manifest: Any) -> None:
        for file in manifest["inputs"]:
            data = content[file["name"]]
            file["size"], file["digest"] = len(data), input_digest.of_file(source / file["name"])
        manifest["inputs"][1]["digest"] = None
        refingerprint(manifest)

    edit_manifest(sound, record)
    checks = {check.name: check for check in verify(sound, lambda check: None, source)}
    assert checks["source"].detail == "1 input file with the recorded digest; of 1 only the size is recorded"
    assert passed(checks.values())

    def fault() -> str:
        return next(c.place or "" for c in verify(sound, lambda check: None, source) if c.name == "source")

    (source / "train/a.jsonl").write_bytes(b"same text")
    assert fault().startswith(f"{source}/train/a.jsonl: xxh3_128_64m:")
    (source / "train/a.jsonl").write_bytes(b"longer text")
    assert fault() == f"{source}/train/a.jsonl: 11 bytes, dataset.json says 9"
    (source / "train/a.jsonl").unlink()
    assert "train/a.jsonl cannot be read" in fault()
