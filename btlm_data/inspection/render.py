"""Print a report: its first screen, or all of it; a folder of sets one after the other."""

from __future__ import annotations

from rich.console import Console
from rich.rule import Rule

from btlm_data.inspection import first_screen, full_report
from btlm_data.inspection.parts import Cells, Text, indented, table
from btlm_data.inspection.report import GenerationsReport, Report, SetsReport
from btlm_data.wording import amount


def render(
    report: Report | SetsReport | GenerationsReport,
    console: Console,
    *,
    full: bool = False,
    samples: bool = False,
) -> None:
    """Print the report on `console`. full: every figure and the samples; samples: these with the first
    screen, too.
    """
    if isinstance(report, Report):
        _render_set(report, console, full=full, samples=samples)
        return
    console.print(Text(report.path, "bold"), soft_wrap=True)
    if isinstance(report, GenerationsReport):
        console.print(Text(f"{len(report.generations)} generations, read one after the other"))
        _render_splits(report, console)
        for number, generation in report.generations.items():
            console.print()
            console.print(Rule(Text(f"generation {number}", "bold"), align="left", style="cyan"))
            render(generation, console, full=full, samples=samples)
        return
    console.print(Text(f"{len(report.sets)} sets: {', '.join(report.sets)}"))
    for name, set_report in report.sets.items():
        console.print()
        console.print(Rule(Text(name, "bold"), align="left", style="cyan"))
        _render_set(set_report, console, full=full, samples=samples)
    if report.unknown:
        console.print()
        console.print(Text("Not known", "bold yellow"))
        console.print(indented(Text("\n".join(report.unknown))))


def _render_splits(report: GenerationsReport, console: Console) -> None:
    """What each generation has, and where its samples begin."""
    columns = ("generation", "split", "documents", "tokens", "samples", "first sample", "size")
    rows: list[Cells] = [
        [
            str(entry.generation),
            "/".join(filter(None, (entry.set, entry.split))),
            f"{entry.documents:,}",
            amount(entry.tokens, "token"),
            "" if entry.samples is None else f"{entry.samples:,}",
            "" if entry.first_sample is None else f"{entry.first_sample:,}",
            amount(entry.bytes, "B"),
        ]
        for entry in report.splits
    ]
    console.print()
    console.print(table(columns, rows, right=(2, 3, 4, 5, 6)))


def _render_set(report: Report, console: Console, *, full: bool, samples: bool) -> None:
    if full:
        full_report.show(report, console)
        return
    first_screen.show(report, console)
    if samples:
        full_report.show_samples(report, console)
