"""Texts in UTF-8, and again after some of them have changed, are what encoding each of them gives."""

from __future__ import annotations

import numpy as np
from hypothesis import example, given
from hypothesis import strategies as st

from btlm_data.stages import block_writer

texts = st.lists(st.text(st.characters(exclude_categories=["Cs"])), max_size=9)


def laid(documents: list[str]) -> tuple[bytes, list[int]]:
    parts = [text.encode() for text in documents]
    return b"".join(parts), np.cumsum([0, *map(len, parts)]).tolist()


@given(texts, st.data())
@example([], None)
@example(["", ""], None)
@example(["é", "plain", "漢字", ""], None)
@example(["é" * k for k in range(64)], None)
@example(["plain" * (k % 3) + "漢字" for k in range(200)], None)
def test_texts_are_laid_end_to_end(documents: list[str], data: st.DataObject | None) -> None:
    utf8, offsets = block_writer._encoded(documents)
    assert (utf8.tobytes(), offsets.tolist()) == laid(documents)
    assert [array.dtype.name for array in (utf8, offsets)] == ["uint8", "int64"]
    numbers = st.sets(st.integers(0, max(0, len(documents) - 1)))
    changed = sorted(data.draw(numbers)) if data and documents else list(range(len(documents)))
    later = [text + "é" * k if k in changed else text for k, text in enumerate(documents)]
    utf8, offsets = block_writer._with_changed(utf8, offsets, later, changed)
    assert (utf8.tobytes(), offsets.tolist()) == laid(later)
    assert [array.dtype.name for array in (utf8, offsets)] == ["uint8", "int64"]
