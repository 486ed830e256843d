from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st

from btlm_data.records import json_document, stream
from btlm_data.records.base import WHOLE, Fields, ReadOptions, ReadRequest, Stretch
from btlm_data.records.batch import RecordBatch, Reject
from btlm_data.records.json_decoder import RecordDecoder
from btlm_data.records.reader import count_records, read_batches
from btlm_data.sources.base import SourceFile
from tests.reference import documents as reference
from tests.strategies import (
    ENDINGS,
    bad_lines,
    compress,
    corpus_line,
    good_lines,
    json_lines,
    odd_lines,
    source_file,
    zstd_stream,
)

LIMIT = 2**40


def read(
    path: Path,
    file: SourceFile,
    fields: Fields = Fields(),  # noqa: B008
    start: int = 0,
    stop: int | None = None,
    skip: tuple[int, int] = (0, 0),
    max_record_bytes: int = 512 * 2**20,
    batch_bytes: int = 16 * 2**20,
    **options: Any,
) -> Iterator[RecordBatch]:
    """Batches, from plain arguments."""
    chosen = ReadOptions(fields, max_record_bytes, **options)
    return read_batches(path, file, chosen, Stretch(start, stop, *skip), batch_bytes)


def decoder_of(fields: Fields) -> RecordDecoder:
    file = SourceFile("a.jsonl", "a.jsonl", 0, "train", "v", "jsonl", "none")
    return RecordDecoder(ReadRequest(Path("a.jsonl"), file, ReadOptions(fields), WHOLE))


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("documents")


def write(folder: Path, data: bytes, name: str = "a.jsonl") -> tuple[Path, SourceFile]:
    path = folder / name
    path.write_bytes(data)
    return path, source_file(path)


def is_lines(data: bytes) -> bool:
    """Whether the file is taken for JSON Lines (and not for records that are spread over lines)."""
    return not json_document._is_document(data, "jsonl")


def collect(blocks: Iterator[RecordBatch]) -> list[reference.Document | reference.Bad]:
    """What blocks hold, as the reference says it."""
    found: list[reference.Document | reference.Bad] = []
    for block in blocks:
        found += map(reference.Document, block.texts, block.sources, block.lines, block.offsets)
        found += [reference.Bad(r.line, r.offset, r.reason, r.num_bytes) for r in block.rejects]
        assert block.num_records == len(block.texts) + len(block.rejects) > 0 or block.num_lines
    return sorted(found, key=lambda record: record.line)


def rejects(blocks: Iterator[RecordBatch]) -> list[Reject]:
    return [reject for block in blocks for reject in block.rejects]


# Equal to the plain reader -----------------------------------------------------------------------------------------


PLAIN = {"kind": "none", "parts": 1, "batch_bytes": 400, "read_bytes": 200, "max_bytes": LIMIT}


@settings(max_examples=150, deadline=None)
@example(
    data=b'{"text": "a"} {"text": "b"}\n\n', **PLAIN
)  # as many values as lines, and neither is one a line
@example(data=b'{"text": "a"}{"text": "b"}\n{"text":\n"c"}\n', **PLAIN)
@example(data=b'{"text": "a", "x": {}\n}{"text": "b"}\n', **PLAIN)
@example(data=b'{"text": "a"}\r\n{"text": "b"}\n{"text": "c"}\r\n', **PLAIN)
@given(
    data=json_lines(),
    kind=st.sampled_from(sorted(ENDINGS)),
    parts=st.integers(1, 4),
    batch_bytes=st.integers(1, 400),
    read_bytes=st.integers(1, 200),
    max_bytes=st.sampled_from([LIMIT, LIMIT, 30, 100]),
)
def test_blocks_of_any_size_give_what_the_plain_reader_gives(
    scratch: Path, data: bytes, kind: str, parts: int, batch_bytes: int, read_bytes: int, max_bytes: int
) -> None:
    assume(is_lines(data))
    path, file = write(scratch, compress(data, kind, parts), f"a.jsonl{ENDINGS[kind]}")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stream, "PIECE_BYTES", read_bytes)
        blocks = list(read(path, file, Fields(), max_record_bytes=max_bytes, batch_bytes=batch_bytes))
    assert collect(iter(blocks)) == reference.read(data, max_bytes=max_bytes)
    assert not blocks or blocks[-1].end == len(data)
    if data.startswith(b"\xef\xbb\xbf"):
        assert len(data) > 3 or not blocks or not blocks[0].texts


