"""Finding the text and the source name in a record, and saying why there is no text.

A field's name is a path: dots descend into objects. Where that leads nowhere, a field whose name holds the
dots itself is taken ("meta.url" in flattened tables). A step may also lead through a string that is JSON, or
a map given as pairs.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

MISSING = object()
_MAX_JSON_STRING = 2**20  # a longer string is not looked into
_SHOWN_FIELDS = 8
MAX_SOURCE_NAME = 1000  # characters: every name is in dataset.json, in each stage of the ledger
_JOIN_HINT = "; source.text_join joins the strings of a list"


def lookup(record: Any, name: str) -> Any:
    """The value of a field; MISSING if there is none."""
    if not name:
        return MISSING
    value = descend(record, name.split("."))
    if (value is MISSING or value is None) and isinstance(record, Mapping) and "." in name:
        return record.get(name, value)
    return value


def descend(value: Any, path: Sequence[str]) -> Any:
    """The value at the end of a path; MISSING where a step leads nowhere."""
    for key in path:
        if isinstance(value, str | bytes):
            value = from_json_string(value)
        elif isinstance(value, list) and value and isinstance(value[0], tuple):
            value = dict(value)  # pyarrow gives a map as pairs
        if not isinstance(value, Mapping) or key not in value:
            return MISSING
        value = value[key]
    return value


def from_json_string(value: str | bytes) -> Any:
    """The object that a string spells in JSON; MISSING if it is something else."""
    if len(value) > _MAX_JSON_STRING or value.lstrip()[:1] not in ("{", b"{"):
        return MISSING
    try:
        return json.loads(value, parse_int=float)
    except (ValueError, RecursionError):
        return MISSING


def source_name(value: Any, default: str) -> str:
    """A source name from the field's value: a string that is not empty and no whole text, else `default`."""
    is_name = isinstance(value, str) and 0 < len(value) <= MAX_SOURCE_NAME and is_encodable(value)
    return value if is_name else default


def is_encodable(text: str) -> bool:
    """Whether a string has no lone surrogate."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def joined(value: Any, text_join: str | None) -> Any:
    """The text that a list of strings is, where the setting asks for it; anything else as it is."""
    if text_join is not None and isinstance(value, list) and all(isinstance(part, str) for part in value):
        return text_join.join(value)
    return value


def why_no_text(value: Any, name: str, field_names: Sequence[str], noun: str = "field") -> tuple[str, str]:
    """Reason and detail where `value` is in the place of a text. field_names: of the record."""
    if value is MISSING:
        shown = ", ".join(map(repr, field_names[:_SHOWN_FIELDS])) or "none"
        more = "" if len(field_names) <= _SHOWN_FIELDS else f" and {len(field_names) - _SHOWN_FIELDS} more"
        return "missing_text", f"no {noun} {name!r}; found {shown}{more}"
    if value is None:
        return "null_text", f"{noun} {name!r} is null"
    return "text_not_a_string", f"{noun} {name!r} is {kind(value)}{_JOIN_HINT if is_strings(value) else ''}"


def is_strings(value: Any) -> bool:
    """Whether a value is a list that begins with a string."""
    return isinstance(value, list) and bool(value) and isinstance(value[0], str)


def kind(value: Any) -> str:
    """What a value is, in JSON's words."""
    if isinstance(value, bool):
        return "a boolean"
    if value is None:
        return "null"
    if isinstance(value, int | float):
        return "a number"
    if isinstance(value, str):
        return "a string"
    if isinstance(value, bytes):
        return "bytes"
    return "an array" if isinstance(value, list | tuple) else "an object"


def as_text(value: Any) -> str | None:
    """A field's value as a string to be kept: strings as they are (lone surrogates replaced), others in JSON.

    None where there is no value.
    """
    if value is MISSING or value is None:
        return None
    if isinstance(value, str):
        return value if is_encodable(value) else value.encode("utf-8", "replace").decode()
    return to_json(value).decode()


def to_json(value: Any) -> bytes:
    """A record's value as JSON on one line; what JSON has no word for becomes a string, or null.

    Lone surrogates are replaced.
    """
    try:
        return msgspec.json.encode(value, enc_hook=_foreign)
    except (TypeError, ValueError, RecursionError):
        text = json.dumps(value, default=_foreign, ensure_ascii=False, skipkeys=True)
        return text.encode("utf-8", "replace")


def _foreign(value: Any) -> Any:
    """A value of a table that JSON has no word for."""
    return None if type(value) is object else str(value)


def without(fields: Mapping[str, Any], name: str) -> dict[str, Any]:
    """The fields of a record but one, found as `lookup` finds it."""
    first, _, rest = name.partition(".")
    kept = dict(fields)
    if not rest or first not in kept:
        kept.pop(name, None)
    elif isinstance(kept[first], Mapping):
        kept[first] = without(kept[first], rest)
        if not kept[first]:
            del kept[first]
    return kept
