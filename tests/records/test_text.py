from __future__ import annotations

import gzip
from pathlib import Path

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.records.helpers import assert_resumes, batches, reasons, rejects, texts

BOM = b"\xef\xbb\xbf"


def write(folder: Path, data: bytes, name: str = "a.txt") -> Path:
    path = folder / name
    path.write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    return path


def test_lines_and_paragraphs(tmp_path: Path) -> None:
    data = BOM + "First line.\nSecond, über.\r\n \r\n\n  Another\nparagraph  \n\n\n\nLast".encode()
    for name in ("a.txt", "a.txt.gz"):
        path = write(tmp_path, data, name)
        assert texts(path) == [data.removeprefix(BOM).decode()]
        assert texts(path, txt="lines") == ["First line.", "Second, über.", "Another", "paragraph", "Last"]
        assert texts(path, txt="paragraphs") == ["First line.\nSecond, über.", "Another\nparagraph", "Last"]
        for kind in ("lines", "paragraphs"):
            (batch,) = batches(path, txt=kind)
            for text, offset in zip(batch.texts, batch.offsets, strict=True):
                assert data[offset:].startswith(text.split("\n")[0].encode())


def test_bad_and_long_parts_cost_themselves_only(tmp_path: Path) -> None:
    path = write(tmp_path, b"good\n\nb\xffd\n\n" + b"x" * 500 + b"\n\nalso good\n\n")
    for kind in ("lines", "paragraphs"):
        for batch_bytes in (50, 2**20):
            assert texts(path, txt=kind, max_record_bytes=300, batch_bytes=batch_bytes) == [
                "good",
                "also good",
            ]
            found = reasons(path, txt=kind, max_record_bytes=300, batch_bytes=batch_bytes)
            assert found == ["invalid_utf8", "record_too_large"]


def test_a_cut_file_gives_its_whole_lines(tmp_path: Path) -> None:
    data = "".join(f"line {i} {i * i % 977}\n" for i in range(5000)).encode()
    stored = gzip.compress(data)
    path = tmp_path / "a.txt.gz"
    path.write_bytes(stored[: len(stored) // 2])
    for kind in ("file", "lines"):
        whole = "\n".join(texts(path, txt=kind)).rstrip("\n")
        assert data.decode().startswith(whole + "\n")
        assert len(whole) > len(data) // 3
        assert reasons(path, txt=kind) == ["truncated_file"]
    members = [gzip.compress(data[:20_000]), gzip.compress(data[20_000:40_000]), gzip.compress(data[40_000:])]
    members[1] = members[1][:500] + b"\xff" * 100 + members[1][600:]
    path.write_bytes(b"".join(members))
    (text,) = texts(path)
    assert text.startswith(data[:19_900].decode())
    assert text.endswith(data[40_100:].decode())
    assert rejects(path)[0].reason == "corrupt_file"


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    data=st.lists(st.sampled_from(["\n", "\n", "\r\n", " ", "\t", "a", "word", "é"]), max_size=60).map(
        "".join
    ),
    batch_bytes=st.integers(1, 30),
)
def test_any_text_in_any_batches(tmp_path: Path, data: str, batch_bytes: int) -> None:
    path = write(tmp_path, data.encode())
    lines = [line.strip() for line in data.split("\n")]
    assert texts(path, txt="lines", batch_bytes=batch_bytes) == [line for line in lines if line]
    found = texts(path, txt="paragraphs", batch_bytes=batch_bytes)
    assert "".join("".join(found).split()) == "".join(data.split())
    whole = texts(path, txt="paragraphs")
    assert not any("\n\n" in text for text in whole)
    for kind in ("lines", "paragraphs"):
        assert_resumes(path, batch_bytes, txt=kind)
