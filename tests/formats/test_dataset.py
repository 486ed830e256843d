"""dataset.json from a stranger: every mistake is named with key and value, no name leads out of the
folder.
"""

from __future__ import annotations

import json
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from btlm_data.errors import DataError
from btlm_data.formats import dataset, provenance
from btlm_data.formats.dataset import Dataset, SetList
from btlm_data.formats.sealed_json import checksum_of, sealed
from btlm_data.storage import open_store
from tests.reference import dataset as reference

GOLDEN = Path(__file__).parent.parent / "golden" / "dataset"


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("shards")
    reference.write(
        root, {s: reference.documents(9, s, seed=n) for n, s in enumerate(("validation", "train"))}
    )
    return root


def edited(written: Path, change: Callable[[Any], object], *, seal: bool = True) -> bytes:
    tree = json.loads((written / "dataset.json").read_bytes())
    change(tree)
    return sealed(tree) if seal else json.dumps(tree).encode()


def test_a_value_gives_the_same_bytes_and_comes_back(written: Path) -> None:
    value = dataset.read_set(written)
    data = dataset.encode(value)
    again = dataset.decode(data, "x")
    assert isinstance(again, Dataset)
    assert dataset.encode(again) == data == dataset.encode(dataset.read_set(written))
    assert again.checksum == checksum_of(json.loads(data))
    assert data.endswith(b"}\n")
    assert json.loads(data) == json.loads((written / "dataset.json").read_bytes())
    assert again.fingerprint == again.expected_fingerprint()


def test_the_reader_finds_it_by_folder_and_by_name_and_from_a_store(written: Path) -> None:
    class Store:
        shown = "s3://bucket/shards"

        def size(self, name: str) -> int | None:
            return (written / name).stat().st_size if (written / name).exists() else None

        def read(self, name: str) -> bytes:
            return (written / name).read_bytes()

    class Empty(Store):
        def size(self, name: str) -> int | None:
            return None

    value = dataset.read(written)
    assert value == dataset.read(written / "dataset.json") == dataset.read(Store())
    with pytest.raises(DataError, match=r"There is no s3://bucket/shards/dataset.json"):
        dataset.read(Empty())


def test_lookups(written: Path) -> None:
    value = dataset.read_set(written)
    assert list(value.splits) == ["train", "validation"]  # whatever the order in the file
    names = [file.name for file in value.stored()]
    assert names[0] == "train/data-00000.h5"
    assert {"train/documents.parquet", "validation/documents.parquet", "examples.jsonl"} <= set(names)
    assert all((written / file.name).stat().st_size == file.bytes for file in value.stored())
    assert value.rows("pack", "train")[0].split == "train"
    with pytest.raises(DataError, match=r"There is no split 'dev'. The dataset has train, validation"):
        value.split("dev")


def test_the_golden_files_are_read(tmp_path: Path) -> None:
    one = dataset.decode((GOLDEN / "dataset.json").read_bytes(), "golden")
    assert isinstance(one, Dataset)
    assert one.checksum == "fa580d9d8b25b0c6941312db0caf86da76b20b8d6c06340d5a66961141ad2878"
    assert dataset.encode(one) == (GOLDEN / "dataset.json").read_bytes()
    several = dataset.decode((GOLDEN / "sets.json").read_bytes(), "golden")
    assert isinstance(several, SetList)
    assert several.names == ["msl512", "msl2048"]
    made = provenance.decode((GOLDEN / "provenance.json").read_bytes(), "golden")
    assert made.dataset == one.checksum


MISTAKES: dict[str, tuple[Callable[[Any], object], str]] = {
    "missing key": (lambda d: d.pop("splits"), "x: the file: it missing required field splits"),
    "unknown key": (lambda d: d.update(hello=1), "it contains unknown field hello"),
    "wrong type": (lambda d: d.update(seq_len="16"), "x: seq_len: Expected int, got str, found '16'"),
    "out of range": (
        lambda d: d["splits"]["validation"].update(documents=-1),
        "x: splits.validation.documents: Expected int >= 0, found -1",
    ),
    "huge": (
        lambda d: d["splits"]["train"]["files"][0].update(bytes=2**60),
        "x: splits.train.files[0].bytes: Expected int <= 9007199254740992",
    ),
    "fingerprint": (
        lambda d: d.update(fingerprint="0" * 63),
        "x: fingerprint: Expected 64 hexadecimal digits",
    ),
    "newline": (lambda d: d.update(fingerprint="0" * 64 + "\n"), "x: fingerprint: Expected 64 hexadecimal"),
    "split name": (
        lambda d: d["splits"].update({"../evil": d["splits"]["train"]}),
        """x: splits: Expected train, validation or test, found '../evil'""",
    ),
    "dropped amount": (
        lambda d: d["ledger"][2]["dropped"].update(a={"documents": 1}, b={"documents": "x"}, c={}),
        "x: ledger[2].dropped.b.documents: Expected int, got str, found 'x'",
    ),
    "stage": (lambda d: d["ledger"][0].update(stage="cook"), "x: ledger[0].stage: Invalid enum value 'cook'"),
    "eos": (lambda d: d["tokenizer"].update(eos_id=10**6), "x: tokenizer: eos_id is 1000000, expected an id"),
    "set": (lambda d: d["set"].update(index=4), "x: set: index is 4"),
    "twice": (
        lambda d: d["splits"]["train"]["files"].append(d["splits"]["train"]["files"][0]),
        "x: splits.train: the shard data-00000.h5 is listed twice in files",
    ),
    "version": (lambda d: d.update(format_version=3), "x has format version 3; this program reads 2"),
    "old version": (lambda d: d.update(format_version=1), "Prepare the dataset again"),
    "not a number": (lambda d: d["set"].update(share=0), "x: set.share: Expected float > 0.0, found 0"),
}


