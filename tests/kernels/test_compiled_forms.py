"""A process is given the compiled form that it asks for or none, whatever others do with the files at the same time."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from numba.core.caching import IndexDataCacheFile

from btlm_data.kernels.compiled_forms import FormFiles

Kind = Callable[..., IndexDataCacheFile]


def files(kind: Kind, folder: Path, version: str = "1", stamp: str = "source") -> Any:
    opened: Any = kind(str(folder), "kernel-1.py311", stamp)
    opened._version = version
    return opened


def interleaved(kind: Kind, folder: Path) -> Any:
    """What the first of two forms is afterwards that two processes save, both of which found nothing."""
    one, other = files(kind, folder), files(kind, folder)
    looked = other._load_index
    looks = iter([dict])
    other._load_index = lambda: next(looks, looked)()
    one.save("ints", "code for ints")
    other.save("floats", "code for floats")
    one._save_data(next(iter(one._load_index().values())), "code for ints")  # a slow disk: only now
    return files(kind, folder).load("floats")


def test_two_that_compile_different_forms_do_not_get_each_others(tmp_path: Path) -> None:
    assert interleaved(FormFiles, tmp_path) in ("code for floats", None)


@pytest.mark.parametrize("other", [{"version": "0"}, {"stamp": "older source"}])
def test_what_another_version_or_source_left_is_never_loaded(other: dict[str, str], tmp_path: Path) -> None:
    files(FormFiles, tmp_path, **other).save("ints", "stale")
    seen = []

    class Watched(FormFiles):
        def _save_index(self, overloads: Any) -> None:
            seen.append(files(FormFiles, tmp_path).load("ints"))
            super()._save_index(overloads)
            seen.append(files(FormFiles, tmp_path).load("ints"))

        def _save_data(self, name: str, data: Any) -> None:
            seen.append(files(FormFiles, tmp_path).load("ints"))
            super()._save_data(name, data)

    files(Watched, tmp_path).save("ints", "fresh")
    assert seen == [None, None, "fresh"]
    assert files(FormFiles, tmp_path).load("ints") == "fresh"
    assert len(list(tmp_path.glob("*.nbc"))) == 1, "what nobody can load is gone"


def test_numbas_own_would_be(tmp_path: Path) -> None:
    """Why there is a class of our own. Where this fails, numba has mended it."""
    (tmp_path / "forms").mkdir()
    assert interleaved(IndexDataCacheFile, tmp_path / "forms") == "code for ints"
    files(IndexDataCacheFile, tmp_path, version="0").save("ints", "stale")
    fresh = files(IndexDataCacheFile, tmp_path)
    fresh._save_data = lambda *_: None  # not yet
    fresh.save("ints", "fresh")
    assert files(IndexDataCacheFile, tmp_path).load("ints") == "stale"


_COUNTED = """
import os, sys, tempfile
created = []
made = tempfile.TemporaryFile
tempfile.TemporaryFile = lambda *a, **k: created.append(k.get("dir")) or made(*a, **k)
from btlm_data.kernels import buckets, deflate, minhash, shingles, union_find
declared = len(created)
import numpy as np
deflate.deflate_units(np.arange(6, dtype=np.uint16).reshape(2, 3), 2)
union_find.flatten(np.zeros(3, np.uint32))
print(declared, len(created))
"""


def test_a_folder_is_tried_once_and_not_for_every_kernel(tmp_path: Path) -> None:
    """numba itself creates and removes a file for each of a hundred kernels of a process."""
    environment = os.environ | {"NUMBA_CACHE_DIR": str(tmp_path)}
    for kept in (False, True):
        done = subprocess.run(
            [sys.executable, "-c", _COUNTED], env=environment, capture_output=True, text=True, check=True
        )
        declared, called = map(int, done.stdout.split())
        assert declared <= 1, "only the package's own try of the folder"
        assert called == declared + 1, "the folder of the kernels, once"
        assert len(list(tmp_path.rglob("*.nbi"))) > 2, kept


def test_a_kernel_is_kept_where_its_folder_was_removed_meanwhile(tmp_path: Path) -> None:
    script = (
        "import shutil, sys, numpy as np\n"
        "from btlm_data.kernels import deflate, union_find\n"
        "deflate.deflate_units(np.arange(6, dtype=np.uint16).reshape(2, 3), 2)\n"
        "shutil.rmtree(sys.argv[1])\n"
        "union_find.flatten(np.zeros(3, np.uint32))\n"
    )
    environment = os.environ | {"NUMBA_CACHE_DIR": str(tmp_path / "kept")}
    subprocess.run([sys.executable, "-c", script, str(tmp_path / "kept")], env=environment, check=True)
    assert {path.name.split("-")[0] for path in (tmp_path / "kept").rglob("*.nbi")} == {"union_find._flatten"}
