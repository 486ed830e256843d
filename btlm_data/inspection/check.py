"""What a check of `btlm-data verify` found: one line each, and a last line that sums them up."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

import msgspec

from btlm_data.terminal import visible
from btlm_data.wording import counted

if TYPE_CHECKING:
    from rich.console import Console

_MARKS = {True: "ok    ", False: "FAILED", None: "-     "}
COLOURS = {True: "green", False: "bold red", None: "dim"}


class Check(msgspec.Struct, frozen=True):
    """One line.

    ok: None where the check could not be made. detail: what was compared, or why nothing was. place: the
    first fault, exactly.
    """

    name: str
    ok: bool | None
    detail: str
    place: str | None = None

    @property
    def mark(self) -> str:
        """`ok`, `FAILED` or `-`, padded to one width."""
        return _MARKS[self.ok]


Report = Callable[[Check], None]


def show(check: Check, console: Console) -> None:
    """Print a check as one line, with the location of the first fault indented below it."""
    from rich.text import Text

    location = f"\n         {check.place}" if check.place else ""
    text = f" {check.name:<28} {check.detail}{location}"
    console.print(Text.assemble((check.mark, COLOURS[check.ok]), visible(text)), soft_wrap=True)


def summary(checks: Iterable[Check], seconds: float) -> Check:
    """The last line: how many checks passed, failed or could not be made. ok: whether none failed."""
    checks = list(checks)
    failed = [check.name for check in checks if check.ok is False]
    skipped = sum(check.ok is None for check in checks)
    not_made = f", {skipped} not made" if skipped else ""
    if failed:
        detail = f"{len(failed)} of {counted(len(checks) - skipped, 'check')} failed: {', '.join(failed)}"
    else:
        detail = f"{counted(len(checks) - skipped, 'check')} passed"
    return Check("dataset", not failed, f"{detail}{not_made}, in {seconds:.1f} s")


def tell_problems(report: Report, name: str, problems: Sequence[str], detail: str) -> None:
    """Report a check by the problems it found; detail: what to say where there are none."""
    if problems:
        more = f" (and {len(problems) - 1:,} more)" if len(problems) > 1 else ""
        report(Check(name, False, counted(len(problems), "fault"), problems[0] + more))
    else:
        report(Check(name, True, detail))