@settings(max_examples=150, deadline=None)
@given(
    data=json_lines(),
    edges=st.lists(st.integers(0, 1500), max_size=4),
    batch_bytes=st.integers(1, 300),
    max_bytes=st.sampled_from([LIMIT, 60]),
)
def test_byte_ranges_cover_a_file_exactly_once(
    scratch: Path, data: bytes, edges: list[int], batch_bytes: int, max_bytes: int
) -> None:
    assume(is_lines(data))
    path, file = write(scratch, data)
    cuts = sorted({0, *(edge for edge in edges if edge < len(data))})
    found: list[reference.Document | reference.Bad] = []
    base = 0
    for start, stop in zip(cuts, [*cuts[1:], None], strict=True):
        blocks = list(
            read(path, file, Fields(), start, stop, max_record_bytes=max_bytes, batch_bytes=batch_bytes)
        )
        for record in collect(iter(blocks)):
            fields = {**record.__dict__, "line": record.line + base}
            found.append(type(record)(**fields))
        base += blocks[-1].num_lines if blocks else 0
    assert found == reference.read(data, max_bytes=max_bytes)


@settings(max_examples=100, deadline=None)
@given(
    data=json_lines(),
    kind=st.sampled_from(sorted(ENDINGS)),
    batch_bytes=st.integers(1, 200),
    start=st.integers(0, 300),
    read_bytes=st.integers(1, 100),
)
def test_reading_resumes_at_every_block_border(
    scratch: Path, data: bytes, kind: str, batch_bytes: int, start: int, read_bytes: int
) -> None:
    path, file = write(scratch, compress(data, kind), f"a.jsonl{ENDINGS[kind]}")
    begin = start if kind == "none" and start < len(data) else 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stream, "PIECE_BYTES", read_bytes)
        whole = list(read(path, file, Fields(), begin, None, batch_bytes=batch_bytes))
        for done in range(1, len(whole) + 1):
            skip = (whole[done - 1].end, whole[done - 1].num_lines)
            rest = list(read(path, file, Fields(), begin, None, skip, batch_bytes=batch_bytes))
            assert rest == whole[done:]


@settings(max_examples=300, deadline=None)
@given(line=st.one_of(good_lines, bad_lines, odd_lines), text=st.sampled_from(["text", "meta.text", "a.b.c", "meta"]), source=st.sampled_from(["", "meta.redpajama_set_name", "meta", "text", "text.x", "x"]))  # fmt: skip
@example(b'{"text": "a", "x": ' + b"7" * 5000 + b"}", "text", "")
@example(b'{"text": "a", "x": "\xff"}', "text", "")
@example(b'{"text": "a", "x": "\\ud800"}', "text", "x")
def test_a_record_fares_the_same_alone_and_beside_a_bad_one(
    scratch: Path, line: bytes, text: str, source: str
) -> None:
    assume(is_lines(line))
    fields = Fields(text, source)
    path, file = write(scratch, line + b"\n")
    alone = collect(read(path, file, fields))
    path, file = write(scratch, line + b"\n nonsense \n")
    assert [
        record for record in collect(read(path, file, fields)) if record.line <= line.count(b"\n")
    ] == alone


def test_the_fast_path_takes_all_that_is_plainly_good() -> None:
    decoder = decoder_of(Fields("doc.body", "doc.from.name"))
    lines = [
        b'{"doc": {"body": "a", "from": {"name": "A"}}}\n',
        b'{"doc": {"from": null, "body": "b"}, "x": [1]}\n',
    ]
    assert decoder.decode_lines(memoryview(b"".join(lines)), 2) == (["a", "b"], ["A", "unnamed"])
    assert [decoder.decode_line(line) for line in lines] == [("a", "A"), ("b", "unnamed")]
    assert decoder.decode_lines(memoryview(b'{"doc": {}}\n'), 1) is None


def test_a_files_own_text_field_and_source_win(tmp_path: Path) -> None:
    path, file = write(tmp_path, b'{"text": "no", "content": "yes", "meta": {"redpajama_set_name": "A"}}\n')
    other = SourceFile(**{**file.to_json(), "source": "Place", "text_field": "content"})
    assert collect(read(path, other, Fields())) == [reference.Document("yes", "Place", 0, 0)]


