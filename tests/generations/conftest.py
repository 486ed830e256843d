"""A dataset that grew."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.generations.corpora import PARTS, first, grow, write


@pytest.fixture(scope="session")
def grown(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset of three generations. Tests that change it change a copy."""
    folder = tmp_path_factory.mktemp("grown")
    root = first(write(folder / "p0.jsonl", PARTS[0]), folder / "out")
    for number in (1, 2):
        grow(root, write(folder / f"p{number}.jsonl", PARTS[number]))
    return root
