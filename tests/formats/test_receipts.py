from __future__ import annotations

from pathlib import Path

import pytest

from btlm_data.formats import receipts


@pytest.fixture
def work(tmp_path: Path) -> Path:
    (tmp_path / "out").mkdir()
    (tmp_path / "out/a").write_bytes(b"12345")
    receipts.write(tmp_path, "step", 1, "000001", "digest", ["out/a"], {"cells": [], "extra": {}}, 1.23456)
    return tmp_path


def proved(work: Path, digest: str = "digest", outputs: tuple[str, ...] = ("out/a",)) -> bool:
    return receipts.proves(receipts.read(work, "step", "000001"), digest, work, outputs)


def test_a_receipt_proves_what_it_names(work: Path) -> None:
    assert receipts.read(work, "step", "000001") == receipts.Receipt(
        "digest", "step", 1, "000001", {"out/a": 5}, {"cells": [], "extra": {}}, 1.235
    )
    assert proved(work)
    assert not proved(work, "another digest")
    assert not proved(work, outputs=("elsewhere/a",))  # the same task, asked for another folder


@pytest.mark.parametrize("size", [0, 4, 6])
def test_a_resized_output_is_no_output(work: Path, size: int) -> None:
    (work / "out/a").write_bytes(b"x" * size)
    assert not proved(work)


def test_a_lost_output_is_no_output(work: Path) -> None:
    (work / "out/a").unlink()
    assert not proved(work)
    (work / "out").rmdir()
    (work / "out").write_text("a file where the folder was")
    assert not proved(work)


def test_a_torn_or_lost_receipt_is_none(work: Path) -> None:
    path = receipts.path_of(work, "step", "000001")
    whole = path.read_bytes()
    for torn in (b"", whole[:20], b"[]", b"{}", b'{"digest": "digest"}', b"\xff"):
        path.write_bytes(torn)
        assert receipts.read(work, "step", "000001") is None
        assert not proved(work)
    path.write_bytes(whole)
    receipts.forget(work, "step", "000001")
    receipts.forget(work, "step", "000001")
    assert not proved(work)
