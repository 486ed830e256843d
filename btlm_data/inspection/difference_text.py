"""Print what `btlm-data diff` found."""

from __future__ import annotations

from rich.console import Console

from btlm_data.inspection.difference import Amount, Difference
from btlm_data.inspection.figures import counted, number, percent
from btlm_data.inspection.parts import Cells, Text, indented, table

MAX_ROWS = 40


def show(found: Difference, console: Console) -> None:
    """Print the comparison: what is equal is said in a line, what differs in tables."""
    console.print(Text(f"{found.left} and {found.right}", "bold"), soft_wrap=True)
    if found.equal:
        console.print(Text("The same dataset: both dataset.json have the same checksum.", "green"))
        return
    _settings(console, "Settings", [[s.key, s.left, s.right] for s in found.settings], "the same")
    _settings(console, "Tokenizer", [[s.key, s.left, s.right] for s in found.tokenizers], "the same")
    _inputs(found, console)
    _settings(console, "Counts", [_counted(amount) for amount in found.counts], "the same")
    for split, shares in found.shares.items():
        rows: list[Cells] = [
            [share.name or "(unnamed)", percent(share.left), percent(share.right)]
            for share in shares[:MAX_ROWS]
        ]
        _settings(console, f"Shares of the tokens of {split}", rows, "no source")
    console.print(Text("Documents in common", "bold cyan"))
    documents: list[Cells] = [
        [
            one.split, f"{one.both:,}", f"{one.only_left:,}", f"{one.only_right:,}",
            "none" if one.first_difference is None else f"document {one.first_difference:,}",
        ]
        for one in found.documents
    ]  # fmt: skip
    columns = ("split", "in both", "only left", "only right", "first difference in order")
    console.print(indented(table(columns, documents, right=(1, 2, 3))))
    for note in found.notes:
        console.print(Text(note, "yellow"))


def _settings(console: Console, heading: str, rows: list[Cells], otherwise: str) -> None:
    console.print(Text(heading, "bold cyan"))
    if not rows:
        console.print(indented(Text(otherwise)))
        return
    console.print(indented(table(("", "left", "right"), rows[:MAX_ROWS])))
    if len(rows) > MAX_ROWS:
        console.print(indented(Text(f"and {len(rows) - MAX_ROWS:,} more: --json")))


def _counted(amount: Amount) -> Cells:
    return [
        amount.name,
        *("not there" if value is None else number(value) for value in (amount.left, amount.right)),
    ]


def _inputs(found: Difference, console: Console) -> None:
    console.print(Text("Input files", "bold cyan"))
    said = []
    for words, names in (
        ("only left", found.only_left),
        ("only right", found.only_right),
        ("of other content", found.changed),
    ):
        if names:
            said.append(
                f"{counted(len(names), 'file')} {words}: {', '.join(names[:3])}{' ...' if len(names) > 3 else ''}"
            )
    console.print(indented(Text("\n".join(said) or "the same")))
