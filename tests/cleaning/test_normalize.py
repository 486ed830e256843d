from __future__ import annotations

import unicodedata

import ftfy
import pytest
from ftfy import badness
from hypothesis import example, given, settings
from hypothesis import strategies as st

from btlm_data.cleaning import normalize
from btlm_data.cleaning.normalize import normalize_ftfy, normalize_nfc
from btlm_data.errors import ConfigError

# Pieces that each of ftfy's steps reacts to, and harmless ones between them.
PIECES = [
    "plain words ", "\n", "\n\n", "\r\n", "\r", "\x85", "\u2028", "\u2029", "<", "<b>", "&amp;", "&eacute;", "&NTILDE;", "&#x27;", "&#65;", "&lt;", "& ;", "&nosuch;", "&",
    "\u2018", "\u2019", "\u201c", "\u201d", "\u02bc", "\u201b", "\u2013", "\u2014", "\u2026", "\ufb01", "\u0149", "\u01c4", "\uff21", "\uff06amp\uff1b", "\u3000", "\uff76\uff9e", "\x00", "\x07", "\x0b", "\x0c", "\x1b[31m", "\x7f", "\ufeff", "\ufffc", "\ufffd", "\u206a",
    "\x91", "\x80", "é", "e\u0301", "\u0301", "\u212b", "\u1100\u1161", "日本語", "Привет", "✔", "😀", "œ", "Œ ", "°", "²", "£", "€", "¿", "×", "à²", "║", "▒",
    "sÃ³", "voilÃ le travail", "âœ” ", "â€œquoteâ€\x9d", "â€™", "Ã ", "Â ", "Â£", "ÃƒÂ©", "Ð¿Ñ€Ð¸Ð²ÐµÑ‚", "ñ", "Å", "ã\x83\x84", "\xa0", "\xad", "t", " ", "a" * 40,
]  # fmt: skip
TEXTS = st.lists(st.sampled_from(PIECES) | st.text(max_size=4), max_size=14).map("".join)


def reference(text: str) -> str:
    return ftfy.fix_text(text, normalization="NFC")


@settings(max_examples=1500, deadline=None)
@given(TEXTS)
@example("&amp; first\n<b> &amp;\n&amp; ’ after")
@example("Ã la\nÃ la ’")
@example("x\nÃ la\n")
@example("line\r")
@example("\n’\n")
@example("＆ａｍｐ；")
@example("<\n&amp;")
@example("&lt;b&gt; &amp;")
def test_equal_to_ftfy(text: str) -> None:
    assert normalize_ftfy(text) == reference(text)


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=200))
def test_equal_to_ftfy_on_any_text(text: str) -> None:
    assert normalize_ftfy(text) == reference(text)


@pytest.mark.parametrize("context", ["{}", "a{}b", "word {} word\nnext", "’{}", "é{}é", "{0}{0}"])
def test_every_character_below_u3400_and_the_compatibility_forms(context: str) -> None:
    for code in [
        *range(0x3400),
        *range(0xD7F0, 0xE010),
        *range(0xF8F0, 0x10010),
        *range(0x1F5F0, 0x1F610),
        0xE0001,
        0x10FFFF,
    ]:
        text = context.format(chr(code))
        assert normalize_ftfy(text) == reference(text), hex(code)


def test_lines_of_ftfys_longest_segment() -> None:
    for length in (1_000_000, 1_000_003):
        text = "a " * (length // 2 - 2) + "a" * (length % 2) + "’é\n" + "“tail”"
        assert normalize_ftfy(text) == reference(text)


def test_the_kinds_and_their_versions() -> None:
    assert normalize.normalizer("none")("e\u0301’") == "e\u0301’"
    assert normalize.normalizer("nfc")("e\u0301’") == "é’"
    assert normalize.normalizer("ftfy")("e\u0301’") == "é'"
    assert normalize.normalizer_version("none") == ""
    assert normalize.normalizer_version("nfc") == f"Unicode {unicodedata.unidata_version}"
    assert f"ftfy {ftfy.__version__}" in normalize.normalizer_version("ftfy")


def test_what_does_not_change_is_the_same_object() -> None:
    for text in ("plain text, 2 < 3 & so on; \t\x0c\n", "héllo wörld\n日本語 – ok", ""):
        assert normalize_ftfy(text) is text
        assert normalize_nfc(text) is text
        assert all(normalize.normalizer(kind)(text) is text for kind in ("none", "nfc", "ftfy"))


def test_a_bad_line_needs_a_character_that_the_fast_test_knows() -> None:
    """The premise of `_may_be_bad`: no alternative of ftfy's pattern matches without a non-ASCII character
    written in it.
    """
    may_be_bad = normalize._Ftfy.load()._may_be_bad
    for name, characters in badness.MOJIBAKE_CATEGORIES.items():
        ascii_in_it = {c for c in characters if ord(c) < 128} - {"-"}  # `-` writes ranges
        assert not ascii_in_it, name
    others = [
        chr(code)
        for code in range(0x80, 0x3000)
        if not may_be_bad.match(chr(code)) and not 0xD800 <= code < 0xE000
    ]
    assert len(others) > 10_000
    line = " ".join(others) + "".join(others) + "a1 .".join(others)
    assert not badness.is_bad(line)
    assert not badness.is_bad("".join(map(chr, range(1, 128))) * 2)


@settings(max_examples=300, deadline=None)
@given(TEXTS | st.text(max_size=100))
def test_nfc(text: str) -> None:
    assert normalize_nfc(text) == unicodedata.normalize("NFC", text)


def test_ftfy_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "ftfy", None)
    normalize._Ftfy.load.cache_clear()
    try:
        with pytest.raises(ConfigError, match=r"pip install '\.\[ftfy\]'"):
            normalize_ftfy("’")
    finally:
        monkeypatch.undo()
        normalize._Ftfy.load.cache_clear()