def test_a_text_field_above_the_source_field_is_still_read(tmp_path: Path) -> None:
    path, file = write(tmp_path, b'{"text": "yes"}\n')
    assert collect(read(path, file, Fields("text", "text.name"))) == [
        reference.Document("yes", "unnamed", 0, 0)
    ]


# Every reason ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "reason", "detail"),
    [
        (b'{"text": "caf\xe9"}', "invalid_utf8", "byte 0xe9 at column 13"),
        (b'{"text": "\\ud83d!"}', "lone_surrogate", "\\ud83d at character 0"),
        (b'{"text": "x', "invalid_json", "Unterminated string starting at: line 1 column 10"),
        (b"[" * 100_000, "invalid_json", "nested too deeply"),
        (b"[]", "not_an_object", "found an array"),
        (b'{"body": "x", "id": 1}', "missing_text", "no field 'text'; found 'body', 'id'"),
        (b'{"text": null}', "null_text", "field 'text' is null"),
        (b'{"text": 12}', "text_not_a_string", "field 'text' is a number"),
        (b'{"text": "' + b"x" * 200_000 + b'"}', "record_too_large", "more than 150000 bytes"),
    ],
)
def test_a_bad_record_has_its_reason_place_and_detail_and_costs_no_neighbour(
    tmp_path: Path, line: bytes, reason: str, detail: str
) -> None:
    good = b'{"text": "good"}\n'
    path, file = write(tmp_path, good + line + b"\r\n" + good)
    for batch_bytes in (10, 1000, 2**20):
        blocks = list(read(path, file, Fields(), max_record_bytes=150_000, batch_bytes=batch_bytes))
        (reject,) = rejects(iter(blocks))
        assert (reject.line, reject.offset, reject.reason, reject.num_bytes) == (
            1,
            len(good),
            reason,
            len(line) + 2,
        )
        assert detail in reject.detail
        assert [line for block in blocks for line in block.lines] == [0, 2]


def many_lines(count: int = 20_000) -> bytes:
    """A few MB that do not compress to nothing."""
    return b"".join(
        corpus_line(f"document {i} " + "".join(chr(97 + (i * i * k + k) % 26) for k in range(1, 60)))
        for i in range(count)
    )


@pytest.fixture(scope="module")
def lines() -> bytes:
    return many_lines()


@pytest.mark.parametrize("kind", ["gzip", "zstd"])
@pytest.mark.parametrize("share", [0.3, 0.99999])
def test_a_cut_file_keeps_what_comes_before_the_cut(
    tmp_path: Path, lines: bytes, kind: str, share: float
) -> None:
    stored = compress(lines, kind, parts=3)
    path, file = write(tmp_path, stored[: int(len(stored) * share)], f"a.jsonl{ENDINGS[kind]}")
    blocks = list(read(path, file, Fields(), batch_bytes=2**18))
    (reject,) = rejects(iter(blocks))
    assert reject.reason == "truncated_file"
    assert blocks[-1].final
    texts = [text for block in blocks for text in block.texts]
    assert texts == [json.loads(line)["text"] for line in lines.splitlines()[: len(texts)]]
    assert len(texts) > 20_000 * share - 2_000  # at most one read of 128 KiB, about 1,500 lines, is lost
    for done in range(1, len(blocks)):
        skip = (blocks[done - 1].end, blocks[done - 1].num_lines)
        assert list(read(path, file, Fields(), skip=skip, batch_bytes=2**18)) == blocks[done:]


