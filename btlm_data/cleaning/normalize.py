"""Unicode repair of a document: NFC, or ftfy as SlimPajama's scripts use it, skipping what ftfy cannot
change.

`normalize_ftfy(text)` equals `ftfy.fix_text(text, normalization="NFC")` on every text (ftfy 6.3; the tests
compare them). ftfy works line by line, and its steps cannot touch a line of plain ASCII that has neither a
control character that ftfy removes or turns into a line break, nor an HTML entity:

    unescape_html          needs `&...;`
    fix_encoding           leaves ASCII alone (its first test)
    C1 controls, ligatures, character width, curly quotes, surrogates     need a character above 127
    line breaks            needs a carriage return
    terminal escapes, control characters      need a control character below 32 or 127
    NFC                    leaves ASCII alone

Of the other lines, those stay as they are that hold no entity, no character of the fixed sets above, are in
NFC, and are not `is_bad` (ftfy's own first test of an encoding mistake; it needs one of some 400 characters,
so most lines are spared it). Lines whose only such characters are curly quotes, the most common case, get
them straightened; ftfy does all the rest.

One thing is carried from line to line: from the first line with a `<` on, entities stay as they are.
"""

from __future__ import annotations

import importlib.metadata
import re
import unicodedata
from collections.abc import Callable
from functools import lru_cache
from typing import Any, Literal

from btlm_data.errors import ConfigError, install_command

_MAX_SEGMENT = 1_000_000  # ftfy's max_decode_length, in characters: longer lines are cut there
_SUSPECT_BYTES = bytes([*range(0x09), 0x0B, *range(0x0D, 0x20), 0x7F])
_SUSPECT = re.compile(r"[^\t\n\x0c\x20-\x7e]")
_ENTITY = re.compile(r"&#?[0-9A-Za-z]{1,24};")  # what ftfy takes for an entity
_SUSPECT_OR_ENTITY = re.compile(f"{_SUSPECT.pattern}|{_ENTITY.pattern}")
# Every character that a step after fix_encoding may change, but for the curly quotes.
_TOUCHED = re.compile(
    "[\x00-\x08\x0b\r\x0e-\x1f\x7f-\x9f\u2028\u2029\u206a-\u206f\ufeff\ufff9-\ufffc"  # controls
    "\u0132\u0133\u0149\u01c4-\u01cc\u01f1-\u01f3\ufb00-\ufb06"  # ligatures
    "\u3000\uff01-\uffef\ud800-\udfff]"  # character width, surrogates
)
_QUOTES = re.compile("[\u02bc\u2018-\u201f]")


Normalization = Literal["nfc", "ftfy", "none"]


def normalizer(kind: Normalization) -> Callable[[str], str]:
    """The function that normalises a text; it returns the very same object if nothing changes.

    Raises ConfigError if ftfy is requested and not installed.
    """
    if kind == "ftfy":
        _Ftfy.load()
        return normalize_ftfy
    return normalize_nfc if kind == "nfc" else str


def normalizer_version(kind: Normalization) -> str:
    """The versions of what decides the result: another one may change other characters."""
    if kind == "ftfy":
        return f"ftfy {_Ftfy.load().version}, Unicode {unicodedata.unidata_version}"
    return f"Unicode {unicodedata.unidata_version}" if kind == "nfc" else ""


def normalize_nfc(text: str) -> str:
    """The text in Normalization Form C (Unicode Standard Annex 15); the very same object if it is in it
    already.
    """
    if text.isascii() or unicodedata.is_normalized("NFC", text):
        return text
    return unicodedata.normalize("NFC", text)


def normalize_ftfy(text: str) -> str:
    """`ftfy.fix_text(text, normalization="NFC")`; the very same object if nothing changes. Raises ConfigError
    if ftfy is not installed.
    """
    if text.isascii():
        plain = text.encode()
        if len(plain.translate(None, _SUSPECT_BYTES)) == len(plain) and not (
            "&" in text and _ENTITY.search(text)
        ):
            return text
    ftfy = _Ftfy.load()
    tag = text.find("<")
    entities_until = (
        len(text) if tag < 0 else text.rfind("\n", 0, tag) + 1
    )  # the line of the first `<` keeps its entities
    pieces: list[str] = []
    done = start = 0
    while start < len(text):
        suspect = (_SUSPECT_OR_ENTITY if start < entities_until else _SUSPECT).search(text, start)
        if suspect is None:
            break
        begin = text.rfind("\n", start, suspect.start()) + 1 or start
        end = text.find("\n", suspect.start()) + 1 or len(text)
        if end - begin > _MAX_SEGMENT:
            return ftfy.whole(text)  # cuts a long line at places that depend on it
        line = text[begin:end]
        fixed = ftfy.line(line, entities=begin < entities_until)
        if fixed != line:
            pieces += (text[done:begin], fixed)
            done = end
        start = end
    if not pieces:
        return text
    pieces.append(text[done:])
    return "".join(pieces)


class _Ftfy:
    """ftfy, loaded once a process, with its settings before and after the first `<`."""

    def __init__(self) -> None:
        try:
            import ftfy
            from ftfy import badness, fixes
        except ImportError:
            raise ConfigError(
                "clean.normalize is ftfy, and the package ftfy is not installed. "
                f"Install it with: {install_command('ftfy')}, or set clean.normalize=nfc."
            ) from None
        self._ftfy: Any = ftfy
        self.version: str = importlib.metadata.version("ftfy")
        self._is_bad: Any = badness.is_bad
        self._uncurl: Any = fixes.uncurl_quotes
        self._with_entities = ftfy.TextFixerConfig(normalization="NFC", explain=False)
        self._without_entities = self._with_entities._replace(unescape_html=False)
        # Each alternative of the badness pattern needs one of the characters above 127 that it is written
        # with.
        pattern = badness.BADNESS_RE.pattern
        ranges = re.findall(r"[^\x00-\x7f]-[^\x00-\x7f]", pattern)
        self._may_be_bad = re.compile(
            "[" + "".join(sorted({c for c in pattern if ord(c) > 127})) + "".join(ranges) + "]"
        )

    @staticmethod
    @lru_cache(maxsize=1)
    def load() -> _Ftfy:
        """The one instance of this process."""
        return _Ftfy()

    def whole(self, text: str) -> str:
        """What ftfy itself makes of everything."""
        return str(self._ftfy.fix_text(text, self._with_entities))

    def line(self, line: str, *, entities: bool) -> str:
        """What ftfy makes of one line (with its line break)."""
        if (
            _TOUCHED.search(line) is None
            and not (entities and _ENTITY.search(line))
            and self._is_settled(line)
        ):
            fixed = self._uncurl(line) if _QUOTES.search(line) else line
            if fixed == line or self._is_settled(fixed):
                return str(fixed)
        return str(
            self._ftfy.fix_text_segment(line, self._with_entities if entities else self._without_entities)
        )

    def _is_settled(self, line: str) -> bool:
        return unicodedata.is_normalized("NFC", line) and not (
            self._may_be_bad.search(line) and self._is_bad(line)
        )
