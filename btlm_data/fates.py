"""What became of each document: one byte by ordinal, written by the stages that drop documents."""

from __future__ import annotations

from enum import IntEnum


class Fate(IntEnum):
    """Kept, or why not. The number is what stands on disk (holdout/draw/RANGE.cols, `fate` uint8): never renumber."""

    KEPT = 0
    EXACT_DUPLICATE = 1
    NEAR_DUPLICATE = 2
    DUPLICATE_OF_HOLDOUT = 3
    NEAR_DUPLICATE_OF_HOLDOUT = 4
    IN_INDEX = 5
    EQUALS_HOLDOUT = 6
    CONTAMINATED = 7

    @property
    def reason(self) -> str:
        """As the ledger names it."""
        return self.name.lower()

    @property
    def stage(self) -> str:
        """The stage whose drop it is."""
        return "kept" if self is Fate.KEPT else "holdout" if self >= Fate.EQUALS_HOLDOUT else "dedupe"
