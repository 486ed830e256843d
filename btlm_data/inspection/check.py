"""What a check of `btlm-data verify` comes to: one line each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Check:
    """One line. ok: None where the check could not be made; detail says what was compared, or why not. place: the first fault."""

    name: str
    ok: bool | None
    detail: str
    place: str | None = None


Report = Callable[[Check], None]


def tell_problems(report: Report, name: str, problems: Sequence[str], detail: str) -> None:
    """Report a check by the problems it found."""
    if problems:
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        report(Check(name, False, f"{len(problems)} {'fault' if len(problems) == 1 else 'faults'}", problems[0] + more))
    else:
        report(Check(name, True, detail))
