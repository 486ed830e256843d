"""Amounts and times in words."""

from __future__ import annotations

_NOUNS = {"doc": "document"}


def amount(value: float, unit: str) -> str:
    """A readable amount: 3.4 GB, 1.2 M documents.

    unit: "B" for bytes, else a singular noun that is put in the plural.
    """
    names = ("", " k", " M", " G", " T", " P")
    power = 0
    shown = float(value)
    while shown >= 999.5 and power < len(names) - 1:
        shown /= 1000
        power += 1
    digits = 0 if power == 0 or shown >= 99.95 else 1
    prefix = names[power].strip()
    if unit == "B":
        return f"{shown:.{digits}f} {prefix}B"
    noun = _NOUNS.get(unit, unit)
    noun = noun if value == 1 else f"{noun}s"
    return f"{shown:.{digits}f}{f' {prefix}' if prefix else ''} {noun}"


def counted(number: int, noun: str, plural: str | None = None) -> str:
    """A whole number and its noun: 1 shard, 2,048 shards. plural: where it is not the noun with an s."""
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"


def duration(seconds: float) -> str:
    """Seconds as 4.2 s, 3 min 10 s, 2 h 5 min."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
