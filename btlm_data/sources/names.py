"""Names that come from a listing: which are safe, and how they are shown."""

from __future__ import annotations

import unicodedata

from btlm_data.terminal import visible

MAX_NAME_BYTES = 1024
_SHOWN = 200  # characters of a name in a message
# Characters that turn the direction of the text after them: a name could be shown as another.
_TURNING = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


def is_safe_name(name: str) -> bool:
    """Whether a name from a listing is a plain relative path.

    It has no `..`, root or drive, no control character, no character that turns the direction of text, no
    character that is not one (lone surrogates), and at most 1,024 bytes.
    """
    if not name or len(name.encode("utf-8", "surrogatepass")) > MAX_NAME_BYTES:
        return False
    if name.startswith("/") or "\\" in name or (len(name) > 1 and name[1] == ":"):
        return False
    if any(part in ("", ".", "..") for part in name.split("/")):
        return False
    return not any(
        character in _TURNING or unicodedata.category(character) in ("Cc", "Cs") for character in name
    )


def shown(name: str) -> str:
    """A name for a message: what a terminal could obey is written as an escape, and it is cut after 200
    characters.
    """
    return (
        visible(name if len(name) <= _SHOWN else name[:_SHOWN] + "...")
        .replace("\n", "\\n")
        .replace("\t", "\\t")
    )
