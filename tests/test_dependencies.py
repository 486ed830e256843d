"""What pyproject.toml promises about versions is what `make oldest` tests."""

from __future__ import annotations

import re
from pathlib import Path

from tools.lowest_versions import lowest

ROOT = Path(__file__).resolve().parent.parent


def _numbers(version: str) -> list[int]:
    numbers = [int(number) for number in re.findall(r"\d+", version)]
    while numbers[-1:] == [0]:
        numbers.pop()
    return numbers


def test_the_oldest_set_holds_every_lower_bound() -> None:
    lines = (ROOT / "constraints-oldest.txt").read_text(encoding="utf-8").splitlines()
    pinned = dict(line.lower().replace("_", "-").split("==") for line in lines if not line.startswith("#"))
    bounds = lowest(ROOT / "pyproject.toml")
    assert len(bounds) > 20
    for name, version in bounds.items():
        assert _numbers(pinned[name.lower().replace("_", "-")]) == _numbers(version), name
