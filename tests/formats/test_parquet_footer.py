"""No footer that is let through ends the process when pyarrow is asked about its columns; sound ones are let through."""

from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from btlm_data.formats.parquet_footer import check_footer

ROOT = Path(__file__).resolve().parents[2]


def parquet(**options: object) -> bytes:
    out = io.BytesIO()
    rows = [{"text": f"text {i}", "n": i, "l": [i, None], "s": {"a": {"b": [[i]]}}} for i in range(50)]
    pq.write_table(pa.Table.from_pylist(rows), out, row_group_size=20, **options)
    return out.getvalue()


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"write_page_index": True},
        {"version": "1.0"},
        {"use_dictionary": False},
        {"write_statistics": False},
    ],
)
def test_sound_files_are_let_through(options: dict[str, object]) -> None:
    data = parquet(**options)
    check_footer(io.BytesIO(data), pq.ParquetFile(io.BytesIO(data)))


_LOOK = """
import io, random, sys
import pyarrow as pa, pyarrow.parquet as pq
from btlm_data.formats.parquet_footer import check_footer
data, refused = open(sys.argv[1], "rb").read(), 0
length = int.from_bytes(data[-8:-4], "little")
chance = random.Random(5)
for case in range(int(sys.argv[2])):
    damaged = bytearray(data)
    for _ in range(chance.choice([1, 1, 2])):
        place = len(data) - 8 - length + chance.randrange(length)
        damaged[place] = chance.choice([damaged[place] ^ (1 << chance.randrange(8)), (damaged[place] + 16) % 256, chance.randrange(256)])
    try:
        table = pq.ParquetFile(io.BytesIO(damaged))
        check_footer(io.BytesIO(damaged), table)
    except (pa.ArrowException, OSError, ValueError, MemoryError) as error:
        refused += "statistics of" in str(error)
        continue
    for group in range(table.num_row_groups):
        row_group = table.metadata.row_group(group)
        for column in range(row_group.num_columns):
            try:
                row_group.column(column).total_compressed_size
            except (pa.ArrowException, OSError, ValueError):
                pass
print(refused)
"""


def look(path: Path, cases: int) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", _LOOK, str(path), str(cases)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
    )


def test_damaged_footers_do_not_end_the_process(tmp_path: Path) -> None:
    """Without the check some of the very same footers do."""
    (tmp_path / "a.parquet").write_bytes(parquet())
    guarded = look(tmp_path / "a.parquet", 2000)
    assert guarded.returncode == 0, guarded.stderr[-1000:]
    assert int(guarded.stdout) > 0


@pytest.mark.stress
@pytest.mark.timeout(3600)
def test_a_million_damaged_footers_do_not_end_the_process(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_bytes(parquet())
    assert look(tmp_path / "a.parquet", 1_000_000).returncode == 0
