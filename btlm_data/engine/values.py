"""Settings and tasks as JSON, by which a process on another machine gets exactly what was planned. Data,
never code.

    null, true, 1, 1.5, "text", [...]     themselves          {"tuple": [...]}        a tuple
    {"map": [[key, value], ...]}          a dict              {"path": "..."}         a Path
    {"type": "module:Class", "fields": {name: value}}         a Struct, a dataclass, a NamedTuple or a model of settings
    {"function": "module:name"}                               a function, of those that do tasks

Only classes and functions of this project are named or looked up, so that a file from elsewhere can make
nothing else run. What a dataclass marks `repr=False` is secret (signed addresses) and is refused: work
folders hold no secrets.
"""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import FunctionType
from typing import Any

import msgspec
from pydantic import BaseModel

from btlm_data.errors import ConfigError, DataError

PACKAGES = ["btlm_data"]  # tests add their own


def encode(value: Any) -> Any:
    """The value as JSON values. Raises TypeError for a type that has no spelling, ConfigError for a secret."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Path):
        return {"path": str(value)}
    if isinstance(value, BaseModel):
        fields = {name: getattr(value, name) for name in type(value).model_fields}
        return _object(type(value), fields | (value.model_extra or {}))
    if isinstance(value, tuple):
        if (names := getattr(value, "_fields", None)) is not None:
            return _object(type(value), dict(zip(names, value, strict=True)))
        return {"tuple": [encode(item) for item in value]}
    if isinstance(value, Mapping):
        return {"map": [[encode(key), encode(item)] for key, item in value.items()]}
    if isinstance(value, Sequence):
        return [encode(item) for item in value]
    if isinstance(value, FunctionType):
        return {"function": _name(value)}
    if isinstance(value, msgspec.Struct):
        return _object(type(value), msgspec.structs.asdict(value))
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        members = [field for field in dataclasses.fields(value) if field.init]
        for field in members:
            if not field.repr and getattr(value, field.name):
                raise ConfigError(
                    "The addresses of the source's files are signed, and such addresses are written nowhere; only "
                    "--engine local can read them. Download the source first, or use it without a signature."
                )
        return _object(type(value), {field.name: getattr(value, field.name) for field in members})
    raise TypeError(f"{type(value)} is no value that a task may have")


def decode(value: Any) -> Any:
    """Inverse of encode. Raises DataError for what `encode` does not write."""
    if isinstance(value, list):
        return [decode(item) for item in value]
    if not isinstance(value, dict):
        return value
    match value:
        case {"path": str(path)}:
            return Path(path)
        case {"tuple": list(items)}:
            return tuple(decode(item) for item in items)
        case {"map": list(items)}:
            return {decode(key): decode(item) for key, item in items}
        case {"function": str(name)}:
            return function(name)
        case {"type": str(name), "fields": dict(fields)}:
            return _make(name, {key: decode(item) for key, item in fields.items()})
    raise _foreign(str(value)[:80])


def function(name: str) -> Callable[..., Any]:
    """A function of this project by "module:name"."""
    value = _find(name)
    if not isinstance(value, FunctionType):
        raise _foreign(name)
    return value


def _make(name: str, fields: dict[str, Any]) -> Any:
    cls = _find(name)
    if not isinstance(cls, type):
        raise _foreign(name)
    try:
        if issubclass(cls, BaseModel):
            return cls.model_construct(**fields)
        is_record = dataclasses.is_dataclass(cls) or issubclass(cls, msgspec.Struct)
        if is_record or (issubclass(cls, tuple) and hasattr(cls, "_fields")):
            return cls(**fields)
    except TypeError as error:
        raise _foreign(f"{name} ({error})") from error
    raise _foreign(name)


def _object(cls: type, fields: Mapping[str, Any]) -> dict[str, Any]:
    return {"type": _name(cls), "fields": {key: encode(item) for key, item in fields.items()}}


def _name(value: Any) -> str:
    return f"{value.__module__}:{value.__qualname__}"


def _find(name: str) -> Any:
    module, _, attribute = name.partition(":")
    if module.partition(".")[0] not in PACKAGES or not attribute.isidentifier():
        raise _foreign(name)
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise _foreign(name) from error


def _foreign(name: str) -> DataError:
    return DataError(
        f"A file of tasks in the work folder names {name!r}, which this version of btlm-data does not know. "
        "Use the same version for the run and for its workers."
    )
