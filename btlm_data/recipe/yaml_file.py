"""Reads YAML files with the line of every key; the only YAML reader of the project.

What is read is the core schema of YAML 1.2 (https://yaml.org/spec/1.2.2/#103-core-schema): 6e-4 is a number,
`no` and 2048:0.75 are text, 010 is ten. Everything else that YAML can do is refused with a message: tags, a
second document, keys that are no plain text, a key twice, and, in recipes, aliases. Size, depth and the
number of values are bounded, so that no file can take more memory or time than a few seconds.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from btlm_data.errors import ConfigError

MAX_BYTES = 2**20
MAX_DEPTH = 40
MAX_VALUES = 100_000
_MAX_DIGITS = 40
_NULL = {"", "~", "null", "Null", "NULL"}
_BOOLEANS = dict.fromkeys(("true", "True", "TRUE"), True) | dict.fromkeys(("false", "False", "FALSE"), False)
_INTEGER = re.compile(r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", re.ASCII)
_FLOAT = re.compile(
    r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)"
)

KeyPath = tuple[str, ...]


class YamlError(ValueError):
    """Text that is not the YAML we read. line, column: from 1, or None where not known."""

    def __init__(self, message: str, line: int | None = None, column: int | None = None) -> None:
        super().__init__(message)
        self.line, self.column = line, column


class YamlFile(NamedTuple):
    """A file's values, and where each came from.

    tree: the mapping that the file holds; list items have paths too, by position ("0", "1", ...). lines: the
    line of each key path, from 1. texts: what was written for each number and each true or false, such as
    "1e3" for 1000.0.
    """

    name: str
    tree: dict[str, Any]
    lines: Mapping[KeyPath, int]
    texts: Mapping[KeyPath, str]

    def where(self, path: KeyPath) -> str:
        """The file and the line of a key, or of the nearest key above it: "recipe.yaml line 3"."""
        line = next((self.lines[path[:i]] for i in range(len(path), 0, -1) if path[:i] in self.lines), None)
        return f"{self.name} line {line}" if line else self.name


def read(path: Path, kind: str = "recipe", *, aliases: bool = False) -> YamlFile:
    """Read a file whose top level is a mapping; an empty file is an empty mapping.

    kind: what the file is to the user ("recipe", "sources file"), for messages. aliases: whether `&name`,
    `*name` and `<<` may be used. Raises ConfigError that names the file, the line and what to change.
    """
    try:
        if path.is_fifo() and not str(path).startswith(
            ("/dev/fd/", "/proc/")
        ):  # those are the shell's: `<(...)`
            raise ConfigError(f"The {kind} {path} is a pipe, which might never end. Name a file.")
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise ConfigError(f"The {kind} {path} cannot be read: {reason}. Check the path.") from None
    if len(data) > MAX_BYTES:
        raise ConfigError(
            f"The {kind} {path} is larger than {MAX_BYTES:,} bytes, too large for a file of settings. Check "
            "the path."
        )
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"The {kind} {path} is not UTF-8 text (byte {error.start}). Save it as UTF-8."
        ) from None
    try:
        return parse(text, str(path), aliases=aliases)
    except YamlError as error:
        where = f" line {error.line}, column {error.column}" if error.line else ""
        raise ConfigError(f"{path}{where}: {error}") from None


def parse(text: str, name: str, *, aliases: bool = False) -> YamlFile:
    """Read text whose top level is a mapping. Raises YamlError."""
    root = _compose(text, aliases)
    values = _Values(root)
    if values.tree is None:
        return YamlFile(name, {}, {}, {})
    if not isinstance(values.tree, dict):
        kind = "a list" if isinstance(values.tree, list) else "a single value"
        raise YamlError(f"expected `key: value` lines, but the file holds {kind}.", 1, 1)
    return YamlFile(name, values.tree, values.lines, values.texts)


def parse_value(text: str) -> Any:
    """Read one value, as it would be after a key: 6e-4, true, [a, b]. Raises YamlError."""
    return _Values(_compose(text, False)).tree


class _Node(NamedTuple):
    """A value in the file. content: the scalar's value, or the children by key (a list's by position).

    text: as `YamlFile.texts`.
    """

    line: int
    content: Any
    is_list: bool = False
    children: dict[str, _Node] | None = None
    text: str | None = None


class _Values:
    """The Python values below a node, with lines and texts. Each use of an alias counts for MAX_VALUES."""

    def __init__(self, root: _Node | None) -> None:
        self.lines: dict[KeyPath, int] = {}
        self.texts: dict[KeyPath, str] = {}
        self._count = 0
        self.tree: Any = None if root is None else self._value(root, ())

    def _value(self, node: _Node, path: KeyPath) -> Any:
        self._count += 1
        if self._count > MAX_VALUES:
            raise YamlError(
                f"more than {MAX_VALUES:,} values. Settings are far fewer; shorten the file.", node.line, 1
            )
        if node.children is None:
            if node.text is not None:
                self.texts[path] = node.text
            return node.content
        for key, child in node.children.items():
            self.lines[(*path, key)] = child.line
        values = {key: self._value(child, (*path, key)) for key, child in node.children.items()}
        return list(values.values()) if node.is_list else values


def _compose(text: str, aliases: bool) -> _Node | None:
    """The root node of the only document in `text`, or None if there is none."""
    try:
        events = yaml.parse(text, Loader=yaml.SafeLoader)
        return _Composer(events, aliases).document()
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        column = error.position - (text.rfind("\n", 0, error.position) + 1) + 1
        raise YamlError(
            f"the character U+{ord(text[error.position]):04X} is not allowed in YAML. Remove it.",
            line,
            column,
        ) from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line_and_column = (mark.line + 1, mark.column + 1) if mark else (None, None)
        raise YamlError(f"not valid YAML ({error.problem}). Correct that line.", *line_and_column) from None


class _Composer:
    """Events to nodes, one by one, so that what is too deep is refused before the rest is read."""

    def __init__(self, events: Iterator[Any], aliases: bool) -> None:
        self._events = events
        self._aliases = aliases
        self._anchors: dict[str, _Node | None] = {}  # None while the anchored value is not complete

    def document(self) -> _Node | None:
        next(self._events)  # the start of the stream
        if isinstance(next(self._events), yaml.StreamEndEvent):
            return None
        root = self._node(next(self._events), 0)
        next(self._events)  # the end of the document
        following: Any = next(self._events)
        if not isinstance(following, yaml.StreamEndEvent):
            raise _error("a second document begins here (`---`). Keep one document in the file.", following)
        return root

    def _node(self, event: Any, depth: int) -> _Node:
        if isinstance(event, yaml.AliasEvent):
            return self._alias(event)
        if event.anchor is not None:
            if not self._aliases:
                raise _error(
                    f"YAML anchors and aliases (&{event.anchor}) are not allowed here. Write the value out.",
                    event,
                )
            self._anchors[event.anchor] = None
        if event.tag is not None and event.tag != "!":
            raise _error(
                f"YAML tags ({_shown_tag(event.tag)}) are not allowed. Write text in quotes and numbers as "
                "they are.",
                event,
            )
        if isinstance(event, yaml.ScalarEvent):
            node = _scalar(event)
        else:
            if depth >= MAX_DEPTH:
                raise _error(
                    f"more than {MAX_DEPTH} levels of nesting. No setting is that deep; check the brackets.",
                    event,
                )
            is_list = isinstance(event, yaml.SequenceStartEvent)
            children = self._list(depth) if is_list else self._mapping(depth)
            node = _Node(event.start_mark.line + 1, None, is_list, children)
        if event.anchor is not None:
            self._anchors[event.anchor] = node
        return node

    def _alias(self, event: Any) -> _Node:
        if not self._aliases:
            raise _error(
                f"YAML anchors and aliases (*{event.anchor}) are not allowed here. Write the value out.",
                event,
            )
        node = self._anchors.get(event.anchor)
        if node is None:
            raise _error(
                f"the alias *{event.anchor} has no complete value before it. Define it above with "
                f"&{event.anchor}.",
                event,
            )
        return node._replace(line=event.start_mark.line + 1)

    def _list(self, depth: int) -> dict[str, _Node]:
        items: dict[str, _Node] = {}
        while not isinstance(event := next(self._events), yaml.SequenceEndEvent):
            items[str(len(items))] = self._node(event, depth + 1)
        return items

    def _mapping(self, depth: int) -> dict[str, _Node]:
        children: dict[str, _Node] = {}
        merged: dict[str, _Node] = {}
        while not isinstance(key := next(self._events), yaml.MappingEndEvent):
            if not _is_plain_key(key):
                raise _error("a key must be plain text, such as `seed:`. Correct that line.", key)
            value = self._node(next(self._events), depth + 1)
            if key.value == "<<" and key.implicit[0]:
                merged = self._merged(value, key) | merged
                continue
            name = _text(key)
            if name in children:
                raise _error(
                    f"the key {name!r} is given twice, first in line {children[name].line}. Remove one of "
                    "them.",
                    key,
                )
            children[name] = value._replace(line=key.start_mark.line + 1)
        return merged | children

    def _merged(self, value: _Node, key: Any) -> dict[str, _Node]:
        """The keys that `<<` brings in; of several mappings the first wins."""
        sources = list((value.children or {}).values()) if value.is_list else [value]
        if not self._aliases or any(source.children is None or source.is_list for source in sources):
            raise _error("the merge key `<<` is not allowed here. Write the keys out.", key)
        merged: dict[str, _Node] = {}
        for source in reversed(sources):
            merged |= source.children or {}
        return merged


def _scalar(event: Any) -> _Node:
    """A scalar's value by YAML 1.2's core schema; what is in quotes is always text."""
    line, text = event.start_mark.line + 1, _text(event)
    if not event.implicit[0]:
        return _Node(line, text)
    if text in _NULL:
        return _Node(line, None)
    if text in _BOOLEANS:
        return _Node(line, _BOOLEANS[text], text=text)
    if _INTEGER.fullmatch(text):
        if len(text) > _MAX_DIGITS:
            raise _error(
                f"a number of {len(text):,} digits. No setting is that large; put text in quotes.", event
            )
        return _Node(line, int(text, {"0o": 8, "0x": 16}.get(text[:2], 10)), text=text)
    if _FLOAT.fullmatch(text):
        number = float(text.lower().replace(".inf", "inf").replace(".nan", "nan"))
        return _Node(line, number, text=text)
    return _Node(line, text)


def _is_plain_key(event: Any) -> bool:
    return isinstance(event, yaml.ScalarEvent) and event.tag is None and event.anchor is None


def _text(event: Any) -> str:
    """A scalar's text; two escapes that JSON writes for one character are joined."""
    text = str(event.value)
    if not any(0xD800 <= ord(character) < 0xE000 for character in text):
        return text
    try:
        return text.encode("utf-16", "surrogatepass").decode("utf-16")
    except UnicodeDecodeError:
        raise _error(
            "an escape such as \\ud800 is half a character. Write the character itself.", event
        ) from None


def _shown_tag(tag: str) -> str:
    return tag.replace("tag:yaml.org,2002:", "!!")[:60]


def _error(message: str, event: Any) -> YamlError:
    mark = event.start_mark
    return YamlError(message, mark.line + 1, mark.column + 1)