@pytest.mark.parametrize("kind", ["gzip", "zstd", "bzip2", "xz"])
def test_a_flipped_bit_costs_its_own_member_and_is_the_same_wherever_reading_resumes(
    tmp_path: Path, lines: bytes, kind: str
) -> None:
    parts, whole = 4, compress(lines, kind, parts=4, checksum=True)
    members = [0, *(len(compress(lines, kind, parts, checksum=True, first=n)) for n in range(1, parts + 1))]
    edges = [len(lines) * i // parts for i in range(parts + 1)]
    for position in range(len(whole) // 7, len(whole), len(whole) // 7):
        flipped = bytearray(whole)
        flipped[position] ^= 0x10
        path, file = write(tmp_path, bytes(flipped), f"a.jsonl{ENDINGS[kind]}")
        blocks = list(read(path, file, Fields(), batch_bytes=300_000))
        assert any(reject.is_of_file for reject in rejects(iter(blocks)))
        texts = {text for block in blocks for text in block.texts}
        hit = next(n for n in range(parts) if position < members[n + 1])
        for number in set(range(parts)) - {hit}:
            inside = lines[edges[number] : edges[number + 1]]
            if number:
                inside = inside[inside.index(b"\n") + 1 :]
            assert {json.loads(line)["text"] for line in inside.splitlines()[:-1]} <= texts
        for done in range(1, len(blocks)):
            skip = (blocks[done - 1].end, blocks[done - 1].num_lines)
            assert list(read(path, file, Fields(), skip=skip, batch_bytes=300_000)) == blocks[done:]


@pytest.mark.parametrize("kind", ["gzip", "zstd"])
@pytest.mark.parametrize("junk", [b"JUNK" * 10, b"\0" * 7])
def test_bytes_behind_the_last_frame(tmp_path: Path, kind: str, junk: bytes) -> None:
    path, file = write(tmp_path, compress(b'{"text": "a"}\n', kind) + junk, f"a.jsonl{ENDINGS[kind]}")
    blocks = list(read(path, file, Fields()))
    padded = kind == "gzip" and not any(junk)  # gzip files may be padded with zeros, as tapes did
    assert [r.reason for r in rejects(iter(blocks))] == ([] if padded else ["corrupt_file"])


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.jsonl.zst", "a.txt", "a.txt.gz", "a.txt.zst"])
def test_an_empty_file_has_no_record(tmp_path: Path, name: str) -> None:
    path, file = write(tmp_path, b"", name)
    assert list(read(path, file, Fields())) == []
    kind = file.compression
    if kind != "none":
        path, file = write(tmp_path, compress(b"", kind), name)
        assert list(read(path, file, Fields())) == []


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.jsonl.zst", "a.parquet", "a.txt.gz", "a.txt.zst"])
def test_what_is_not_what_its_name_says_is_one_reject(tmp_path: Path, name: str) -> None:
    path, file = write(tmp_path, b"\x01\x02 neither text nor packed", name)
    (reject,) = rejects(read(path, file, Fields()))
    assert reject.reason in ("corrupt_file", "truncated_file")


@pytest.mark.parametrize("packing", ["none", "gzip", "zstd", "bzip2", "xz"])
@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.jsonl.zst", "a.txt", "a.txt.bz2", "a.json.xz"])
def test_a_file_is_read_as_what_it_is(tmp_path: Path, name: str, packing: str) -> None:
    data = b'{"text": "plain"}\n' * 3
    path, file = write(tmp_path, compress(data, packing), name)
    texts = ["plain"] * 3 if file.format != "txt" else [data.decode()]
    for batch_bytes in (1, 2**20):
        found = list(read(path, file, Fields(), batch_bytes=batch_bytes))
        assert [text for block in found for text in block.texts] == texts
        assert rejects(iter(found)) == []


def test_a_packed_file_that_is_called_plain_is_read_once_when_cut_in_ranges(tmp_path: Path) -> None:
    path, file = write(tmp_path, gzip.compress(b'{"text": "plain"}\n' * 3), "a.jsonl")
    size = path.stat().st_size
    found = [
        list(read(path, file, Fields(), start, stop)) for start, stop in ((0, size // 2), (size // 2, None))
    ]
    assert [[text for block in blocks for text in block.texts] for blocks in found] == [["plain"] * 3, []]


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.jsonl.zst", "a.parquet", "a.txt"])
def test_a_file_that_went_away_or_is_a_folder_is_unreadable(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    file = source_file(path)
    assert [r.reason for r in rejects(read(path, file, Fields()))] == ["unreadable_file"]
    path.mkdir()
    assert next(r.reason for r in rejects(read(path, file, Fields()))) in (
        "unreadable_file",
        "corrupt_file",
    )


def test_damage_inside_an_over_long_line_is_counted_too(tmp_path: Path) -> None:
    stored = bytearray(compress(b'{"text": "' + os.urandom(2**21).hex().encode() + b'"}\n' * 2, "zstd"))
    block = zstandard.frame_header_size(bytes(stored))
    for _ in range(5):
        block += 3 + (int.from_bytes(stored[block : block + 3], "little") >> 3)
    stored[block] |= 6  # the sixth block is of the reserved type
    path, file = write(tmp_path, bytes(stored), "a.jsonl.zst")
    found = rejects(read(path, file, Fields(), max_record_bytes=1000, batch_bytes=1000))
    assert found[0].reason == "record_too_large"
    assert found[-1].reason in ("corrupt_file", "truncated_file")


def test_a_large_window_is_refused_by_name_unless_the_content_is_small(tmp_path: Path) -> None:
    parameters = zstandard.ZstdCompressionParameters(window_log=31, compression_level=1, enable_ldm=True)

    def long(data: bytes) -> bytes:
        compressor = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
        return compressor.compress(data) + compressor.flush()

    small, large = b'{"text": "a"}\n', b'{"text": "' + os.urandom(2**21).hex().encode() + b'"}\n'
    path, file = write(tmp_path, long(small), "a.jsonl.zst")
    assert collect(read(path, file)) == [reference.Document("a", "unnamed", 0, 0)]
    path, file = write(
        tmp_path, compress(small, "zstd") + long(large) + compress(small, "zstd"), "a.jsonl.zst"
    )
    batches = list(read(path, file, max_window=2**20))
    assert [text for batch in batches for text in batch.texts] == ["a", "a"]
    (reject,) = rejects(iter(batches))
    assert reject.reason == "window_too_large"
    assert "set source.max_window to" in reject.detail
    assert "4 MiB" in reject.detail
    assert sum(len(batch.texts) for batch in read(path, file, max_window=2**23)) == 3


# Bounded memory ----------------------------------------------------------------------------------------------------

_MEASURE = """
import resource, sys
from pathlib import Path
import msgspec, zstandard, isal.igzip
from btlm_data.records.base import ReadOptions
from btlm_data.records.reader import read_batches
from btlm_data.sources.base import SourceFile
path, form, kind, most = Path(sys.argv[1]), *sys.argv[2:4], int(sys.argv[4])
file = SourceFile("a", str(path), path.stat().st_size, "train", "v", form, kind)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for block in read_batches(path, file, ReadOptions(max_record_bytes=most)):
    print(block.num_records, *{reject.reason for reject in block.rejects})
    del block
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before, file=sys.stderr)
"""


def measured(path: Path, form: str, kind: str, max_record_bytes: int) -> tuple[list[str], int]:
    """Lines printed (records and reasons per block) and growth of the peak resident size in MB, in a process of its own."""
    command = [sys.executable, "-c", _MEASURE, str(path), form, kind, str(max_record_bytes)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return done.stdout.splitlines(), int(done.stderr.split()[-1]) // 1024


def bomb(total: int, line: bytes) -> bytes:
    """A frame of `total` bytes made of one repeated line (or of no newline at all)."""
    piece = line * (2**20 // len(line))
    compressor = zstandard.ZstdCompressor(level=1).compressobj()
    parts = [compressor.compress(piece) for _ in range(total // len(piece))]
    return b"".join([*parts, compressor.flush()])


def test_a_frame_that_expands_enormously_takes_no_more_memory(tmp_path: Path) -> None:
    (tmp_path / "lines.zst").write_bytes(bomb(300 * 2**20, b" " * 8191 + b"\n"))
    (tmp_path / "one.zst").write_bytes(bomb(600 * 2**20, b"x"))
    assert (tmp_path / "one.zst").stat().st_size < 100_000
    shown, grown = measured(tmp_path / "lines.zst", "jsonl", "zstd", 64 * 2**20)
    assert {line.split()[0] for line in shown} == {"0"}  # blank lines are no records
    assert grown < 160
    shown, grown = measured(tmp_path / "one.zst", "jsonl", "zstd", 64 * 2**20)
    assert shown == ["1 record_too_large"]
    assert grown < 260
    shown, grown = measured(tmp_path / "one.zst", "txt", "zstd", 64 * 2**20)
    assert shown == ["1 record_too_large"]
    assert grown < 260


def test_a_byte_range_inside_one_enormous_line_takes_no_more_memory(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    with path.open("wb") as out:
        out.truncate(300 * 2**20)  # zeros, without a newline
    code = _MEASURE.replace("most)):", "most), Stretch(1000, 2**40)):").replace(
        "import ReadOptions", "import ReadOptions, Stretch"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(path), "jsonl", "none", "1000"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == ""
    assert int(done.stderr) // 1024 < 50


# Plain text and zero-width characters ------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", sorted(ENDINGS))
def test_a_text_file_is_one_document(tmp_path: Path, kind: str) -> None:
    text = "First line.\r\n\nΔεύτερη γραμμή \u2028 end"
    path, file = write(tmp_path, compress(b"\xef\xbb\xbf" + text.encode(), kind, 2), f"a.txt{ENDINGS[kind]}")
    assert collect(read(path, file, Fields())) == [reference.Document(text, "unnamed", 0, 0)]
    path, file = write(tmp_path, compress(text.encode("utf-16"), kind), f"a.txt{ENDINGS[kind]}")
    (reject,) = rejects(read(path, file, Fields()))
    assert reject.reason == "wrong_encoding"
    assert "set source.encoding to utf-16" in reject.detail
    assert collect(read(path, file, encoding="utf-16")) == [reference.Document(text, "unnamed", 0, 0)]
    path, file = write(tmp_path, compress("é".encode("latin-1"), kind), f"a.txt{ENDINGS[kind]}")
    assert [r.reason for r in rejects(read(path, file, Fields()))] == ["invalid_utf8"]
    path, file = write(tmp_path, compress(b"x" * 2000, kind), f"a.txt{ENDINGS[kind]}")
    assert [r.reason for r in rejects(read(path, file, Fields(), max_record_bytes=1999))] == [
        "record_too_large"
    ]
    if kind != "none":
        path, file = write(
            tmp_path, compress(os.urandom(5000).hex().encode(), kind)[:-7], f"a.txt{ENDINGS[kind]}"
        )
        assert [r.reason for r in rejects(read(path, file, Fields()))] == ["truncated_file"]


def test_two_hundred_thousand_zero_width_characters_are_a_document(tmp_path: Path) -> None:
    text = "\u200b\u200d\ufeff\u2060" * 50_000
    path, file = write(tmp_path, corpus_line(text))
    assert collect(read(path, file, Fields())) == [reference.Document(text, "unnamed", 0, 0)]
    path, file = write(tmp_path, text.encode(), "a.txt")
    assert collect(read(path, file, Fields())) == [reference.Document(text, "unnamed", 0, 0)]


# Parquet -----------------------------------------------------------------------------------------------------------


def parquet(folder: Path, table: pa.Table, **options: Any) -> tuple[Path, SourceFile]:
    path = folder / "a.parquet"
    pq.write_table(table, path, **options)
    return path, source_file(path)


TEXTS = ["one", None, "", "vier 🙂", "five"]


@pytest.mark.parametrize(
    "make",
    [
        lambda values: pa.array(values, pa.string()),
        lambda values: pa.array(values, pa.large_string()),
        lambda values: pa.array(values, pa.string()).dictionary_encode(),
        lambda values: pa.array(values, pa.string_view()),
    ],
    ids=["string", "large_string", "dictionary", "string_view"],
)
def test_parquet_strings_of_every_kind(tmp_path: Path, make: Callable[[list[str | None]], pa.Array]) -> None:
    table = pa.table(
        {
            "id": range(5),
            "text": make(TEXTS),
            "meta": [{"redpajama_set_name": n, "x": 1} for n in ["A", "A", None, "", "B"]],
        }
    )
    path, file = parquet(tmp_path, table, row_group_size=2)
    expected: list[reference.Document | reference.Bad] = [
        reference.Document("one", "A", 0, 0),
        reference.Bad(1, 1, "null_text", 0),
        reference.Document("", "unnamed", 2, 2),
        reference.Document("vier 🙂", "unnamed", 3, 3),
        reference.Document("five", "B", 4, 4),
    ]
    for batch_bytes in (1, 8, 2**20):
        assert collect(read(path, file, Fields(), batch_bytes=batch_bytes)) == expected
    ranges = [collect(read(path, file, Fields(), start, start + 1)) for start in range(3)]
    assert [record.offset for part in ranges for record in part] == [0, 1, 2, 3, 4]  # rows of the file
    assert [record.line for record in ranges[1]] == [0, 1]  # rows of the stretch


def test_parquet_nested_missing_and_wrong_columns(tmp_path: Path) -> None:
    rows = [{"body": {"text": "in"}}, {"body": {"text": None}}, {"body": None}]
    path, file = parquet(tmp_path, pa.table({"doc": rows}))
    found = collect(read(path, file, Fields("doc.body.text", "doc.from")))
    assert found[0] == reference.Document("in", "unnamed", 0, 0)
    assert [r.reason for r in found[1:] if isinstance(r, reference.Bad)] == ["null_text", "missing_text"]
    path, file = parquet(tmp_path, pa.table({"text": [1, 2], "other": ["a", "b"]}))
    assert [r.reason for r in rejects(read(path, file, Fields()))] == ["text_not_a_string"] * 2
    found_rejects = rejects(read(path, file, Fields("body")))
    assert [(r.reason, r.line) for r in found_rejects] == [("missing_text", 0), ("missing_text", 1)]
    assert "found 'text', 'other'" in found_rejects[0].detail
    path, file = parquet(tmp_path, pa.table({"text": pa.array([], pa.string())}))
    assert list(read(path, file, Fields())) == []
    path, file = parquet(tmp_path, pa.table({"text": ["x" * 50, "é" * 30, "short"]}))
    assert [(r.line, r.num_bytes) for r in rejects(read(path, file, Fields(), max_record_bytes=49))] == [
        (0, 50),
        (1, 60),
    ]


def test_one_undecodable_string_in_parquet_costs_only_itself(tmp_path: Path) -> None:
    raw = pa.array([b"good", b"\xff bad", b"good too"], pa.binary()).view(pa.string())
    path, file = parquet(tmp_path, pa.table({"text": raw}))
    found = collect(read(path, file, Fields()))
    assert found == [
        reference.Document("good", "unnamed", 0, 0),
        reference.Bad(1, 1, "invalid_utf8", 0),
        reference.Document("good too", "unnamed", 2, 2),
    ]


def test_a_missing_column_of_a_long_file_comes_in_pieces(tmp_path: Path) -> None:
    path, file = parquet(tmp_path, pa.table({"other": range(150_000)}))
    blocks = list(read(path, file, Fields()))
    assert [block.num_records for block in blocks] == [65536, 65536, 150_000 - 2 * 65536]
    assert list(read(path, file, Fields(), skip=(blocks[0].end, blocks[0].num_lines))) == blocks[1:]


def test_parquet_resumes_at_every_block_border(tmp_path: Path) -> None:
    path, file = parquet(
        tmp_path, pa.table({"text": [f"text {i} " * (i % 7) for i in range(300)]}), row_group_size=70
    )
    for start in (0, 2):
        whole = list(read(path, file, Fields(), start, None, batch_bytes=500))
        assert len(whole) > 5
        for done in range(1, len(whole)):
            skip = (whole[done - 1].end, whole[done - 1].num_lines)
            assert list(read(path, file, Fields(), start, None, skip, batch_bytes=500)) == whole[done:]


def test_flipped_and_cut_parquet_never_raises(tmp_path: Path) -> None:
    texts = [os.urandom(40).hex() for _ in range(400)]
    path, file = parquet(tmp_path, pa.table({"text": texts}), row_group_size=100, write_page_checksum=True)
    stored = path.read_bytes()
    damaged = 0
    for position in range(0, len(stored), len(stored) // 60):
        path.write_bytes(stored[:position] + bytes([stored[position] ^ 0x55]) + stored[position + 1 :])
        blocks = list(read(path, file, Fields(), batch_bytes=1000))
        damaged += any(r.reason == "corrupt_file" for r in rejects(iter(blocks)))
        path.write_bytes(stored[:position])
        reason = "corrupt_file" if position < 4 else "truncated_file"
        assert [r.reason for r in rejects(read(path, file, Fields()))] == [reason]
    assert damaged > 0


# Counting for --limit ----------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=json_lines(), limit=st.integers(1, 30))
def test_counting_stops_at_the_line_after_the_last_record_wanted(
    scratch: Path, data: bytes, limit: int
) -> None:
    assume(is_lines(data))
    path, file = write(scratch, data)
    records = reference.read(data)
    found, end = count_records(path, file, ReadOptions(), limit)
    assert found == min(limit, len(records))
    assert end == (records[limit - 1].line + 1 if len(records) >= limit else -1)


def test_a_frame_without_its_size_is_read(tmp_path: Path) -> None:
    path, file = write(tmp_path, zstd_stream(b'{"text": "a"}\n'), "a.jsonl.zst")
    assert collect(read(path, file, Fields())) == [reference.Document("a", "unnamed", 0, 0)]
    path, file = write(tmp_path, gzip.compress(b'{"text": "a"}'), "a.jsonl.gz")
    assert collect(read(path, file, Fields())) == [reference.Document("a", "unnamed", 0, 0)]
