"""JSON files that carry their own checksum and may come from a stranger: sealed when written, decoded by type
when read.

`checksum` is the SHA-256 of the file's JSON without that key: keys sorted, no white space, UTF-8. Files are
read only if they are regular and of bounded size; every mistake is named with its key, its value and what was
expected.
"""

from __future__ import annotations

import hashlib
import json
import re
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, TypeVar

import msgspec
from msgspec import Meta

from btlm_data.errors import DataError

NO_CHECKSUM = "0" * 64
SHA256_PATTERN = r"^[0-9a-f]{64}\Z"
Sha256 = Annotated[str, Meta(pattern=SHA256_PATTERN)]
Value = TypeVar("Value")


# Writing ----------------------------------------------------------------------------------------------------


def canonical(tree: object) -> bytes:
    """JSON with sorted keys and without white space, in UTF-8."""
    return json.dumps(
        tree, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    ).encode()


def checksum_of(tree: Mapping[str, Any]) -> str:
    """The checksum that the JSON object `tree` should carry."""
    return hashlib.sha256(canonical({k: v for k, v in tree.items() if k != "checksum"})).hexdigest()


def sealed(tree: Mapping[str, Any]) -> bytes:
    """A JSON object with its checksum, as it is stored: keys sorted, a final newline."""
    return msgspec.json.format(canonical({**tree, "checksum": checksum_of(tree)}), indent=1) + b"\n"


# Reading ----------------------------------------------------------------------------------------------------


def read_small(path: Path, max_bytes: int) -> bytes:
    """A regular file of bounded size, read whole. Raises DataError for anything else: a pipe or a device
    would hang.
    """
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise refused(str(path), "it is not a regular file")
        if status.st_size > max_bytes:
            raise refused(str(path), f"it has {status.st_size:,} bytes, at most {max_bytes:,} are expected")
        return path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        raise missing(str(path)) from None
    except (OSError, ValueError) as error:
        raise refused(str(path), getattr(error, "strerror", None) or str(error)) from None


def missing(shown: str) -> DataError:
    """The error for a dataset.json that is not there."""
    return DataError(f"There is no {shown}. Name a dataset folder made by `btlm-data prepare`.")


def refused(shown: str, problem: str) -> DataError:
    """The error for a file that cannot be used. problem: what is wrong with it."""
    return DataError(f"{shown} cannot be used: {problem}. Restore it, or prepare the dataset again.")


def parse(data: bytes, shown: str) -> dict[str, Any]:
    """The JSON object in `data`; its numbers are finite. Raises DataError if it is not one."""
    try:
        tree = msgspec.json.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise refused(shown, f"it is not valid JSON ({error})") from None
    if not isinstance(tree, dict):
        raise refused(shown, f"it holds a {type(tree).__name__}, expected an object")
    return tree


def convert(tree: dict[str, Any], kind: type[Value], shown: str, words: Mapping[str, str]) -> Value:
    """A JSON object as a value of type `kind`. words: what is expected where a pattern is not matched."""
    try:
        return msgspec.convert(tree, kind)
    except msgspec.ValidationError as error:
        raise DataError(_explain(tree, kind, shown, error, words)) from None
    except RecursionError:
        raise refused(shown, "it is nested too deeply") from None


def unsealed(data: bytes, kind: type[Value], shown: str, words: Mapping[str, str]) -> Value:
    """A file's content as a value of type `kind`, with the checksum that it was sealed with. Raises DataError, naming the
    mistake, if it is none. words: as for `convert`.
    """
    tree = parse(data, shown)
    value = convert(tree, kind, shown, words)
    if tree.get("checksum") != checksum_of(tree):
        raise refused(shown, "its checksum is not that of its content: it was changed or damaged")
    return value


# The key of a mistake ---------------------------------------------------------------------------------------

_AT = re.compile(r"^(?P<message>.*?)(?: - at `(?P<inner>[^`]*)`(?: in `(?P<outer>[^`]*)`)?)?$", re.DOTALL)


def _explain(
    tree: dict[str, Any],
    kind: type[object],
    shown: str,
    error: msgspec.ValidationError,
    words: Mapping[str, str],
) -> str:
    """The mistake with its key's full path and value.

    The decoder names a position as `$.splits[...].files[0].bytes`; which key of a dictionary it was is found
    by trying.
    """
    match = _AT.match(str(error))
    message, inner, outer = match.groups() if match else (str(error), None, None)
    keys = _keys(tree, kind, str(error), outer or inner or "$")
    value: object = tree
    for key in keys:
        value = value[key]  # type: ignore[index]  # a key of it, by construction
    path = "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in keys).lstrip(".")
    message = re.sub(r"^Object (missing|contains)", lambda verb: f"it {verb[1]}", message).replace("`", "")
    for pattern, expected in {SHA256_PATTERN: "64 hexadecimal digits", **words}.items():
        message = message.replace(f"str matching regex {pattern!r}", expected)
    message = message.splitlines()[0]
    if inner == "key" and isinstance(value, dict):
        value = _failing_key(tree, kind, str(error), keys, value)
    if not isinstance(value, dict | list):
        text = repr(value)
        message = f"{message}, found {text if len(text) <= 80 else text[:77] + '...'}"
    return f"{shown}: {path or 'the file'}: {message}. Restore the file, or prepare the dataset again."


def _keys(tree: dict[str, Any], kind: type[object], problem: str, path: str) -> list[str | int]:
    """Keys from the root to the value that `path` means."""
    keys: list[str | int] = []
    value: object = tree
    for token in re.findall(r"\.[^.\[]+|\[\d+\]|\[\.\.\.\]", path):
        if token == "[...]" and isinstance(value, dict):
            key: str | int = _failing_key(tree, kind, problem, keys, value)
        elif token == "[...]":
            break
        else:
            key = int(token[1:-1]) if token[0] == "[" else token[1:]
        try:
            value = value[key]  # type: ignore[index]  # dict or list, as the decoder says
        except (LookupError, TypeError):
            break
        keys.append(key)
    return keys


def _failing_key(
    tree: dict[str, Any], kind: type[object], problem: str, keys: list[str | int], value: dict[str, Any]
) -> str:
    """The key of the dictionary at `keys` whose value is the mistake, by halving."""
    names = list(value)
    while len(names) > 1:
        half = names[: len(names) // 2]
        try:
            msgspec.convert(_replaced(tree, keys, {name: value[name] for name in half}), kind)
        except msgspec.ValidationError as error:
            names = half if str(error) == problem else names[len(names) // 2 :]
        else:
            names = names[len(names) // 2 :]
    return names[0]


def _replaced(tree: Any, keys: list[str | int], value: object) -> Any:
    """A copy of a tree with one value replaced."""
    if not keys:
        return value
    copy: Any = dict(tree) if isinstance(tree, dict) else list(tree)
    copy[keys[0]] = _replaced(tree[keys[0]], keys[1:], value)
    return copy