@pytest.mark.parametrize("kind", list(MISTAKES))
def test_a_mistake_is_named_with_its_key_and_value(written: Path, kind: str) -> None:
    change, words = MISTAKES[kind]
    with pytest.raises(DataError) as error:
        dataset.decode(edited(written, change), "x")
    assert words in str(error.value)


@pytest.mark.parametrize(
    "name", ["../x.h5", "/etc/x.h5", "a/b.h5", "a\\b.h5", "..", "", ".hidden.h5", "x.h5\n", "x\0.h5"]
)
@pytest.mark.parametrize("place", ["shard", "table", "output", "set", "split", "input", "position"])
def test_no_name_leads_out_of_the_folder(written: Path, name: str, place: str) -> None:
    if place == "input" and name in ("a/b.h5", "a\\b.h5", ".hidden.h5", "x.h5\n"):
        return  # names of a corpus may be so: they are relative and stay inside
    if place == "position" and name == "":
        return  # the only set lies in the dataset's own folder
    changes: dict[str, Callable[[Any], object]] = {
        "shard": lambda d: d["splits"]["train"]["files"][0].update(name=name),
        "table": lambda d: d["splits"]["train"]["documents_file"].update(name=name),
        "output": lambda d: d["outputs"][0].update(name=name),
        "split": lambda d: d["splits"].update({name: d["splits"]["train"]}),
        "input": lambda d: d["inputs"][0].update(name=name),
        "position": lambda d: d["set"].update(names=[name]),
    }
    if place == "set":
        tree = {"format_version": 2, "fingerprint": "0" * 64, "sets": [{"name": name, "checksum": "0" * 64}]}
        data = sealed(tree)
    else:
        data = edited(written, changes[place])
    with pytest.raises(DataError):
        dataset.decode(data, "x")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "There is no"),
        (b"", "is not valid JSON"),
        (b"{", "is not valid JSON"),
        (b"\xff", "is not valid JSON"),
        (b"[" * 100_000, "is not valid JSON"),
        (b"[]", "holds a list, expected an object"),
        (b'{"format_version": 2, "seed": 1e999}', "is not valid JSON"),
        (b'{"format_version": 2, "seed": NaN}', "is not valid JSON"),
        (b'{"format_version": 99}', "version 99"),
        (b'{"format_version": true}', "version True"),
    ],
)
def test_what_is_no_dataset_is_refused(tmp_path: Path, content: bytes | None, words: str) -> None:
    if content is not None:
        (tmp_path / "dataset.json").write_bytes(content)
    with pytest.raises(DataError, match=words):
        dataset.read(tmp_path)


def test_a_pipe_a_folder_and_a_huge_file_are_refused_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    os.mkfifo(tmp_path / "dataset.json")
    with pytest.raises(DataError, match="not a regular file"):
        dataset.read(tmp_path)
    (tmp_path / "dataset.json").unlink()
    (tmp_path / "dataset.json").mkdir()
    with pytest.raises(DataError, match="not a regular file"):
        dataset.read(tmp_path)
    (tmp_path / "dataset.json").rmdir()
    with (tmp_path / "dataset.json").open("wb") as file:
        file.truncate(dataset.MAX_BYTES + 1)
    with pytest.raises(DataError, match="at most"):
        dataset.read(tmp_path)


def test_an_edited_file_is_noticed_by_its_checksum(written: Path) -> None:
    data = edited(written, lambda d: d.update(seed=1), seal=False)
    with pytest.raises(DataError, match=r"checksum is .* the file was changed or damaged"):
        dataset.decode(data, "x")
    assert dataset.decode(data, "x", sealed=False)


