"""64 ASCII bytes are normalised as one: what the instruction is told of each byte, and where the instructions are missing."""

from __future__ import annotations

import os
import subprocess
import sys
from itertools import pairwise

import pytest

from btlm_data.kernels import ascii_blocks

PROGRAM = """
import numpy as np
from btlm_data.kernels import ascii_blocks, normalisation
text = "The  QUICK, brown\\tfox. " * 20 + "é" + " - x" * 40
data = np.frombuffer(text.encode(), np.uint8)
print(ascii_blocks.has_instructions())
print(normalisation.normalise([text], data, np.array([0, len(data)])).utf8.tobytes().decode())
"""


def test_white_space_is_pythons() -> None:
    assert set(ascii_blocks._WHITE_SPACE) == {chr(c) for c in range(128) if chr(c).isspace()}


@pytest.mark.parametrize("characters", ["a", "abc", "\t\n\v\f\r\x1c\x1d\x1e\x1f ", "!/:@[`{~", "az09"])
def test_characters_are_told_by_ranges(characters: str) -> None:
    ranges = list(ascii_blocks._ranges(characters))
    assert {chr(first + k) for first, count in ranges for k in range(count)} == set(characters)
    assert all(first + count < after for (first, count), (after, _) in pairwise(ranges))


def test_a_processor_without_the_instructions_has_the_same_texts() -> None:
    """Kernels compiled for any processor of this kind: nothing in them is of AVX-512."""
    outputs = []
    for name in (None, "generic"):
        environment = {key: value for key, value in os.environ.items() if not key.startswith("NUMBA_CPU")}
        if name is not None:
            environment |= {"NUMBA_CPU_NAME": name, "NUMBA_CPU_FEATURES": ""}
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True, check=True
        )
        outputs.append(done.stdout.splitlines())
    assert outputs[0][1] == outputs[1][1] == "the quick brown fox " * 20 + "é" + " x" * 40
    assert outputs[1][0] == "False"
