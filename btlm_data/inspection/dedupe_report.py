"""What other rules of deduplication would remove, for people and for programs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from btlm_data.dedupe.report import Outcome, Report
from btlm_data.inspection.duplicates import styled
from btlm_data.inspection.removed_pairs import Words, side_by_side
from btlm_data.wording import amount, counted

if TYPE_CHECKING:
    from rich.console import Console

SHOWN_SOURCES = 20  # those that would lose most; --json has all
_WORDS = 30  # of each text of a pair


def to_builtins(report: Report) -> dict[str, Any]:
    """For --json. Sources have documents and bytes of train, and of these what each rule would remove."""
    return {
        "work": report.work,
        "settings": report.settings.model_dump(mode="json"),
        "sources": {
            name: {"documents": documents, "bytes": num_bytes}
            for name, (documents, num_bytes) in sorted(report.sources.items())
        },
        "rules": [
            {
                "verify": outcome.rule.verify,
                "similarity": outcome.rule.similarity,
                "threshold": outcome.rule.threshold,
                "is_used": outcome.rule.is_used,
                "removed": {
                    name: {"documents": documents, "bytes": num_bytes}
                    for name, (documents, num_bytes) in sorted(outcome.removed.items())
                },
                "compared_pairs": outcome.compared,
                "largest_components": outcome.largest,
                "nearest_pairs": [pair | _marked(pair) for pair in outcome.nearest],
            }
            for outcome in report.outcomes
        ],
    }


def _marked(pair: dict[str, Any]) -> dict[str, str]:
    words = side_by_side(pair["text"], pair["kept_text"])
    return {"text": words[0].marked(), "kept_text": words[1].marked()}


def render(report: Report, console: Console) -> None:
    """Print the table of sources and rules, then the components and pairs of each rule."""
    from rich.table import Table
    from rich.text import Text

    total = [sum(column) for column in zip((0, 0), *report.sources.values(), strict=True)]
    console.print(
        f"Deduplication of {counted(total[0], 'train document')} ({amount(total[1], 'B')}) in {report.work}, decided again from "
        "what is stored. * is the rule of the run.",
        highlight=False,
    )
    table = Table(box=None, pad_edge=False)
    for title in ("would remove of", "by rule"):
        table.add_column(title, no_wrap=True)
    for title in ("documents", "", "bytes", ""):
        table.add_column(title, justify="right", no_wrap=True)
    by_loss = sorted(report.sources, key=lambda name: (-_most_lost(report, name), name))
    for name in ("all sources", *by_loss[:SHOWN_SOURCES]):
        documents, num_bytes = report.sources.get(name, total) if name != "all sources" else total
        for place, outcome in enumerate(report.outcomes):
            gone = (
                [sum(column) for column in zip((0, 0), *outcome.removed.values(), strict=True)]
                if name == "all sources"
                else outcome.removed.get(name, [0, 0])
            )
            table.add_row(
                Text(name if place == 0 else ""),
                _title(outcome),
                f"{gone[0]:,}",
                f"{gone[0] / max(1, documents):.1%}",
                amount(gone[1], "B"),
                f"{gone[1] / max(1, num_bytes):.1%}",
            )
    console.print(table)
    if len(by_loss) > SHOWN_SOURCES:
        console.print(
            f"... and {counted(len(by_loss) - SHOWN_SOURCES, 'more source')}: --json has all of them."
        )
    if not any(outcome.rule.verify == "text" for outcome in report.outcomes):
        console.print(
            "The run kept no texts, so no rule that compares them can be tried. Prepare with dedupe.verify: text."
        )
    for outcome in report.outcomes:
        _render_rule(outcome, console)


def _most_lost(report: Report, source: str) -> int:
    return max(outcome.removed.get(source, [0, 0])[1] for outcome in report.outcomes)


def _title(outcome: Outcome) -> str:
    return outcome.rule.title + (" *" if outcome.rule.is_used else "")


def _render_rule(outcome: Outcome, console: Console) -> None:
    from rich.table import Table
    from rich.text import Text

    if not outcome.largest and not outcome.nearest:
        return
    console.print()
    console.print(_title(outcome), style="bold", highlight=False)
    for component in outcome.largest:
        console.print(
            Text(
                f"  component {component['cluster']}: {component['removed']:,} of {counted(component['documents'], 'document')} "
                f"removed; the first is {component['file']} line {component['line'] + 1} ({component['source']})"
            )
        )
    if outcome.nearest:
        console.print("  Nearest to the threshold (texts as they are compared):", highlight=False)
    for pair in outcome.nearest:
        kept = (
            f"{pair['kept_file']} line {pair['kept_line'] + 1}"
            if pair["kept_file"]
            else "an index of earlier runs"
        )
        fate = "removed for" if pair["removed"] else "kept beside"
        console.print(
            Text(f"  {pair['similarity']:.4f}  {pair['file']} line {pair['line'] + 1}, {fate} {kept}"),
            style="bold",
        )
        table = Table(box=None, pad_edge=False, expand=True, show_header=False, padding=(0, 1))
        for _ in range(2):
            table.add_column(ratio=1, overflow="fold")
        table.add_row(*(_shown(words) for words in side_by_side(pair["text"], pair["kept_text"])))
        console.print(table)


def _shown(words: Words) -> Any:
    """The first words of a stretch."""
    return styled(Words(words.words[:_WORDS], words.differs[:_WORDS]))
