"""The key index of `btlm-data index`: with it, documents are found as without it, and few row groups are read."""

from __future__ import annotations

import random
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from btlm_data.errors import DataError, InputError
from btlm_data.formats import columns
from btlm_data.formats import key_index as stored
from btlm_data.formats.documents_table import DocumentTable
from btlm_data.inspection import verify
from btlm_data.lineage import hash_parts, key_index
from btlm_data.lineage.datasets import SetView, open_dataset
from btlm_data.lineage.forget import forget
from btlm_data.lineage.queries import Query, make
from btlm_data.lineage.search import Search
from btlm_data.lineage.trace import trace
from btlm_data.stages import documents as documents_stage
from btlm_data.storage import open_store
from tests.lineage.corpora import Killed, prepared, records


def chosen() -> list[dict[str, Any]]:
    """Documents of which some have no id, no URL, or another one's; some are too short, some are copies."""
    drawn, found = random.Random(11), records(110, 11)
    for record in found:
        if drawn.random() < 0.1:
            del record["id"]
        if drawn.random() < 0.1:
            record["url"] = "https://again.example/ä"
    return found


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SetView]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(documents_stage, "ROW_GROUP", 8)
        patch.setattr(key_index, "_PART_ENTRIES", 40)
        of_set = prepared(tmp_path_factory.mktemp("keys"), chosen(), seq_len=24, source__keep_fields=["url"])
        assert key_index.make(of_set.root).made == 1
        yield open_dataset(of_set.root)[0]


def questions(of_set: SetView) -> list[Query]:
    """Of every document in every way, and of some that there are not."""
    asked = [
        make("any", "doc-x"),
        make("hash", "ab" * 16),
        make("line", "none.jsonl:3"),
        make("id", "docs.jsonl#1"),
    ]
    for number, record in enumerate(chosen(), 1):
        asked.append(make("line", f"docs.jsonl:{number}"))
        asked += [make("id", record["id"])] if "id" in record else []
        asked.append(make("url", record["url"]))
    tables = [*(view.table for view in of_set.splits.values()), of_set.dropped]
    for table in tables:
        assert table is not None
        for row in table.described(range(table.num_rows)):
            asked.append(make("any", row["hash"].hex()))
            asked.append(make("id", f"{row['file']}#{row['offset']}"))
    return asked


def test_what_is_found_is_what_whole_columns_have(made: SetView, monkeypatch: pytest.MonkeyPatch) -> None:
    asked, read = questions(made), list[int]()
    value = stored.read(made.root)
    assert value is not None
    assert value.groups > 12

    def counted(self: DocumentTable, wanted: Any, groups: Any = None) -> list[int]:
        read.append(self.num_groups if groups is None else len(groups))
        return matching(self, wanted, groups)

    matching = DocumentTable.matching
    monkeypatch.setattr(DocumentTable, "matching", counted)
    with_index = trace(made.root, asked)
    one_by_one = [trace(made.root, [query])[0] for query in asked[:25]]
    few, read[:] = sum(read[-25:]), []
    aside = made.root / "aside"
    (made.root / stored.FOLDER).rename(aside)
    try:
        assert trace(made.root, asked) == with_index
        assert [trace(made.root, [query])[0] for query in asked[:25]] == one_by_one
    finally:
        aside.rename(made.root / stored.FOLDER)
    assert few < sum(read[-25:]) / 5
    answered = [bool(answer.documents or answer.dropped) for answer in with_index]
    assert answered[:4] == [False] * 4
    assert all(answered[4:])


@settings(max_examples=30)
@given(
    st.lists(st.tuples(st.integers(0, 2**64 - 1), st.integers(0, 300)), max_size=200),
    st.integers(0, 3),
    st.booleans(),
)
def test_every_entry_of_a_part_is_found(
    tmp_path_factory: pytest.TempPathFactory, pairs: list[tuple[int, int]], first: int, alike: bool
) -> None:
    entries = np.array([(h >> 40 << 40 if alike else h, group) for h, group in pairs], key_index._ENTRY)
    own = entries[hash_parts.bits_of(entries["hash"], 0, first) == 0]
    store = open_store(tmp_path_factory.mktemp("part"))
    part = key_index._part(store, "id-0000", own, first, np.dtype("<u2"))
    again = key_index._part(store, "again", own[::-1], first, np.dtype("<u2"))
    assert (part.checksum, part.entries) == (again.checksum, again.entries)
    opened = columns.Columns(store, columns.find(store, "id-0000"))  # type: ignore[arg-type]
    for entry in own:
        found = set(key_index._groups(opened, entry["hash"][None], first))
        assert int(entry["group"]) in found
        bucket_bits = (opened.shape("edge")[0] - 1).bit_length() - 1
        same = {
            int(other["group"])
            for other in own
            if int(other["hash"] ^ entry["hash"]) >> (64 - first - bucket_bits - stored.CHECK_BITS) == 0
        }
        assert found == same


