"""From a sample back to its documents: against documents and streams written by hand."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import pytest

from btlm_data import seeding
from btlm_data.errors import ConfigError, DataError, InputError
from btlm_data.formats.documents_table import DocumentTable
from btlm_data.formats.shard_formats.permutation import permute_index
from btlm_data.inspection import lookup
from btlm_data.inspection.opening import open_path
from tests.reference import dataset
from tests.reference.dataset import SEED, documents, stream_of

LENGTH = 16


@pytest.mark.parametrize("form", ["sample", "corpus"])
@pytest.mark.parametrize("shuffle", ["samples", "documents"])
@pytest.mark.parametrize("row_group", [3, 100])
def test_every_sample_names_the_documents_it_is_made_of(
    tmp_path: Path, form: str, shuffle: str, row_group: int
) -> None:
    chosen = documents(40, "train", 40)
    dataset.write(
        tmp_path, {"train": chosen}, form=form, shuffle=shuffle, row_group=row_group, seq_len=LENGTH
    )
    opened = open_path(tmp_path)
    rows = lookup.rows_of(opened, "train")
    table = DocumentTable(opened.documents_path("train"))
    stream = stream_of(chosen)
    owner = [(d, t) for d, document in enumerate(chosen) for t in range(len(document.tokens) + 1)]
    total = lookup.num_sequences(opened, rows)
    assert total == -(-(len(stream) - 1) // LENGTH)
    for number in range(total):
        view = msgspec.to_builtins(lookup.sample(opened, "train", number, rows, None, table))
        i = view["stream_sample"]
        if form == "sample" and shuffle == "samples":
            assert number == int(
                permute_index(np.array([i], np.uint64), total, seeding.salt(SEED, f"samples/{LENGTH}/train"))[
                    0
                ]
            )
        else:
            assert number == i
        start, stop = view["stream_positions"]
        assert start == i * LENGTH
        expected: dict[int, list[int]] = {}
        for position in range(start, stop):
            expected.setdefault(owner[position][0], []).append(position - start)
        found = {document["document"]: document for document in view["documents"]}
        assert list(found) == list(expected)
        for d, positions in expected.items():
            assert tuple(found[d]["positions"]) == (positions[0], positions[-1] + 1)
            assert (found[d]["file"], found[d]["line"], found[d]["source"]) == (
                "train/a.jsonl",
                d + 1,
                chosen[d].source,
            )
            assert found[d]["token_range"][0] == owner[start + positions[0]][1]
        ids = [
            token
            for segment in view["segments"]
            for token in [*segment["ids"], *([0] if segment["ends_document"] else [])]
        ]
        assert ids == stream[start:stop].tolist()


def test_samples_of_one_shard_count_from_its_first_row(tmp_path: Path) -> None:
    dataset.write(tmp_path, {"train": documents(40, "train", 40)})
    whole, one = open_path(tmp_path), open_path(tmp_path / "train/data-00002.h5")
    table = DocumentTable(whole.documents_path("train"))
    expected = msgspec.to_builtins(
        lookup.sample(whole, "train", 15, lookup.rows_of(whole, "train"), None, table)
    )
    found = msgspec.to_builtins(lookup.sample(one, "train", 1, lookup.rows_of(one, "train"), None, table))
    assert found | {"sample": 15} == expected
    assert expected["row"] == 1


def test_no_such_sample_is_an_error_that_names_the_range(tmp_path: Path) -> None:
    dataset.write(tmp_path, {"train": documents(40, "train", 40)})
    opened = open_path(tmp_path)
    rows = lookup.rows_of(opened, "train")
    for number in (-1, rows.total):
        with pytest.raises(
            ConfigError, match=f"no sample {number} in train. The samples are 0 to {rows.total - 1}"
        ):
            lookup.sample(opened, "train", number, rows)


def test_borders_of_foreign_rows_are_where_eos_stands(tmp_path: Path) -> None:
    planes = np.zeros((1, 3, 8), np.int32)
    planes[0, 0], planes[0, 1] = [5, 6, 0, 0, 7, 8, 9, 0], [1, 1, 1, 1, 1, 1, 0, 0]
    dataset.write_shard(tmp_path / "x.h5", planes)
    (tmp_path / "data_params.json").write_text('{"processing": {"eos_id": 0}}')
    opened = open_path(tmp_path)
    view = msgspec.to_builtins(lookup.sample(opened, tmp_path.name, 0, lookup.rows_of(opened, tmp_path.name)))
    assert [(s["positions"], s["ends_document"]) for s in view["segments"]] == [
        ((0, 3), True),
        ((3, 4), True),
        ((4, 6), False),
    ]
    assert view["documents"] is None
    assert "no dataset.json" in view["note"]


def test_vsl_rows_are_cut_where_positions_restart(tmp_path: Path) -> None:
    planes = np.zeros((1, 5, 6), np.int32)
    planes[0] = [
        [5, 6, 7, 8, 9, 0],
        [1, 1, 1, 1, 1, 0],
        [6, 0, 8, 9, 4, 0],
        [1, 0, 2, 1, 0, 0],
        [0, 1, 0, 1, 2, 0],
    ]
    dataset.write_shard(tmp_path / "x.h5", planes)
    (tmp_path / "data_params.json").write_text('{"processing": {"eos_id": 0}}')
    opened = open_path(tmp_path)
    view = msgspec.to_builtins(lookup.sample(opened, tmp_path.name, 0, lookup.rows_of(opened, tmp_path.name)))
    assert [(s["positions"], s["ends_document"]) for s in view["segments"]] == [
        ((0, 2), True),
        ((2, 5), False),
    ]
    assert view["real_positions"] == 5


def test_documents_without_tokens_take_one_position(tmp_path: Path) -> None:
    empty = dataset.Document("train/a.jsonl", 0, "Web", ())
    dataset.write_documents(tmp_path / "documents.parquet", [empty] * 10, row_group=3)
    table = DocumentTable(tmp_path / "documents.parquet")
    assert [d["row"] for d in table.between(2, 7)] == [2, 3, 4, 5, 6]
    dataset.write_documents(tmp_path / "documents.parquet", [])
    assert list(DocumentTable(tmp_path / "documents.parquet").between(0, 9)) == []


def test_a_table_that_is_none_is_refused_in_words(tmp_path: Path) -> None:
    path = tmp_path / "documents.parquet"
    with pytest.raises(DataError, match="There is no"):
        DocumentTable(path)
    path.write_bytes(b"PAR1 but not really")
    with pytest.raises(DataError, match="is damaged"):
        DocumentTable(path)


def test_a_remote_dataset_is_refused_in_words() -> None:
    with pytest.raises(InputError, match="s3://bucket/dataset is no folder on this machine"):
        open_path(Path("s3://bucket/dataset"))
