"""docs/performance.md and its pictures, from the table of figures in README.md."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import NamedTuple
from xml.etree.ElementTree import tostring

from btlm_data.pages.elements import Child, raw_style, svg, tag

ROOT = Path(__file__).resolve().parent.parent
_STYLE = """
text { font: 13px system-ui, "DejaVu Sans", sans-serif; fill: #1d2430; }
.quiet { fill: #5a6372; } .ours { fill: #2a7f86; } .budget { stroke: #8a4b00; stroke-width: 2; } .grid { stroke: #dcdad3; }
.paper { fill: #ffffff; }
@media (prefers-color-scheme: dark) {
  text { fill: #e7e9ec; } .quiet { fill: #a3adba; } .ours { fill: #4aa9ae; } .budget { stroke: #ffc46b; } .grid { stroke: #333b46; }
  .paper { fill: #1b2027; }
}
"""
_INTRO = """# Performance

The figures below are measured by `make bench`, as ratios: both sides of a row come from one run on one machine, so another
machine gives other figures and about the same ratios. *Theirs* is the library that one would use instead, or the same work
without what the row is about. The page is written from the table in [README.md](../README.md) by `tools/write_docs.py`.

## Against the library that one would use instead

![How many times as fast, by row of the table below](figures/performance-speed.svg)

## Against a budget

A cost that must stay below its budget: what the whole costs above reading alone, and what grows with the size of the corpus.

![Cost as a ratio, and the budget of each, by row of the table below](figures/performance-cost.svg)

## All figures

"""
_BEHIND = """
More: what [deduplication](dedupe.md) costs by part, the cost of [a text search](inspect.md), [remote reading](own-loader.md), and
[one pass over the text](decisions/0001-one-pass-over-the-text.md) as the reason for the first row.

To measure on your own machine and corpus:

```sh
python tools/build_corpus.py /tmp/corpus --mb 400
BTLM_BENCH_CORPUS=/tmp/corpus make bench
```
"""


class Row(NamedTuple):
    """A row of the table. ratio: None where it has none, or two; budget: the number in it, with its direction."""

    cells: list[str]
    ratio: float | None
    is_least: bool
    budget: float | None


def rows() -> list[Row]:
    """The rows of the table in README.md."""
    text = (ROOT / "README.md").read_text()
    match = re.search(r"<!-- bench: begin -->\n(.*?)<!-- bench: end -->", text, re.S)
    assert match is not None, "README.md has no table of figures"
    read = []
    for line in match[1].splitlines()[2:]:
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        ratio = float(cells[3]) if re.fullmatch(r"[0-9.]+", cells[3]) else None
        budget = re.match(r"([<>]=?) ([0-9.]+)(?![0-9.]* s?/)", cells[4])
        read.append(Row(cells, ratio, cells[4].startswith(">"), float(budget[2]) if budget else None))
    return read


def page() -> str:
    """docs/performance.md."""
    table = ["| what | ours | theirs | ratio | budget |", "|---|---|---|---|---|"]
    table += ["| " + " | ".join(row.cells) + " |" for row in rows()]
    return _INTRO + "\n".join(table) + "\n" + _BEHIND


def figures() -> dict[str, str]:
    """The pictures, by file name."""
    measured = [row for row in rows() if row.ratio is not None]
    return {
        "performance-speed.svg": _bars(
            [row for row in measured if row.is_least], "times as fast; the line is the least that is wanted"
        ),
        "performance-cost.svg": _bars(
            [row for row in measured if not row.is_least],
            "times the cost; the line is the most that is allowed",
        ),
    }


def _bars(chosen: list[Row], unit: str) -> str:
    """Horizontal bars of ratios, logarithmic."""
    left, width, height, top = 430, 390, 30, 34
    values = [value for row in chosen for value in (row.ratio, row.budget) if value]
    low = min(0.5, *values)
    high = max(values) * 1.25

    def x(value: float) -> float:
        return left + width * math.log(value / low) / math.log(high / low)

    bottom = top + height * len(chosen)
    parts: list[Child] = [raw_style(_STYLE), tag("rect", width=900, height=bottom + 40, class_="paper")]
    for tick in (1, 2, 5, 10, 20, 50, 100):
        if low <= tick <= high:
            parts.append(tag("line", x1=x(tick), x2=x(tick), y1=top - 8, y2=bottom, class_="grid"))
            parts.append(tag("text", f"{tick}", x=x(tick), y=top - 14, text_anchor="middle", class_="quiet"))
    for number, row in enumerate(chosen):
        assert row.ratio is not None
        y = top + height * number
        name = re.sub(r" \([^)]*\)", "", row.cells[0])
        name = name if len(name) <= 62 else name[:60] + "…"
        begin, end = sorted((x(1), x(row.ratio)))
        parts.append(tag("text", name, x=left - 12, y=y + 19, text_anchor="end"))
        parts.append(
            tag("rect", x=begin, y=y + 6, width=max(end - begin, 2), height=height - 12, class_="ours")
        )
        if row.budget is not None:
            parts.append(
                tag("line", x1=x(row.budget), x2=x(row.budget), y1=y + 2, y2=y + height - 2, class_="budget")
            )
        parts.append(tag("text", f"{row.ratio:g}", x=max(end, x(row.budget or row.ratio)) + 8, y=y + 19))
    parts.append(tag("text", unit, x=left + width / 2, y=bottom + 24, text_anchor="middle", class_="quiet"))
    label = "; ".join(f"{row.cells[0]}: {row.ratio:g}" for row in chosen)
    return tostring(svg(900, bottom + 40, *parts, label=label), encoding="unicode") + "\n"
