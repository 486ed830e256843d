"""Every reader of outside bytes, given damaged and hostile files: rejects, never an exception; memory stays bounded."""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import json
import lzma
import resource
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.ipc as ipc
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from btlm_data.errors import BtlmError
from btlm_data.records.base import Fields, ReadOptions
from btlm_data.records.describe import describe_fields
from btlm_data.records.formats import classify
from tests.records.helpers import batches
from tests.strategies import compress, source_file

RECORDS: list[dict[str, Any]] = [
    {"text": f"document {i} é " * (i % 5), "meta": {"redpajama_set_name": f"S{i % 2}", "n": [i]}, "x": None}
    for i in range(40)
]


def _parquet(**options: Any) -> bytes:
    out = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(RECORDS), out, row_group_size=15, **options)
    return out.getvalue()


def _arrow(make: Callable[..., Any], compression: str | None) -> bytes:
    table, out = pa.Table.from_pylist(RECORDS), io.BytesIO()
    with make(out, table.schema, options=ipc.IpcWriteOptions(compression=compression)) as writer:
        writer.write_table(table, max_chunksize=15)
    return out.getvalue()


def _csv() -> bytes:
    out = io.StringIO()
    writer = csv.writer(out)
    writer.writerows([["text", "meta"], *([r["text"] + '"\n,', json.dumps(r["meta"])] for r in RECORDS)])
    return out.getvalue().encode()


def _warc() -> bytes:
    http = b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\n\r\n<html><body><p>A page.</p></body></html>"
    heads = ["WARC/1.0", "WARC-Type: response", "WARC-Target-URI: u", "WARC-Date: 2024-01-01T00:00:00Z",
             "Content-Type: application/http; msgtype=response", f"Content-Length: {len(http)}"]  # fmt: skip
    return ("\r\n".join(heads) + "\r\n\r\n").encode() + http + b"\r\n\r\n"


LINES = b"".join(json.dumps(record, ensure_ascii=False).encode() + b"\n" for record in RECORDS)
SEEDS: dict[str, bytes] = {
    "a.jsonl": LINES,
    "array.json": json.dumps(RECORDS).encode(),
    "pretty.json": json.dumps(RECORDS, indent=1).encode(),
    "a.csv": _csv(),
    "a.txt": LINES,
    "plain.parquet": _parquet(use_dictionary=False, compression="none"),
    "a.parquet": _parquet(),
    "pages.parquet": _parquet(data_page_version="2.0", compression="zstd", write_page_index=True),
    "file.arrow": _arrow(ipc.new_file, None),
    "stream.arrow": _arrow(ipc.new_stream, None),
    "a.warc": _warc() * 3,
    "packed.arrow": _arrow(ipc.new_file, "zstd"),
    **{f"a.jsonl{ending}": compress(LINES, kind, 3, checksum=True)
       for kind, ending in (("gzip", ".gz"), ("zstd", ".zst"), ("bzip2", ".bz2"), ("xz", ".xz"))},
}  # fmt: skip


@st.composite
def mutations(draw: st.DrawFn) -> tuple[str, bytes]:
    """A valid file, and the same with bytes flipped, overwritten, repeated, cut out or cut off."""
    name = draw(st.sampled_from(sorted(SEEDS)))
    data = bytearray(SEEDS[name])
    for _ in range(draw(st.integers(1, 4))):
        place = draw(st.integers(0, max(0, len(data) - 1)))
        if draw(st.booleans()) and len(data) > 64:  # headers and footers decide most
            place = draw(st.sampled_from([place % 64, len(data) - 1 - place % 64]))
        how = draw(st.sampled_from(["flip", "overwrite", "number", "repeat", "delete", "cut"]))
        if how == "flip" and data:
            data[place] ^= draw(st.integers(1, 255))
        elif how == "overwrite":
            new = draw(st.binary(min_size=1, max_size=8))
            data[place : place + len(new)] = new
        elif how == "number":
            new = struct.pack(
                "<q", draw(st.sampled_from([0, -1, 2**31 - 1, 2**31, 2**40, 2**63 - 1, -(2**63)]))
            )
            data[place : place + 8] = new
        elif how == "repeat":
            data[place:place] = data[place : place + draw(st.integers(1, 400))]
        elif how == "delete":
            del data[place : place + draw(st.integers(1, 50))]
        else:
            del data[place:]
    return name, bytes(data)


def _read_all(path: Path) -> None:
    """In every way there is; documents and rejects are what they say."""
    for options in (
        {},
        {"text_join": " ", "txt": "paragraphs"},
        {"encoding": "utf-16"},
        {"max_record_bytes": 60, "max_window": 2**20},
    ):
        for with_records in (False, True):
            for batch in batches(path, batch_bytes=500, with_records=with_records, **options):
                assert len(batch.texts) == len(batch.sources) == len(batch.lines) == len(batch.offsets)
                assert "".join(batch.texts + batch.sources).encode() is not None
                assert all(reject.reason and reject.detail for reject in batch.rejects)
                for record in [*(batch.records or []), *(batch.rejected_records or [])]:
                    assert record is None or record.fields() is not None
    assert describe_fields(path, source_file(path), ReadOptions(Fields("meta.n")), 5) is not None


