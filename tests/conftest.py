"""Shared by all tests: the repository root is importable, so that tests can use `tests.reference` and `tests.strategies`."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
