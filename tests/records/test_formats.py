from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from msgspec.structs import replace

from btlm_data import pipeline
from btlm_data.progress import Lines
from btlm_data.recipe.load import load
from btlm_data.records import formats
from btlm_data.records.base import ReadRequest, RecordFormat
from btlm_data.records.batch import RecordBatch
from btlm_data.records.formats import classify
from btlm_data.records.json_document import JSON_LINES


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("a.jsonl", ("jsonl", "none")),
        ("a.JSONL.GZ", ("jsonl", "gzip")),
        ("b/a.jsonl.gzip", ("jsonl", "gzip")),
        ("a.ndjson.zst", ("jsonl", "zstd")),
        ("a.jsonlines.zstd", ("jsonl", "zstd")),
        ("a.json.bz2", ("json", "bzip2")),
        ("a.txt.xz", ("txt", "xz")),
        ("a.csv", ("csv", "none")),
        ("a.tsv.gz", ("tsv", "gzip")),
        ("part-0.snappy.parquet", ("parquet", "none")),
        ("data.arrow", ("arrow", "none")),
        ("a.feather", ("arrow", "none")),
        ("a.parquet.gz", None),
        ("a.arrow.zst", None),
        ("a.jsonl.gz.part", None),
        ("a.jsonl.gz.zst", None),
        ("a.jsonl.lz4", None),
        ("README.md", None),
        ("jsonl", None),
    ],
)
def test_a_name_says_format_and_compression(name: str, kind: tuple[str, str] | None) -> None:
    assert classify(name) == kind


def _read_shouting(request: ReadRequest) -> Iterator[RecordBatch]:
    """Documents between lines of exclamation marks."""
    data = request.path.read_text()
    batch = request.new_batch()
    offset = 0
    for number, part in enumerate(data.split("!!!\n")):
        batch.texts.append(part)
        batch.sources.append("shouted")
        batch.lines.append(number)
        batch.offsets.append(offset)
        offset += len(part.encode()) + 4
    batch.num_lines, batch.end, batch.final = len(batch.texts), offset, True
    yield batch


def test_a_new_format_is_one_value_in_the_list(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    toy = RecordFormat("shouting", (".shout",), _read_shouting, compressible=False)
    monkeypatch.setitem(formats.FORMATS, toy.name, toy)
    source = tmp_path / "in"
    source.mkdir()
    words = [" ".join(f"word{i}x{j}" for j in range(60)) for i in range(5)]
    (source / "a.shout").write_text("!!!\n".join(words))
    given = {"source.name": str(source), "run.out": str(tmp_path / "out"), "run.workers": 1, "seq_len": 64}
    pipeline.prepare(load(None, {key: (value, "test") for key, value in given.items()}), Lines())
    table = pq.read_table(tmp_path / "out" / "train" / "documents.parquet")
    assert table.num_rows == 5


def test_formats_share_no_name_and_no_ending() -> None:
    endings = list(formats.endings())
    assert len(endings) == len(set(endings))
    assert all(name == form.name for name, form in formats.FORMATS.items())
    assert replace(JSON_LINES, name="x") != JSON_LINES
