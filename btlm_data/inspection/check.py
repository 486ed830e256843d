"""What a check of `btlm-data verify` comes to: one line each."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Check:
    """One line. ok: None where the check could not be made; detail says what was compared, or why not. place: the first fault."""

    name: str
    ok: bool | None
    detail: str
    place: str | None = None


def line(check: Check) -> str:
    """A check as one line of text, with the first fault's place indented below it."""
    mark = {True: "ok    ", False: "FAILED", None: "-     "}[check.ok]
    place = f"\n         {check.place}" if check.place else ""
    return printable(f"{mark} {check.name:<28} {check.detail}{place}")


def printable(text: str) -> str:
    """Text from files, safe to show: control characters would command the terminal, so their Unicode pictures stand for them."""
    return "".join(
        c if c in "\n\t" or not unicodedata.category(c).startswith("C") else _picture(c) for c in text
    )


def _picture(character: str) -> str:
    code = ord(character)
    return chr(0x2400 + code) if code < 32 else "\u2421" if code == 127 else "\ufffd"


Report = Callable[[Check], None]


def tell_problems(report: Report, name: str, problems: Sequence[str], detail: str) -> None:
    """Report a check by the problems it found."""
    if problems:
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        report(
            Check(
                name,
                False,
                f"{len(problems)} {'fault' if len(problems) == 1 else 'faults'}",
                problems[0] + more,
            )
        )
    else:
        report(Check(name, True, detail))
