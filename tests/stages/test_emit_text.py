from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from btlm_data.errors import OutputError
from btlm_data.stages import emit_text
from btlm_data.stages.emit_text import DOCUMENTS_PER_FILE, OutputFile, Stretch, Written, chosen, plan
from btlm_data.storage import open_store


def write_file(folder: Path, file: OutputFile, documents: Iterable[tuple[str, str]]) -> Written:
    """Write an output file into a folder, as the task that does so."""
    lines = (emit_text.encode(text, source, {"text": text}, "text") for text, source in documents)
    with open_store(folder).create(file.name) as creating:
        return emit_text.write_file(creating.file, file, lines)


def decompressed(path: Path) -> list[dict[str, object]]:
    data = zstandard.ZstdDecompressor().decompressobj().decompress(path.read_bytes())
    return [json.loads(line) for line in data.splitlines()]


@given(st.lists(st.integers(0, 30), max_size=12), st.integers(1, 25))
def test_the_plan_takes_each_document_once_and_in_order(kept: list[int], per_file: int) -> None:
    files = plan("train", kept, per_file)
    taken = [(s.block, n) for file in files for s in file.stretches for n in range(s.start, s.stop)]
    assert taken == [(block, n) for block, number in enumerate(kept) for n in range(number)]
    assert all(file.num_documents == per_file for file in files[:-1])
    assert all(0 < file.num_documents <= per_file for file in files[-1:])
    assert len({file.name for file in files}) == len(files)


def test_names_are_slimpajamas() -> None:
    names = [file.name for file in plan("train", [59_166 * DOCUMENTS_PER_FILE])]
    assert (names[0], names[-1]) == (
        "train/chunk1/example_train_0.jsonl.zst",
        "train/chunk10/example_train_59165.jsonl.zst",
    )
    assert names[3300] == "train/chunk1/example_train_3300.jsonl.zst"
    assert [file.name for file in plan("validation", [25], 10)] == [
        f"validation/chunk{n + 1}/example_holdout_{n}.jsonl.zst" for n in range(3)
    ]
    assert plan("test", [0, 0]) == []


def test_a_file_holds_the_documents_in_slimpajamas_form(tmp_path: Path) -> None:
    documents = [
        ("plain", "RedPajamaC4"),
        ('quotes "and" \n breaks', "RedPajamaArXiv"),
        ("日本語 ✔ \u2028", "unnamed"),
    ]
    file = OutputFile("train/chunk1/example_train_0.jsonl.zst", (Stretch(0, 0, 3),))
    written = write_file(tmp_path, file, iter(documents))
    path = tmp_path / file.name
    assert decompressed(path) == [
        {"text": text, "meta": {"redpajama_set_name": name}} for text, name in documents
    ]
    assert written.num_documents == 3
    assert (written.size, written.sha256) == (
        path.stat().st_size,
        hashlib.sha256(path.read_bytes()).hexdigest(),
    )
    again = write_file(tmp_path / "again", file, documents)
    assert again == written


def test_a_wrong_number_of_documents_leaves_no_file(tmp_path: Path) -> None:
    file = OutputFile("train/chunk1/example_train_0.jsonl.zst", (Stretch(0, 0, 2),))
    with pytest.raises(OutputError, match="1 documents came where 2 were planned"):
        write_file(tmp_path, file, [("one", "x")])
    assert not [p for p in tmp_path.rglob("*") if p.is_file()]


def test_chosen_is_a_stretch() -> None:
    documents = [str(n).encode() for n in range(10)]
    assert list(chosen(iter(documents), 3, 6)) == documents[3:6]
    assert list(chosen(iter(documents), 8, 20)) == documents[8:]
