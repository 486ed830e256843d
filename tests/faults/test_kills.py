from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults.kill_runs import kill_and_resume


def test_a_few_kills_change_no_byte(tmp_path: Path) -> None:
    assert kill_and_resume(6, 7, tmp_path) == []


@pytest.mark.stress
@pytest.mark.timeout(3600)
def test_two_hundred_kills_change_no_byte(tmp_path: Path) -> None:
    assert kill_and_resume(200, 1, tmp_path) == []
