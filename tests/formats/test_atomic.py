from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from btlm_data.errors import OutputError
from btlm_data.formats import atomic


def test_a_file_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "a.json"
    for durable in (True, False):
        with atomic.replacing(path, durable=durable) as temporary:
            temporary.write_bytes(b"half")
            assert not path.exists()
            assert temporary.parent == path.parent
            assert temporary.name.startswith(".")
            assert temporary.suffix == atomic.TEMPORARY_SUFFIX
        assert path.read_bytes() == b"half"
        path.unlink()


def dies_while_writing(path: Path, error: Exception) -> None:
    with atomic.replacing(path) as temporary:
        temporary.write_bytes(b"half")
        raise error


def test_an_exception_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "a"
    atomic.write_bytes(path, b"old")
    with pytest.raises(KeyError):
        dies_while_writing(path, KeyError())
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


def test_a_file_never_written_is_an_output_error(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="could not be written"), atomic.replacing(tmp_path / "a"):
        pass


@pytest.mark.parametrize(
    ("number", "said"),
    [
        (errno.ENOSPC, "The disk is full"),
        (errno.EDQUOT, "The disk is full"),
        (errno.EACCES, "No permission to write"),
        (errno.EROFS, "No permission to write"),
        (errno.EIO, "could not be written"),
    ],
)
def test_what_the_system_refuses_is_said_plainly(tmp_path: Path, number: int, said: str) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"old")
    with pytest.raises(OutputError, match=said) as caught:
        dies_while_writing(path, OSError(number, os.strerror(number)))
    assert "run the same command again" in str(caught.value)
    assert str(path) in str(caught.value)
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


def test_a_disk_that_fills_while_closing_is_met(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(atomic, "_fsync", full)
    with pytest.raises(OutputError, match="disk is full"):
        atomic.write_bytes(tmp_path / "a", b"x")
    assert list(tmp_path.iterdir()) == []


def test_a_killed_writer_leaves_only_what_sweep_removes(tmp_path: Path) -> None:
    code = (
        "import os, signal, sys; from pathlib import Path; from btlm_data.formats import atomic\n"
        "with atomic.replacing(Path(sys.argv[1])) as t: t.write_bytes(b'half'); os.kill(os.getpid(), signal.SIGKILL)"
    )
    path = tmp_path / "sub" / "data.h5"
    assert (
        subprocess.run([sys.executable, "-c", code, str(path)], cwd=Path(__file__).parents[2]).returncode
        == -9
    )
    assert not path.exists()
    assert list(path.parent.glob("*.h5")) == []  # no reader takes it for a shard
    (path.parent / ".hidden").write_bytes(b"mine")
    assert atomic.sweep(tmp_path) == 1
    assert [p.name for p in path.parent.iterdir()] == [".hidden"]


def test_the_same_value_gives_the_same_bytes(tmp_path: Path) -> None:
    atomic.write_json(tmp_path / "a", {"b": 1, "a": "é"})
    atomic.write_json(tmp_path / "b", {"a": "é", "b": 1}, durable=False)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert (tmp_path / "a").read_text().endswith("}\n")
