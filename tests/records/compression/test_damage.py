"""Half a file: every byte that decompresses is used, whatever was cut or damaged."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import os
import random
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from btlm_data.records.base import Damage
from btlm_data.records.compression import COMPRESSIONS
from tests.records.helpers import batches, rejects, texts
from tests.strategies import ENDINGS, compress

KINDS = sorted(set(ENDINGS) - {"none"})


def lines(count: int, word: str = "doc") -> bytes:
    """JSON Lines that do not compress to nothing."""
    draw = random.Random(count)
    bodies = (" ".join(f"{draw.getrandbits(40):x}" for _ in range(40)) for _ in range(count))
    return b"".join(json.dumps({"text": f"{word} {i}. {b}"}).encode() + b"\n" for i, b in enumerate(bodies))


def decompressed(path: Path, kind: str, max_window: int = 2**27) -> tuple[bytes, list[Damage]]:
    """All bytes and all damages."""
    with path.open("rb") as file:
        pieces = list(COMPRESSIONS[kind].decompress(file, 1000, max_window))
    damages = [piece for piece in pieces if isinstance(piece, Damage)]
    return b"".join(piece for piece in pieces if isinstance(piece, bytes)), damages


def as_far_as_it_goes(data: bytes, kind: str) -> bytes:
    """What a careful reader gets of a cut file: fed byte by byte."""
    makers: dict[str, Callable[[], Any]] = {"gzip": lambda: zlib.decompressobj(31), "bzip2": bz2.BZ2Decompressor, "xz": lzma.LZMADecompressor,
              "zstd": lambda: zstandard.ZstdDecompressor().decompressobj()}  # fmt: skip
    decoder = makers[kind]()
    return b"".join(decoder.decompress(data[i : i + 1]) for i in range(len(data)))


@pytest.mark.parametrize("kind", KINDS)
def test_a_cut_file_gives_every_byte_that_decompresses(tmp_path: Path, kind: str) -> None:
    data = lines(300)
    whole = compress(data, kind)
    path = tmp_path / f"a.jsonl{ENDINGS[kind]}"
    for size in (len(whole) * 6 // 10, len(whole) // 3, len(whole) - 1, len(whole) - 4, 20, 5, 1):
        path.write_bytes(whole[:size])
        found, damages = decompressed(path, kind)
        assert found == as_far_as_it_goes(whole[:size], kind)
        assert [damage.reason for damage in damages] == ["truncated_file"]
        assert len(texts(path)) >= found.count(b"\n")
        (reject,) = rejects(path)
        assert reject.is_of_file
        assert reject.num_bytes >= len(found) - (found.rfind(b"\n") + 1) or found.endswith(b"}")


def test_a_small_gzip_file_without_its_trailer_loses_nothing(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl.gz"
    for missing in range(1, 9):
        path.write_bytes(gzip.compress(lines(20))[:-missing])
        assert len(texts(path)) == 20
        (reject,) = rejects(path)
        assert (reject.reason, reject.num_bytes) == ("truncated_file", 0)
    path.write_bytes(gzip.compress(lines(20)[:-1])[:-3])  # not even a last newline: the record is whole
    assert len(texts(path)) == 20


def test_a_wrong_checksum_is_named_and_the_text_is_used(tmp_path: Path) -> None:
    stored = bytearray(gzip.compress(lines(50)) + gzip.compress(lines(30, "next")))
    stored[len(gzip.compress(lines(50))) - 6] ^= 1
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(stored)
    assert len(texts(path)) == 80
    (reject,) = rejects(path)
    assert reject.reason == "corrupt_file"
    assert "checksum" in reject.detail
    data = bytearray(compress(lines(50), "zstd", checksum=True))
    data[-1] ^= 1
    path = tmp_path / "a.jsonl.zst"
    path.write_bytes(bytes(data) + compress(lines(30, "next"), "zstd"))
    assert len(texts(path)) == 80
    assert "checksum" in rejects(path)[0].detail


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("junk", [b"JUNK" * 50, os.urandom(300_000)], ids=["short", "long"])
def test_junk_between_and_behind_costs_no_text(tmp_path: Path, kind: str, junk: bytes) -> None:
    path = tmp_path / f"a.jsonl{ENDINGS[kind]}"
    path.write_bytes(compress(lines(20), kind) + junk + compress(lines(30, "next"), kind) + junk)
    assert len(texts(path)) == 50
    found = rejects(path)
    assert [reject.num_bytes for reject in found] == [len(junk)] * 2
    assert all(f"{len(junk):,} bytes that are not {kind}" in reject.detail for reject in found)
    assert list(batches(path))[-1].final


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("how", ["flip", "cut", "zeros"])
def test_one_damaged_member_of_many_costs_itself(tmp_path: Path, kind: str, how: str) -> None:
    members = [compress(lines(40, f"part{n}"), kind, checksum=True) for n in range(5)]
    broken = bytearray(members[2])
    middle = len(broken) // 2
    if how == "flip":
        broken[middle] ^= 0x80
    elif how == "cut":
        del broken[middle:]
    else:
        broken[middle : middle + 500] = bytes(500)
    path = tmp_path / f"a.jsonl{ENDINGS[kind]}"
    path.write_bytes(b"".join([*members[:2], bytes(broken), *members[3:]]))
    found = texts(path)
    for part in (0, 1, 3, 4):
        assert sum(text.startswith(f"part{part} ") for text in found) == 40
    assert any(reject.is_of_file for reject in rejects(path))
    if kind == "gzip":
        inflated = zlib.decompressobj(31)
        good = b""
        try:
            for i in range(len(broken)):
                good += inflated.decompress(broken[i : i + 1])
        except zlib.error:
            pass
        whole = set(good.splitlines()) & set(lines(40, "part2").splitlines())
        assert sum(text.startswith("part2 ") for text in found) >= len(whole)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    kind=st.sampled_from(KINDS),
    parts=st.integers(1, 3),
    flips=st.lists(st.tuples(st.integers(0, 10**6), st.integers(1, 255)), max_size=3),
    cut=st.none() | st.integers(0, 10**6),
    junk=st.binary(max_size=40),
)
def test_any_damage_ends_in_bytes_and_reasons(
    tmp_path: Path, kind: str, parts: int, flips: list[tuple[int, int]], cut: int | None, junk: bytes
) -> None:
    stored = bytearray(compress(lines(12), kind, parts, checksum=True))
    for place, mask in flips:
        stored[place % len(stored)] ^= mask
    stored = stored[: cut % (len(stored) + 1)] if cut is not None else stored
    path = tmp_path / f"a.jsonl{ENDINGS[kind]}"
    path.write_bytes(bytes(stored) + junk)
    found, damages = decompressed(path, kind)
    assert len(found) < 10**6
    assert all(damage.detail for damage in damages)
    list(batches(path, batch_bytes=500))


def test_an_xz_file_that_needs_much_memory_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl.xz"
    path.write_bytes(lzma.compress(lines(20), preset=9))
    assert len(texts(path)) == 20
    (reject,) = rejects(path, max_window=2**20)
    assert reject.reason == "window_too_large"
    assert "source.max_window" in reject.detail


@pytest.mark.parametrize("name", ["a.jsonl.lzma", "a.jsonl.xz"])
def test_the_older_lzma_is_read_whole_cut_or_damaged(tmp_path: Path, name: str) -> None:
    whole = lzma.compress(lines(300), format=lzma.FORMAT_ALONE)
    path = tmp_path / name
    path.write_bytes(whole)
    assert len(texts(path)) == 300
    assert rejects(path) == []
    for size in (len(whole) - 1, len(whole) // 2, 20):
        path.write_bytes(whole[:size])
        found, damages = decompressed(path, "xz")
        assert found == as_far_as_it_goes(whole[:size], "xz")
        assert [damage.reason for damage in damages] == ["truncated_file"]
    path.write_bytes(whole[: len(whole) // 2] + b"\xff" * 300 + whole[len(whole) // 2 + 300 :])
    found, damages = decompressed(path, "xz")
    assert found.startswith(lines(300)[:1000])
    assert [damage.reason for damage in damages] == ["corrupt_file"]


@pytest.mark.parametrize(
    "head", [b"]\0\0\x11\0" + b"\xff" * 8, b"]\0\0\x80\0" + b"\0" * 5 + b"\1\0\0", b"]" * 40]
)
def test_what_only_resembles_the_older_lzma_is_not_taken_for_it(head: bytes) -> None:
    assert not COMPRESSIONS["xz"].starts(head)
    assert COMPRESSIONS["xz"].starts(b"]\0\0\x80\0" + b"\xff" * 8)


def test_a_file_of_git_lfs_is_named(tmp_path: Path) -> None:
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"4" * 64 + b"\nsize 123456\n"
    for name in ("a.jsonl", "a.jsonl.gz", "a.jsonl.zst", "a.parquet", "a.txt", "a.json", "a.csv", "a.arrow"):
        path = tmp_path / name
        path.write_bytes(pointer)
        (reject,) = rejects(path)
        assert reject.reason == "git_lfs_pointer"
        assert "123456 bytes" in reject.detail
        assert texts(path) == []
