"""What is asked: samples and tokens of the shards, or documents by what is known of them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, cast

import msgspec

from btlm_data.errors import ConfigError, InputError
from btlm_data.formats.sealed_json import read_small

Kind = Literal["sample", "row", "tokens", "id", "url", "hash", "line", "text", "any", "where", "ngrams"]
MAX_LIST_BYTES = 2**30
MAX_PASSAGE_BYTES = 2**20
_HASH = re.compile(r"[0-9a-fA-F]{32}\Z")
_FILE_AND_OFFSET = re.compile(r"(?P<file>.+)#(?P<offset>[0-9]{1,18})\Z", re.DOTALL)
_RANGE = re.compile(r"([0-9]{1,18})-([0-9]{1,18})\Z")


class Query(msgspec.Struct, frozen=True):
    """One question.

    sample, row, tokens: what is there. value: a sample's number; FILE:ROW of a shard; A-B of the stream. id,
    url, hash, line, text: where documents are: by their id (or FILE#OFFSET), URL, text hash, FILE:LINE (from
    1), or a passage of their text. any: an id, a URL or a hash. where: documents that satisfy an expression
    (where.py). ngrams: those that have 13 words in a row in common with a file (shared_ngrams.py).
    """

    kind: Kind
    value: str

    @property
    def is_of_documents(self) -> bool:
        """Whether documents are looked for, not what is somewhere in the shards."""
        return self.kind not in ("sample", "row", "tokens")

    @property
    def file_and_offset(self) -> tuple[str, int] | None:
        """(file, offset) where the value is a document's FILE#OFFSET."""
        match = _FILE_AND_OFFSET.match(self.value) if self.kind in ("id", "any") else None
        return (match["file"], int(match["offset"])) if match else None

    @property
    def file_and_line(self) -> tuple[str, int]:
        """File and line (from 0) of a query of kind `line`."""
        file, _, line = self.value.rpartition(":")
        return file, int(line) - 1

    @property
    def digest(self) -> bytes | None:
        """The hash, where the value can be one."""
        return bytes.fromhex(self.value) if self.kind in ("hash", "any") and _HASH.match(self.value) else None

    @property
    def range(self) -> tuple[int, int]:
        """First and one past the last position, of a query of kind `tokens`."""
        match = _RANGE.match(self.value)
        assert match is not None
        return int(match[1]), int(match[2])


def make(kind: Kind, value: str) -> Query:
    """A question, checked. Raises ConfigError with an example where the value cannot be one of its kind."""
    examples = {
        "sample": (r"[0-9]{1,18}\Z", "17"),
        "row": (r".+\.h5:[0-9]{1,18}\Z", "data-00003.h5:12"),
        "tokens": (_RANGE.pattern, "0-2048"),
        "hash": (_HASH.pattern, "the 32 hexadecimal digits of a text's XXH3 (128 bits)"),
        "line": (r"(?s:.+):[1-9][0-9]{0,17}\Z", "corpus/a.jsonl:17"),
    }
    if kind in examples and not re.match(examples[kind][0], value):
        raise ConfigError(f"{value[:200]!r} is no {kind}. Write for example {examples[kind][1]}.")
    if kind == "tokens" and (bounds := Query(kind, value).range)[0] >= bounds[1]:
        raise ConfigError(
            f"The tokens {value} are none: the second number is one past the last. Write for example 0-2048."
        )
    if not value or len(value.encode("utf-8", "surrogatepass")) > MAX_PASSAGE_BYTES:
        raise ConfigError(
            f"A {kind} of {len(value):,} characters is too long or empty. Give 1 to {MAX_PASSAGE_BYTES:,} bytes."
        )
    return Query(kind, value)


def read_list(path: Path) -> list[Query]:
    """Questions from a file: one a line, as text (an id, a URL or a hash) or as JSON ({"id": ...}, {"url":
    ...}, {"text": ...}, {"file": ..., "line": ...}, {"hash": ...}, {"sample": ...}). Blank lines, lines that
    begin with # and a space, and a # alone are no questions; #17 is an id.

    Raises ConfigError, naming the line; InputError if there is no such file.
    """
    queries = []
    for number, line in enumerate(_lines(path), 1):
        text = line.strip()
        if not text or text.split(maxsplit=1)[0] == "#":
            continue
        try:
            queries.append(_of_json(text) if text.startswith("{") else make("any", text))
        except ConfigError as error:
            raise ConfigError(f"{path} line {number}: {error}") from None
    if not queries:
        raise ConfigError(
            f"{path} asks nothing: it has no line with an id, a URL or a hash. Write one a line."
        )
    return queries


def _lines(path: Path) -> Iterator[str]:
    if not path.is_file():
        raise InputError(f"There is no file {path}. Check the path given to --list.")
    try:
        yield from read_small(path, MAX_LIST_BYTES).decode("utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not UTF-8 ({error}). Save it as UTF-8.") from None


def _of_json(text: str) -> Query:
    try:
        value: dict[str, Any] = msgspec.json.decode(text, type=dict[str, Any])
    except (msgspec.MsgspecError, RecursionError) as error:
        raise ConfigError(
            f"it is no JSON object ({error}). Write for example {{'id': 'a-17'}} with double quotes."
        ) from None
    if value.keys() == {"file", "line"}:
        return make("line", f"{value['file']}:{value['line']}")
    if len(value) == 1:
        [(kind, asked)] = value.items()
        if kind in ("sample", "row", "tokens", "id", "url", "hash", "text"):
            return make(cast(Kind, kind), str(asked))
    raise ConfigError(
        f"it has the keys {', '.join(sorted(value))}. Give one of id, url, hash, text, sample, row, tokens, or file and line."
    )