def test_every_flipped_bit_is_noticed(written: Path) -> None:
    data = dataset.encode(dataset.read_set(written))
    random_ = random.Random(0)
    for _ in range(400):
        flipped = bytearray(data)
        flipped[random_.randrange(len(data))] ^= 1 << random_.randrange(8)
        with pytest.raises(DataError):
            dataset.decode(bytes(flipped), "x")


@settings(max_examples=150, deadline=None)
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
        max_leaves=8,
    ),
    st.data(),
)
def test_any_value_anywhere_gives_a_dataset_or_words(written: Path, value: Any, data: st.DataObject) -> None:
    tree = json.loads((written / "dataset.json").read_bytes())
    at: Any = tree
    while True:
        keys = list(at) if isinstance(at, dict) else list(range(len(at)))
        key = data.draw(st.sampled_from(keys))
        if not isinstance(at[key], dict | list) or not at[key] or data.draw(st.booleans()):
            break
        at = at[key]
    at[key] = value
    try:
        dataset.decode(json.dumps(tree).encode(), "x", sealed=False)
    except DataError as error:
        assert str(error).startswith("x")  # noqa: PT017


def test_a_set_list_and_its_sets_must_be_of_one_run(tmp_path: Path) -> None:
    for index, name in enumerate(("msl8", "msl16")):
        (tmp_path / name).mkdir()
        reference.write(
            tmp_path / name, {"train": reference.documents(9, "train")}, sets=(index, ("msl8", "msl16"), None)
        )
    reference.write_set_list(tmp_path, ["msl8", "msl16"])
    assert list(dataset.read_sets(tmp_path)) == ["msl8", "msl16"]
    with pytest.raises(DataError, match="holds 2 sets, one was expected"):
        dataset.read_set(tmp_path)
    reference.edit_manifest(tmp_path / "msl16", lambda d: d.update(seed=4))
    with pytest.raises(DataError, match=r"msl16/dataset.json has checksum .* not of one run"):
        dataset.read_sets(tmp_path)


def test_the_fingerprint_covers_content_and_no_place(written: Path) -> None:
    value = dataset.read_set(written)
    configuration: dict[str, Any] = {
        "clean": {
            "filters": [
                "c4",
                "/d/rules.py:keep",
                {"c4": {"bad_words_file": "/d/words.txt", "x": "a/b"}},
                {"function": "/d/more.py:keep", "pattern": "a/b"},
            ]
        },
        "dedupe": {"index": "/e/index"},
        "holdout": {"decontaminate": ["/f/a.jsonl", "hf://datasets/o/n"]},
        "source": {"name": "/a", "revision": "r", "text_field": "text"},
        "tokenizer": {"name": "/b/tokenizer.json", "eos": None},
        "seed": 1,
    }
    kept = dataset.without_locations(configuration)
    assert kept == {
        "clean": {
            "filters": [
                "c4",
                "rules.py:keep",
                {"c4": {"bad_words_file": "words.txt", "x": "a/b"}},
                {"function": "more.py:keep", "pattern": "a/b"},
            ]
        },
        "dedupe": {"index": "index"},
        "holdout": {"decontaminate": ["a.jsonl", "n"]},
        "source": {"text_field": "text"},
        "tokenizer": {"eos": None},
        "seed": 1,
    }
    assert configuration["clean"]["filters"][1] == "/d/rules.py:keep"
    assert configuration["source"] == {"name": "/a", "revision": "r", "text_field": "text"}
    first = dataset.fingerprint_of(kept, value.inputs, "t", {})
    assert first != dataset.fingerprint_of(kept, value.inputs[:1], "t", {})
    assert first != dataset.fingerprint_of(kept, value.inputs, "u", {})
    assert first != dataset.fingerprint_of(kept, value.inputs, "t", {"filters": "f"})
    changed = [msgspec.structs.replace(value.inputs[0], digest="sha256:" + "0" * 64), *value.inputs[1:]]
    assert first != dataset.fingerprint_of(kept, changed, "t", {})


def test_a_dataset_that_is_not_finished_is_no_other_folder(tmp_path: Path) -> None:
    """In a folder and in a store; who asks for it is told to finish it, not to look elsewhere."""
    for location in (tmp_path, open_store(tmp_path)):
        with pytest.raises(DataError, match="Name a dataset folder made by"):
            dataset.read(location)
    (tmp_path / dataset.UNFINISHED_NAME).write_text("{}")
    for location in (tmp_path, tmp_path / dataset.FILE_NAME, open_store(tmp_path)):
        with pytest.raises(DataError, match="is being prepared, or its run was stopped"):
            dataset.read(location)
