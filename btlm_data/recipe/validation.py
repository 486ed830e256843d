"""Pydantic's validation errors as messages: the key, the file and line or the option, the value, and the
nearest known name.
"""

from __future__ import annotations

import difflib
import re
import types
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError

from btlm_data.recipe.yaml_file import KeyPath

_BOUNDS = {
    "greater_than": "more than",
    "greater_than_equal": "at least",
    "less_than": "less than",
    "less_than_equal": "at most",
}
_MAX_ERRORS = 20
_MAX_SHOWN = 80


def explain(error: ValidationError, model: type[BaseModel], where: Callable[[KeyPath], str | None]) -> str:
    """One line for each thing that is wrong.

    where: the file and line, or the option, of a key path; None if not known.
    """
    problems: dict[KeyPath, dict[str, Any]] = {}
    for problem in error.errors(include_url=False):  # of the members of a union, the first says it
        problems.setdefault(key_path(problem["loc"]), dict(problem))
    lines = [_line(problem, model, where) for problem in problems.values()]
    if len(lines) > _MAX_ERRORS:
        lines[_MAX_ERRORS:] = [f"and {len(lines) - _MAX_ERRORS} more."]
    return "\n".join(lines)


def key_path(location: tuple[int | str, ...]) -> KeyPath:
    """A location of pydantic as a key path: what it adds for keys and the members of unions is left out."""
    return tuple(
        str(part)
        for part in location
        if not re.fullmatch(
            r"\[key\]|(dict|function-.*|list|tuple)\[.*\]|str|constrained-str|dict", str(part)
        )
    )


def nearest(name: str, known: Mapping[str, Any] | list[str]) -> str:
    """A sentence that names the known name nearest to `name`, or all of them."""
    near = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f"Did you mean {near[0]}?" if near else f"Known here: {', '.join(sorted(known))}."


def _line(problem: dict[str, Any], model: type[BaseModel], where: Callable[[KeyPath], str | None]) -> str:
    path = key_path(problem["loc"])
    origin = where(path)
    prefix = f"{origin}: " if origin else ""
    key = _cut(".".join(path)) or "the file"
    if problem["type"] == "extra_forbidden":
        known = _known_keys(model, path[:-1])
        near = difflib.get_close_matches(path[-1], known, n=1, cutoff=0.5)
        advice = (
            f"Did you mean {'.'.join((*path[:-1], near[0]))}?"
            if near
            else f"Known here: {', '.join(sorted(known))}."
        )
        return f"{prefix}there is no setting {key!r}. {advice}"
    if problem["type"] == "missing":
        return f"{prefix}{key} is missing. Add it."
    value, message = problem.get("input"), _message(problem)
    given = (
        ""
        if isinstance(value, dict | tuple | BaseModel)
        or (isinstance(value, list) and value)
        or (len(str(value)) > 3 and repr(value) in message)
        else f" (given: {_cut(repr(value))})"
    )
    return f"{prefix}{key}: {message}{given}."


def _message(problem: dict[str, Any]) -> str:
    """What is expected."""
    kind, value, context = problem["type"], problem.get("input"), problem.get("ctx", {})
    if kind == "string_type":
        if isinstance(value, list | dict):
            given_kind, example = ("list", "[SEP]") if isinstance(value, list) else ("mapping", "{name}")
            return f"expected text, found a {given_kind}; text in brackets needs quotes: '{example}'"
        return "expected text; put it in quotes"
    if kind == "string_unicode":
        return "not Unicode text; a file or folder of such a name must be renamed"
    if kind in ("int_type", "int_parsing", "int_from_float"):
        return "expected a whole number"
    if kind in ("float_type", "float_parsing"):
        return "expected a number"
    if kind in ("bool_type", "bool_parsing"):
        return "expected true or false"
    if kind in ("tuple_type", "list_type"):
        return "expected a list, such as [a, b]"
    if kind in ("model_type", "model_attributes_type", "dict_type"):
        return "expected a section of `key: value` lines"
    if kind == "finite_number":
        return "expected a finite number"
    if kind in _BOUNDS:
        bound = next(iter(context.values()))
        return f"must be {_BOUNDS[kind]} {bound:,}" if isinstance(bound, int | float) else "out of range"
    if kind == "literal_error":
        return f"must be {context['expected']}"
    if kind in ("string_too_short", "too_short"):
        return "must not be empty"
    if kind in ("string_too_long", "too_long"):
        unit = "characters" if kind == "string_too_long" else "items"
        return f"longer than the {context.get('max_length', 0):,} {unit} allowed"
    message = re.sub(r"^(Value error|Assertion failed), ", "", str(problem["msg"]))
    message = message.removeprefix("Input should be ")
    return (
        message if message[:1].islower() or message != problem["msg"] else message[:1].lower() + message[1:]
    )


def _cut(text: str) -> str:
    return text if len(text) <= _MAX_SHOWN else f"{text[:_MAX_SHOWN]}..."


def _known_keys(model: type[BaseModel], path: KeyPath) -> list[str]:
    """The field names of the model at `path` below `model`; empty if there is none."""
    current: Any = model
    for part in path:
        fields = current.model_fields if _is_model(current) else None
        if fields is None or part not in fields:
            if part.isdigit() and fields is not None:
                continue
            return []
        current = _inner_model(fields[part].annotation)
    return list(current.model_fields) if _is_model(current) else []


def _inner_model(annotation: Any) -> Any:
    """The model inside Annotated, tuple, list, dict, or union types, or None."""
    if _is_model(annotation):
        return annotation
    if get_origin(annotation) in (Annotated, Union, types.UnionType, tuple, list, dict):
        return next((inner for part in get_args(annotation) if (inner := _inner_model(part))), None)
    return None


def _is_model(value: Any) -> bool:
    return isinstance(value, type) and issubclass(value, BaseModel)
