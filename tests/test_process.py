"""What a command asks of its process: in processes of their own, as it holds for the whole of one."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from btlm_data import process

DEFAULTS = ("OPENBLAS_NUM_THREADS", "PYDANTIC_DISABLE_PLUGINS", "ARROW_DEFAULT_MEMORY_POOL")
ALLOCATING = """
import resource, sys
from btlm_data import process
if sys.argv[1] == "keep":
    process.keep_freed_memory()
def fill():
    arrays = [bytearray(30 << 20) for _ in range(4)]
fill()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    fill()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""

CALLING = """
import resource, sys
from btlm_data import process
def leaf():
    pass
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(500):
        leaf()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
def most(depth):
    here = faults()
    return max(here, most(depth - 1)) if depth else here
def work():
    print(most(700))
process.with_room_for_frames(work) if sys.argv[1] == "room" else work()
"""


def run(code: str, *arguments: str, **variables: str) -> str:
    unset = (*DEFAULTS, *(name for name in os.environ if name.startswith("MALLOC_")))
    environment = {name: value for name, value in os.environ.items() if name not in unset}
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(
        command, env=environment | variables, capture_output=True, check=True, text=True
    ).stdout


@pytest.mark.skipif(sys.platform != "linux", reason="asks glibc")
def test_freed_memory_is_used_again_without_the_system() -> None:
    assert 4 * int(run(ALLOCATING, "keep")) < int(run(ALLOCATING, "leave"))
    assert 4 * int(run(ALLOCATING, "keep", MALLOC_TRIM_THRESHOLD_="0")) > int(run(ALLOCATING, "leave"))


@pytest.mark.skipif(sys.implementation.name != "cpython", reason="asks CPython's stack of frames")
def test_no_depth_of_calls_takes_memory_at_each_of_them() -> None:
    assert int(run(CALLING, "room")) < 100
    if sys.version_info[:2] == (3, 11):  # what the room is for; a later version may have mended it
        assert int(run(CALLING, "none")) >= 500


def test_an_error_within_the_room_is_the_callers() -> None:
    def work() -> None:
        raise KeyError("inside")

    with pytest.raises(KeyError, match="inside"):
        process.with_room_for_frames(work)


def test_defaults_are_for_the_command_alone_and_give_way_to_the_user() -> None:
    show = f"import os; print([os.environ.get(name) for name in {DEFAULTS!r}])"
    assert run(f"import btlm_data, btlm_data.api; {show}") == "[None, None, None]\n"
    command = f"import sys; sys.argv = ['btlm-data', '-q']; from btlm_data import process; process.set_defaults(); {show}"
    assert run(command) == "['1', '__all__', 'system']\n"
    assert run(command, OPENBLAS_NUM_THREADS="3") == "['3', '__all__', 'system']\n"


def test_the_command_sets_them_before_it_imports_anything_else() -> None:
    code = (
        "import sys; sys.argv = ['btlm-data', '--help']\n"
        "from btlm_data import process\n"
        "def seen(): assert not {'numpy', 'pydantic', 'pyarrow'} & set(sys.modules); print('first')\n"
        "process.set_defaults = seen\n"
        "from btlm_data.__main__ import main; main()"
    )
    assert run(code).startswith("first\n")
