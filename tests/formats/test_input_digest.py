from __future__ import annotations

from pathlib import Path

import pytest
import xxhash
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from btlm_data.formats import input_digest
from btlm_data.stages.file_ranges import RANGE_BYTES


def reference(data: bytes, stretch: int) -> str:
    pieces = [data[start : start + stretch] for start in range(0, len(data), stretch)] or [b""]
    joined = b"".join(xxhash.xxh3_128_digest(piece) for piece in pieces)
    return f"xxh3_128_64m:{xxhash.xxh3_128_hexdigest(joined)}"


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.binary(max_size=200), st.lists(st.integers(1, 12), max_size=4))
def test_ranges_give_the_digest_of_the_whole_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, data: bytes, cuts: list[int]
) -> None:
    monkeypatch.setattr(input_digest, "STRETCH_BYTES", 16)
    monkeypatch.setattr(input_digest, "_PIECE_BYTES", 5)
    path = tmp_path / "file"
    path.write_bytes(data)
    expected = reference(data, 16)
    assert input_digest.of_file(path) == expected
    edges = sorted({16 * cut for cut in cuts if 16 * cut < len(data)})
    parts = zip([0, *edges], [*edges, None], strict=True)
    digests = [digest for start, stop in parts for digest in input_digest.stretch_digests(path, start, stop)]
    assert input_digest.combine(digests) == expected


def test_tasks_read_whole_stretches(tmp_path: Path) -> None:
    assert RANGE_BYTES % input_digest.STRETCH_BYTES == 0
    (tmp_path / "file").write_bytes(b"x")
    with pytest.raises(ValueError, match="expected a multiple"):
        input_digest.stretch_digests(tmp_path / "file", 1)
