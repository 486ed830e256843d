"""Compiled kernels are kept in the first folder that can be written, and nothing fails where there is
none.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from btlm_data.kernels import words

ROOT = Path(__file__).resolve().parents[2]
CODE = """
import numpy as np
from btlm_data.kernels import compiling, union_find
parent = np.arange(3, dtype=np.uint32)
union_find.unite(parent, parent[:1].copy(), parent[2:].copy())
print(parent.tolist(), compiling.CACHE_FOLDER)
"""


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A copy of the kernels whose own __pycache__ cannot be made, whoever runs this."""
    kernels = tmp_path / "package" / "btlm_data" / "kernels"
    shutil.copytree(ROOT / "btlm_data" / "kernels", kernels, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("__init__.py", "errors.py"):
        shutil.copy(ROOT / "btlm_data" / name, kernels.parent)
    (kernels / "__pycache__").write_text("not a folder")
    return kernels.parent.parent


def run(package: Path, **environment: str) -> str:
    command = [sys.executable, "-B", "-c", CODE]
    environment = {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": str(package),
        "HOME": "/proc/none",
        **environment,
    }
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, cwd="/")
    assert done.returncode == 0, done.stderr
    result, _, folder = done.stdout.strip().partition("] ")
    assert result == "[0, 1, 0"
    return folder


def compiled(folder: Path) -> int:
    return len(list(folder.rglob("*.nbi")))


def test_the_package_itself_comes_first() -> None:
    from btlm_data.kernels import compiling

    assert compiling.CACHE_FOLDER == ROOT / "btlm_data" / "kernels" / "__pycache__"
    assert compiling.numba.config.CACHE_DIR == ""  # type: ignore[attr-defined]


def test_then_the_cache_of_the_user(package: Path, tmp_path: Path) -> None:
    folder = run(package, XDG_CACHE_HOME=str(tmp_path / "cache"))
    assert folder == str(tmp_path / "cache" / "btlm-data" / "numba")
    assert compiled(tmp_path / "cache") > 0


def test_a_folder_that_the_user_chose_comes_before(package: Path, tmp_path: Path) -> None:
    environment = {"NUMBA_CACHE_DIR": str(tmp_path / "chosen"), "XDG_CACHE_HOME": str(tmp_path / "cache")}
    assert run(package, **environment) == str(tmp_path / "chosen")
    assert compiled(tmp_path / "chosen") > 0


def test_a_change_in_another_file_of_kernels_counts(package: Path, tmp_path: Path) -> None:
    chosen = {"NUMBA_CACHE_DIR": str(tmp_path / "chosen")}
    kept = []
    for addition in ("", "", "# more"):
        with (package / "btlm_data" / "kernels" / "ranges.py").open("a") as file:
            file.write(addition)
        run(package, **chosen)
        kept.append({path.name for path in (tmp_path / "chosen").rglob("*.nbc")})
    assert kept[0] == kept[1]
    assert kept[0].isdisjoint(kept[2])


def test_then_a_private_folder_below_the_temporary_one(package: Path, tmp_path: Path) -> None:
    (tmp_path / "tmp").mkdir()
    environment = {
        "NUMBA_CACHE_DIR": "/proc/none",
        "XDG_CACHE_HOME": "/proc/none",
        "TMPDIR": str(tmp_path / "tmp"),
    }
    folder = Path(run(package, **environment))
    assert folder == tmp_path / "tmp" / f"btlm-data-numba-{os.geteuid()}"
    assert folder.stat().st_mode & 0o077 == 0
    assert compiled(folder) > 0


@pytest.mark.parametrize("kind", ["open to others", "a link", "a file"])
def test_a_temporary_folder_that_another_may_write_is_not_trusted(
    kind: str, package: Path, tmp_path: Path
) -> None:
    private = tmp_path / "tmp" / f"btlm-data-numba-{os.geteuid()}"
    private.parent.mkdir()
    if kind == "open to others":
        private.mkdir()
        private.chmod(0o777)
    elif kind == "a link":
        (tmp_path / "target").mkdir(mode=0o700)
        private.symlink_to(tmp_path / "target")
    else:
        private.write_text("")
    environment = {"XDG_CACHE_HOME": "/proc/none", "TMPDIR": str(private.parent)}
    assert run(package, **environment) == "None"
    assert compiled(tmp_path) == 0


@pytest.mark.parametrize("fails", [False, True])
def test_a_kernel_is_compiled_beside_and_only_loaded_afterwards(fails: bool, tmp_path: Path) -> None:
    code = f"""
import os
os.sched_getaffinity = lambda _: range(2)
import numpy as np
from btlm_data.kernels import compiling, union_find
parent, held = np.arange(3, dtype=np.uint32), os.open("/dev/null", os.O_RDONLY)
def load():
    assert not {fails}
    union_find.flatten(parent)
    os.fstat(held)  # fails, so that nothing is printed: a lock of the program is not inherited
    print("inherited", flush=True)
for _ in range(2):
    with compiling.compiling_beside(load, union_find._flatten):
        print(union_find._flatten.stats.cache_misses, compiling.is_compiled(union_find._flatten))
print(compiling.is_compiled(union_find._flatten))
union_find.flatten(parent)
print(sum(union_find._flatten.stats.cache_hits.values()))
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"NUMBA_CACHE_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
    )
    assert done.stdout.split("\n")[:-1] == (
        ["Counter() False", "Counter() False", "False", "0"]
        if fails
        else ["Counter() False", "Counter() True", "True", "1"]
    )


def test_numba_without_scipy_and_cffi_is_whole() -> None:
    code = """
import sys
from btlm_data.kernels import load_numba, want_numba_alone
want_numba_alone()
load_numba()
import numba, numpy as np
assert numba.njit(lambda a: a.sum())(np.ones(3)) == 3
assert not {"scipy", "cffi"} & set(sys.modules)
import scipy, cffi
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr


def test_the_operations_on_words_that_numba_lacks() -> None:
    """They use numba's intrinsics, whose code generation is not a public interface: a change must show
    here.
    """
    import numba

    data = np.arange(32, dtype=np.uint8)

    njit: Callable[[Callable[..., Any]], Callable[..., Any]] = numba.njit

    @njit
    def load(array: Any, offset: int) -> Any:
        return words.load64(array, offset)

    @njit
    def store(array: Any, offset: int, value: Any) -> None:
        words.store64(array, offset, value)

    @njit
    def zeros(value: Any) -> Any:
        return words.trailing_zeros(value)

    for offset in range(24):
        assert int(load(data, offset)) == int.from_bytes(data[offset : offset + 8].tobytes(), "little")
        copy = data.copy()
        store(copy, offset, np.uint64(0x0102030405060708))
        assert copy[offset : offset + 8].tolist() == [8, 7, 6, 5, 4, 3, 2, 1]
        assert (
            np.delete(copy, np.s_[offset : offset + 8]).tolist()
            == np.delete(data, np.s_[offset : offset + 8]).tolist()
        )
    assert [int(zeros(np.uint64(1 << bit))) for bit in range(64)] == list(range(64))
    assert int(zeros(np.uint64(0))) == 64