@settings(
    max_examples=250,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(case=mutations())
def test_mutated_files(tmp_path: Path, case: tuple[str, bytes]) -> None:
    name, data = case
    path = tmp_path / name
    path.write_bytes(data)
    try:
        _read_all(path)
    except BtlmError:
        pass
    finally:
        path.unlink()


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(name=st.sampled_from(sorted(SEEDS)), start=st.integers(0, 12), data=st.binary(max_size=300))
def test_any_bytes_at_all(tmp_path: Path, name: str, start: int, data: bytes) -> None:
    path = tmp_path / name
    path.write_bytes(SEEDS[name][:start] + data)
    _read_all(path)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    name=st.sampled_from(["a.json", "a.jsonl", "a.csv", "a.tsv", "a.txt"]),
    text=st.text(st.sampled_from('{}[]",:\\\n\r\t ;|tex0é\ufeff\x00'), max_size=80),
)
@example(name="a.tsv", text='\n"\r0')  # a carriage return within a line whose quote is never closed
def test_any_text_at_all(tmp_path: Path, name: str, text: str) -> None:
    path = tmp_path / name
    path.write_text(text, newline="")
    _read_all(path)


# Bounded memory ----------------------------------------------------------------------------------------------------

_PEAK = """
import resource, sys
from pathlib import Path
import pyarrow.parquet, pyarrow.ipc
from tests.records.helpers import batches
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
records, reasons = 0, set()
for batch in batches(Path(sys.argv[1]), max_record_bytes=2**25):
    records += batch.num_records
    reasons |= {reject.reason for reject in batch.rejects}
    if records > 300_000: break
print(records, *sorted(reasons))
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""
_MB = 2**20


def _repeated(make: Callable[[], Any], piece: bytes, times: int) -> bytes:
    compressor = make()
    return b"".join([*(compressor.compress(piece) for _ in range(times)), compressor.flush()])


def _view_bomb() -> bytes:
    """A million rows that all show the same 100 kB."""
    one = pa.array(["x" * 100_000], pa.string_view())
    out = io.BytesIO()
    views = one.buffers()[1].to_pybytes()[:16] * 1_000_000
    array = pa.Array.from_buffers(pa.string_view(), 1_000_000, [None, pa.py_buffer(views), one.buffers()[2]])
    batch = pa.record_batch([array], names=["text"])
    with ipc.new_file(out, batch.schema, options=ipc.IpcWriteOptions(compression="zstd")) as writer:
        writer.write_batch(batch)
    return out.getvalue()


def _null_bomb() -> bytes:
    out = io.BytesIO()
    pq.write_table(pa.table({"text": pa.nulls(3_000_000, pa.string())}), out)
    return out.getvalue()


HOSTILE: dict[str, Callable[[], bytes]] = {
    "spaces.jsonl.gz": lambda: _repeated(lambda: __import__("zlib").compressobj(1, 8, 31), b" " * _MB, 200),
    "line.jsonl.bz2": lambda: _repeated(lambda: bz2.BZ2Compressor(1), b"x" * _MB, 100),
    "line.json.xz": lambda: _repeated(lambda: lzma.LZMACompressor(preset=0), b"[" * _MB, 100),
    "line.csv.zst": lambda: _repeated(
        lambda: zstandard.ZstdCompressor().compressobj(), b'"' + b"x" * _MB, 300
    ),
    "string.json.zst": lambda: b"".join(
        [zstandard.compress(b'[{"text": "'), zstandard.compress(b"y" * 150 * _MB)]
    ),
    "quotes.csv": lambda: b"text\n" + b'"a\n' * 300_000,
    "deep.jsonl": lambda: b"[" * 5 * _MB + b"\n" + b'{"a":' * _MB + b"\n",
    "deep.json": lambda: b'[{"text":' + b"[" * 5 * _MB,
    "numbers.jsonl": lambda: b'{"text": 5, "x": [' + b"1," * (10 * _MB) + b"1]}\n",
    "tiny.jsonl": lambda: b'{"text":"a"}\n' * 400_000,
    "members.jsonl.gz": lambda: gzip.compress(b"") * 20_000,
    "junk.jsonl.zst": lambda: zstandard.compress(b'{"text": "a"}\n') + b"\x28\xb5\x2f\xfd\xff" * 300_000,
    "views.arrow": _view_bomb,
    "nulls.parquet": _null_bomb,
    "wide.parquet": lambda: _wide(),
}


def _wide() -> bytes:
    out = io.BytesIO()
    pq.write_table(pa.table({"text": ["a"], **{f"c{i}": [i] for i in range(5000)}}), out)
    return out.getvalue()


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_files_take_bounded_memory_and_time(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    assert classify(name) is not None
    path.write_bytes(HOSTILE[name]())
    done = subprocess.run([sys.executable, "-c", _PEAK, str(path)], capture_output=True, text=True, timeout=250,
                          cwd=Path(__file__).resolve().parents[2], preexec_fn=_limit)  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert int(done.stdout.splitlines()[1]) < 450, done.stdout


def _limit() -> None:
    resource.setrlimit(resource.RLIMIT_AS, (8 * 2**30, 8 * 2**30))