def test_a_key_takes_few_bytes_and_names_few_wrong_groups(tmp_path: Path) -> None:
    rows, drawn = 200_000, np.random.default_rng(2)
    entries = np.empty(rows, key_index._ENTRY)
    entries["hash"] = drawn.integers(0, 2**64 - 1, rows, np.uint64)
    entries["group"] = np.arange(rows) // 26
    store = open_store(tmp_path)
    part = key_index._part(store, "id-0000", entries, 0, np.dtype("<u2"))
    assert part.bytes < 3.6 * rows
    opened = columns.Columns(store, columns.find(store, "id-0000"))  # type: ignore[arg-type]
    absent = drawn.integers(0, 2**64 - 1, 2000, np.uint64)
    assert len(list(key_index._groups(opened, absent, 0))) < 2000 / 8


def test_rows_without_a_key_and_files_with_numbers() -> None:
    hashes = stored.pairs(np.full(1000, 7, np.uint64), np.arange(1000, dtype=np.uint64))
    assert len(np.unique(hashes >> np.uint64(32))) == 1000
    assert stored.pairs(hashes[:1], hashes[:1])[0] != stored.pairs(hashes[1:2], hashes[:1])[0]


def test_the_same_bytes_every_time_and_nothing_of_a_killed_call(
    made: SetView, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, work = made.root / stored.FOLDER, made.root / stored.WORK_FOLDER
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert len(before) > 10
    assert key_index.make(made.root).made == 0
    shutil.rmtree(folder)
    monkeypatch.setattr(key_index, "_PART_ENTRIES", 40)
    monkeypatch.setattr(hash_parts, "_BUFFERED", 64)

    def killed(*_: object) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(key_index, "_part", killed)
        with pytest.raises(Killed):
            key_index.make(made.root)
    assert work.is_dir()
    assert not folder.exists()
    key_index.make(made.root)
    assert not work.exists()
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


@pytest.mark.parametrize("how", ["mask", "remove"])
def test_what_was_forgotten_is_in_no_index(made: SetView, tmp_path: Path, how: Any) -> None:
    root = tmp_path / "copy"
    shutil.copytree(made.root, root)
    gone = next(made.splits["train"].table.described([5]))
    asked = [make("hash", gone["hash"].hex()), make("line", f"docs.jsonl:{gone['line'] + 1}")]
    assert forget(root, asked[:1], how=how).indexes
    assert not (root / stored.FOLDER).exists()
    without = trace(root, asked)
    assert key_index.make(root).made == 1
    assert trace(root, asked) == without
    assert [check.ok for check in verify.verify(root, lambda _: None) if check.name == "key index"] == [True]


def test_damage_is_named_and_an_index_of_another_dataset_is_not_used(made: SetView, tmp_path: Path) -> None:
    root = tmp_path / "copy"
    shutil.copytree(made.root, root)
    asked = [make("id", record["id"]) for record in chosen() if "id" in record]
    expected = trace(made.root, asked[:9])

    def checked() -> list[bool | None]:
        return [check.ok for check in verify.verify(root, lambda _: None) if check.name == "key index"]

    for part in (root / stored.FOLDER).glob("id-*"):
        data = bytearray(part.read_bytes())
        data[-1] ^= 1  # in the checksums of the chunks
        part.write_bytes(data)
    assert checked() == [False]
    with pytest.raises(DataError, match="key index is damaged"):
        trace(root, asked)
    value = stored.read(root)
    assert value is not None
    other = stored.KeyIndexFile("0" * 64, value.tables, value.kinds)
    (root / stored.FOLDER / stored.FILE_NAME).write_bytes(stored.encode(other))
    assert checked() == [None]
    assert [answer.documents for answer in trace(root, asked[:9])] == [
        [_moved(document, made.root, root) for document in answer.documents] for answer in expected
    ]
    assert key_index.make(root).made == 1
    assert checked() == [True]
    shutil.rmtree(root / stored.FOLDER)
    (root / stored.FOLDER).write_text("mine")
    with pytest.raises(InputError, match="in the way"):
        key_index.make(root)


def _moved(document: Any, old: Path, new: Path) -> Any:
    import msgspec

    places = [
        msgspec.structs.replace(place, shard=place.shard.replace(str(old), str(new)))
        for place in document.places
    ]
    return msgspec.structs.replace(document, places=places)


def test_an_index_that_claims_other_things_is_refused(made: SetView, tmp_path: Path) -> None:
    root = tmp_path / "copy"
    shutil.copytree(made.root, root)
    value, of_set = stored.read(root), open_dataset(root)[0]
    assert value is not None
    search = Search("hash", {"hash": {b"x" * 16}}, np.arange(0, 2**64 - 1, 2**57, dtype=np.uint64))
    fewer = [stored.IndexedTable(table.name, 1, table.rows) for table in value.tables]
    index = key_index.KeyIndex(root, stored.KeyIndexFile(value.dataset, fewer, value.kinds))
    every = np.array(
        [stored.of_digest(r["hash"]) for r in of_set.splits["train"].table.described(range(50))], np.uint64
    )
    with pytest.raises(DataError, match="it names row group"):
        index.groups("train/documents.parquet", Search("hash", search.wanted, every))
    assert key_index.KeyIndex(root, value).groups("other.parquet", search) is None
    more = [stored.IndexedTable(table.name, table.groups + 9, table.rows) for table in value.tables]
    with pytest.raises(DataError, match="damaged"):
        of_set.splits["train"].table.matching(search.wanted, [more[0].groups])
    with pytest.raises(ValueError, match="power of two"):
        stored.KeyIndexFile(value.dataset, fewer, {"id": value.kinds["id"][:1] * 3})
