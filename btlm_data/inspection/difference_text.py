"""Print what `btlm-data diff` found."""

from __future__ import annotations

from rich.console import Console

from btlm_data.inspection.difference import Amount, Difference
from btlm_data.inspection.figures import counted, number, percent
from btlm_data.inspection.parts import Cells, Text, indented, table

MAX_ROWS = 40


def show(difference: Difference, console: Console) -> None:
    """Print the comparison: what is equal is said in a line, what differs in tables."""
    sides = zip((difference.left, difference.right), difference.generations, strict=True)
    names = [f"{name} ({count} generations)" if count > 1 else name for name, count in sides]
    console.print(Text(" and ".join(names), "bold"), soft_wrap=True)
    if difference.equal:
        console.print(Text("The same dataset: both dataset.json have the same checksum.", "green"))
        return
    _settings(console, "Settings", [[s.key, *s.in_words()] for s in difference.settings], "the same")
    _settings(console, "Tokenizer", [[s.key, *s.in_words()] for s in difference.tokenizers], "the same")
    _inputs(difference, console)
    _settings(console, "Counts", [_counted(amount) for amount in difference.counts], "the same")
    for split, shares in difference.shares.items():
        rows: list[Cells] = [
            [share.name or "(unnamed)", percent(share.left), percent(share.right)]
            for share in shares[:MAX_ROWS]
        ]
        _settings(console, f"Shares of the tokens of {split}", rows, "no source")
    console.print(Text("Documents in common", "bold cyan"))
    documents: list[Cells] = [
        [
            order.split, f"{order.both:,}", f"{order.only_left:,}", f"{order.only_right:,}",
            "none" if order.first_difference is None else f"document {order.first_difference:,}",
        ]
        for order in difference.documents
    ]  # fmt: skip
    columns = ("split", "in both", "only left", "only right", "first difference in order")
    console.print(indented(table(columns, documents, right=(1, 2, 3))))
    for note in difference.notes:
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


def _inputs(difference: Difference, console: Console) -> None:
    console.print(Text("Input files", "bold cyan"))
    changes = []
    for words, names in (
        ("only left", difference.only_left),
        ("only right", difference.only_right),
        ("of other content", difference.changed),
    ):
        if names:
            changes.append(
                f"{counted(len(names), 'file')} {words}: {', '.join(names[:3])}{' ...' if len(names) > 3 else ''}"
            )
    console.print(indented(Text("\n".join(changes) or "the same")))
