"""A received dataset is data: nothing outside its folder is read or shown, nothing hangs, nothing commands the terminal."""

from __future__ import annotations

import contextlib
import os
import resource
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest

from btlm_data import terminal
from btlm_data.errors import ConfigError, DataError
from btlm_data.inspection import render
from btlm_data.inspection.check import Check, show
from btlm_data.inspection.summary import inspect
from btlm_data.inspection.verify import verify
from tests.reference import dataset

SECRET = "root:x:0:0:a secret of this machine"


def external_storage(path: Path, secret: Path) -> None:
    with h5py.File(path, "w") as file:
        file.create_dataset("data", (4, 3, 8), "i4", external=[(str(secret), 0, h5py.h5f.UNLIMITED)])


def external_link(path: Path, secret: Path) -> None:
    with h5py.File(secret.with_suffix(".hdf"), "w") as file:
        file["x"] = np.ones((4, 3, 8), "i4")
    with h5py.File(path, "w") as file:
        file["data"] = h5py.ExternalLink(str(secret.with_suffix(".hdf")), "/x")


def virtual(path: Path, secret: Path) -> None:
    layout = h5py.VirtualLayout((4, 3, 8), "i4")
    layout[:] = h5py.VirtualSource(str(secret), "x", (4, 3, 8))
    with h5py.File(path, "w") as file:
        file.create_virtual_dataset("data", layout)


def endless_rows(path: Path, secret: Path) -> None:
    with h5py.File(path, "w") as file:
        file.create_dataset("data", (2**40, 3, 8), "i4", chunks=(1, 3, 8), compression="gzip")
        file.attrs["n_examples"] = 2**40


def endless_row(path: Path, secret: Path) -> None:
    with h5py.File(path, "w") as file:
        file.create_dataset("data", (2, 3, 2**36), "i4", chunks=(1, 1, 2**20), compression="gzip")


def pipe(path: Path, secret: Path) -> None:
    os.mkfifo(path)


def device(path: Path, secret: Path) -> None:
    path.symlink_to("/dev/zero")


def loop(path: Path, secret: Path) -> None:
    path.symlink_to(path)


TRAPS: list[Callable[[Path, Path], None]] = [
    external_storage,
    external_link,
    virtual,
    endless_rows,
    endless_row,
    pipe,
    device,
    loop,
]


@pytest.mark.timeout(60)
@pytest.mark.parametrize("trap", TRAPS, ids=lambda trap: trap.__name__)
@pytest.mark.parametrize("listed", [False, True], ids=["foreign", "listed"])
def test_a_trap_in_place_of_a_shard_is_refused_in_words(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    trap: Callable[[Path, Path], None],
    listed: bool,
) -> None:
    secret = tmp_path / "secret"
    secret.write_text(SECRET * 100)
    root = tmp_path / "shards"
    dataset.write(root, {"train": dataset.documents(9, "train")})
    if not listed:
        (root / "dataset.json").unlink()
    shard = root / "train/data-00000.h5"
    shard.unlink()
    trap(shard, secret)
    console = terminal.console()
    render.render(inspect(root), console, full=True)
    checks = verify(root, lambda check: show(check, console))
    assert not all(check.ok for check in checks)
    shown = capsys.readouterr().out
    assert "secret of this" not in shown
    assert "data-00000.h5" in shown
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < 4_000_000  # kB


@pytest.mark.parametrize(
    ("form", "shape"),
    [
        *(("sample", shape) for shape in ((7, 3, 2, 16), (7, 16), (7,))),
        *(("corpus", shape) for shape in ((7, 3, 2, 16), (7, 3, 16), (7, 16))),
    ],
)
def test_a_shard_with_other_axes_than_the_first_is_refused_in_words(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], form: str, shape: tuple[int, ...]
) -> None:
    root = tmp_path / "shards"
    dataset.write(root, {"train": dataset.documents(30, "train")}, form=form)
    shard = root / "train/data-00001.h5"
    rows = np.ones(shape, np.uint16 if form == "corpus" else np.int32)
    dataset.write_shard(shard, rows)
    dataset.resign(root)
    console = terminal.console()
    for number in range(30):
        with contextlib.suppress(DataError, ConfigError):
            render.render(inspect(root, sample=[number]), console, full=True)
    assert not all(check.ok for check in verify(root, lambda check: show(check, console)))
    assert "data-00001.h5" in capsys.readouterr().out


def test_control_characters_of_names_and_texts_never_reach_the_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    evil = "\x1b]52;c;Y3VybA==\x07\x1b[2J\u202etxt.exe[/red][link=http://x]"
    root = tmp_path / "shards"
    dataset.write(root, {"train": dataset.documents(30, "train")})

    def plant(manifest: dict[str, object]) -> None:
        manifest["tokenizer"]["name"] = evil  # type: ignore[index]
        manifest["left_out"] = [{"reason": evil, "files": 1, "names": [evil]}]
        for row in manifest["ledger"]:  # type: ignore[attr-defined]
            row["dropped"][evil] = {"documents": 1}
            row["source"] = evil + row["source"]

    dataset.edit_manifest(root, plant)
    (root / "provenance.json").write_text('{"' + evil + '": 1}')
    console = terminal.console()
    for full in (False, True):
        render.render(inspect(root), console, full=full, samples=True)
    checks: list[Check] = []

    def seen(check: Check) -> None:
        checks.append(check)
        show(check, console)

    verify(root, seen)
    shown = capsys.readouterr().out
    assert any(check.ok is False for check in checks)
    assert not set(shown) & set("\x1b\x07\u202e")
    assert "[/red]" in shown  # as it is, not as markup
