"""Damage of every kind, drawn by chance: to bytes, to JSON (and what JSON may say twice or wrongly), to lines of text."""

from __future__ import annotations

import copy
import json
import random
import struct
from collections.abc import Iterator
from typing import Any

CONTROL = "\x1b]52;c;Y3VybA==\x07\x1b[2J\u202etxt\u2028[/red]\x9b1A\r"
NUMBERS = (0, -1, 1, 2**15, 2**31 - 1, 2**31, 2**40, 2**53 + 1, 2**62, 2**63 - 1, 2**63, 2**64 - 1, 10**30)
TEXTS = (
    "", ".", "..", "../../evil", "/etc/passwd", "train/../../x", "a\0b", CONTROL, "\ud800", "\ufeff", "x" * 300,
    "x" * 100_000, "NaN", "1e999", "true", "null", "os:system", "tests.faults.fuzz:main", "~", "$HOME", "C:\\x", "con",
    "hf://datasets/a/b", "file:///etc/passwd", "-", "--help", "%s%n", "é", "e\u0301", "train", "TRAIN", "msl2048",
    "(a+)+$", "!!python/object/apply:os.system ['x']", "*a", "&a [*a]", "1_000", "0x10", "1:30", "2020-01-01", "=", "<<",
)  # fmt: skip


def other_value(chance: random.Random, old: Any = None) -> Any:
    """A value that somebody would not expect, or one near the old one."""
    if isinstance(old, int) and chance.random() < 0.4:
        return old + chance.choice([-1, 1, -old, old, 2**32])
    if isinstance(old, str) and old and chance.random() < 0.3:
        at = chance.randrange(len(old))
        return old[:at] + chance.choice(["", "0", "/", "..", CONTROL[:3], old]) + old[at + 1 :]
    return chance.choice(
        [
            None, True, False, 0.5, -0.0, 1e308, float("nan"), float("inf"), [], {}, [None], {"": {}}, [[[[]]]],
            chance.choice(NUMBERS), chance.choice(NUMBERS), -chance.choice(NUMBERS),
            chance.choice(TEXTS), chance.choice(TEXTS), chance.choice(TEXTS), [chance.choice(TEXTS)] * 3,
            {chance.choice(TEXTS): chance.choice(TEXTS)},
        ]
    )  # fmt: skip


def places(tree: Any, most: int = 40) -> Iterator[tuple[Any, Any]]:
    """(container, key) of the values below `tree`; of large containers only some."""
    keys: list[Any] = list(tree) if isinstance(tree, dict) else list(range(len(tree)))
    for key in keys[: most // 2] + keys[max(most // 2, len(keys) - most // 2) :]:
        yield tree, key
        if isinstance(tree[key], dict | list):
            yield from places(tree[key], most)


def mutate_tree(chance: random.Random, tree: Any) -> Any:
    """A copy of a JSON value with one to three other values, keys missing, keys more, or lists grown or emptied."""
    tree = copy.deepcopy(tree)
    for _ in range(chance.randint(1, 3)):
        spots = list(places(tree)) if isinstance(tree, dict | list) else []
        if not spots or chance.random() < 0.02:
            return other_value(chance)
        container, key = chance.choice(spots)
        how = chance.random()
        if how < 0.15 and isinstance(container, dict):
            del container[key]
        elif how < 0.25 and isinstance(container, dict):
            container[chance.choice(TEXTS)] = container[key]
        elif how < 0.35 and isinstance(container, list):
            container[:] = chance.choice([[], container * 2, container[:-1], container[::-1]])
        elif how < 0.45:
            other, name = chance.choice(spots)
            container[key] = copy.deepcopy(other[name])
        else:
            container[key] = other_value(chance, container[key])
    return tree


def to_text(tree: Any) -> bytes:
    """JSON of a tree that may hold NaN and lone surrogates."""
    return json.dumps(tree).encode()


def mutate_json(chance: random.Random, data: bytes) -> bytes:
    """A JSON file that is another value, or says its value in a way that readers disagree about."""
    how = chance.random()
    if how < 0.3:
        return mutate_bytes(chance, data)
    if how < 0.75:
        return to_text(mutate_tree(chance, json.loads(data)))
    text = data.decode()
    key = (
        chance.choice((json.loads(data) and [*json.loads(data)]) or [""]) if text.lstrip()[:1] == "{" else ""
    )
    return chance.choice(
        [
            f'{{"{key}": {json.dumps(other_value(chance))}, {text.lstrip()[1:]}',  # a key twice
            "[" * chance.choice([500, 100_000]) + "]" * 500,
            '{"a":' * chance.choice([500, 50_000]),
            text.replace(":", ": " + "9" * 5000 + " ", 1),
            text.replace("0", "-Infinity", 1),
            "\ufeff" + text,
            text + text,
            text + "\0",
            text.replace('"', "'"),
            text.upper(),
            "null",
            "",
        ]
    ).encode("utf-8", "surrogatepass")


def mutate_bytes(chance: random.Random, data: bytes) -> bytes:
    """Bytes flipped, overwritten, repeated, cut out or cut off, mostly near the file's ends, where the structure is."""
    damaged = bytearray(data)
    for _ in range(chance.choice([1, 1, 1, 2, 4, 16])):
        if not damaged:
            return chance.randbytes(chance.randint(0, 64))
        place = chance.randrange(len(damaged))
        if len(damaged) > 256 and chance.random() < 0.6:
            place = chance.choice([place % 256, len(damaged) - 1 - place % 256])
        how = chance.randrange(8)
        if how < 3:
            damaged[place] ^= 1 << chance.randrange(8)
        elif how == 3:
            damaged[place] = chance.choice([0, 1, 2, 8, 127, 128, 255])
        elif how == 4:
            word = struct.pack("<Q", chance.choice(NUMBERS[2:12]))[: chance.choice([1, 2, 4, 8])]
            damaged[place : place + len(word)] = word
        elif how == 5:
            damaged[place:place] = damaged[place : place + chance.randint(1, 400)]
        elif how == 6:
            del damaged[place : place + chance.randint(1, 50)]
        elif chance.random() < 0.3:
            del damaged[place:]
    return bytes(damaged)


def mutate_lines(chance: random.Random, data: bytes) -> bytes:
    """A text file in YAML: lines dropped, doubled, moved in or out; values and keys replaced; now and then plain damage."""
    if chance.random() < 0.2:
        return mutate_bytes(chance, data)
    lines = data.decode().split("\n")
    for _ in range(chance.randint(1, 4)):
        at = chance.randrange(len(lines))
        line = lines[at]
        key, colon, value = line.partition(":")
        how = chance.randrange(7)
        if how == 0:
            del lines[at]
        elif how == 1:
            lines.insert(at, line)
        elif how == 2:
            lines[at] = "  " + line
        elif how == 3:
            lines[at] = line[2:]
        elif how == 4 and colon:
            lines[at] = f"{chance.choice(TEXTS)}: {value}"
        elif how == 5:
            lines[at] = chance.choice(
                ["[" * 20_000, "{a: " * 3000, "a: &a [1]\nb: [*a, *a]", "? [a]\n: 1", "---", "\t", "..."]
            )
        elif colon:
            lines[at] = (
                f"{key}: {json.dumps(other_value(chance)) if chance.random() < 0.6 else chance.choice(TEXTS)}"
            )
        if not lines:
            lines = [""]
    return "\n".join(lines).encode("utf-8", "surrogatepass")
