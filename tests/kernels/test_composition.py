"""What the kernel takes for plainly composed is so by Python's own tables, character by character and in texts."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import example, given, settings

from btlm_data.errors import DataError
from btlm_data.kernels import composition
from tests.tokenizer.makers import TEXTS


def are_composed(texts: Sequence[str]) -> list[bool]:
    encoded = [text.encode() for text in texts]
    offsets = np.cumsum([0, *map(len, encoded)], dtype=np.int64)
    plain: list[bool] = composition.are_composed(np.frombuffer(b"".join(encoded), np.uint8), offsets).tolist()
    return plain


def test_each_plain_character_is_composed_and_never_joins_the_one_before() -> None:
    points = [*range(0x20000), *range(0x20000, 0x110000, 64)]  # the kernel does not look at a fourth byte
    characters = [chr(point) for point in points if not 0xD800 <= point < 0xE000]
    parts = [unicodedata.decomposition(character).split() for character in characters]
    joining = {chr(int(part[1], 16)) for part in parts if len(part) == 2 and part[0][0] != "<"}
    joining |= {
        chr(point) for point in (*range(0x1161, 0x1176), *range(0x11A8, 0x11C3))
    }  # parts of Hangul syllables
    plain = [c for c, is_plain in zip(characters, are_composed(characters), strict=True) if is_plain]
    assert len(plain) > 40_000
    assert {"a", "é", "ß", "ж", "’", "…", "€", "→", "中", "か", "パ", "한", "😀"} <= set(plain)
    assert not joining.intersection(plain)
    assert all(unicodedata.combining(c) == 0 and unicodedata.is_normalized("NFC", c) for c in plain)


@settings(max_examples=300, deadline=None)
@given(TEXTS, TEXTS)
@example("e\u0301", "\u1100\u1161")
@example("plain ASCII of more than eight bytes", "x" * 7 + "\u212b")
def test_texts_beside_each_other_are_judged_alone(one: str, other: str) -> None:
    verdicts = are_composed([one, other, one])
    assert verdicts == [are_composed([text])[0] for text in (one, other, one)]
    for text, is_plain in zip((one, other), verdicts, strict=False):
        assert not is_plain or unicodedata.is_normalized("NFC", text)
        assert is_plain or not text.isascii()


def test_a_character_that_is_cut_off_is_not_plain_and_offsets_are_checked() -> None:
    utf8 = np.frombuffer("aé’中".encode(), np.uint8)
    for end in (2, 4, 5, 7, 8):
        assert composition.are_composed(utf8, np.array([0, end])).tolist() == [False]
    assert composition.are_composed(utf8, np.array([0, 1, 3, 6, 9])).all()
    with pytest.raises(DataError):
        composition.are_composed(utf8, np.array([0, 10]))
