"""Charts as SVG and as tables with bars: static, a few kilobytes each, in the colours of the page's style
sheet.

Bars are in tables, so the figures are text that can be read, copied and spoken; a line chart and a stacked
chart have a sentence as their text alternative. docs/decisions/0004 says why no plotting library draws them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from xml.etree.ElementTree import Element

from btlm_data.pages.elements import add, svg, tag

COLOURS = 8  # classes c0 to c7 of the style sheet; c8 is for "all others"


def bar(share: float, *, colour: int = 0) -> Element:
    """A bar of `share` (0 to 1) of its cell's width; decoration, the number is beside it."""
    width = 100 * max(0.0, min(1.0, share))
    return tag(
        "svg",
        tag("rect", width=max(width, 0.6) if share > 0 else 0, height=10, rx=0.8, class_=f"c{colour}"),
        class_="bar",
        viewBox="0 0 100 10",
        preserveAspectRatio="none",
        aria_hidden="true",
        focusable="false",
    )


def table(
    columns: Sequence[str],
    rows: Sequence[Sequence[Element | str]],
    *,
    numbers: Sequence[int] = (),
    caption: str,
) -> Element:
    """A table. numbers: columns aligned to the right. On a phone, a table of many columns becomes a list: each
    row is a heading and its named values; one of few columns scrolls sideways.
    """
    stacks = len(columns) > 4 or (len(columns) == 4 and bool(columns[-1]))

    def role(name: str) -> str | None:
        """What a list would no longer tell of a table to those who do not see it."""
        return name if stacks else None

    def cell(name: str, value: Element | str, k: int) -> Element:
        kind = name if name == "th" or k else "th"
        classes = "n" if k in numbers else "barcell" if isinstance(value, Element) else None
        if columns[k] == "reason":
            classes = "reason"
        if kind == "td":
            label = columns[k] if stacks and columns[k] and classes != "barcell" else None
            return tag(kind, value, class_=classes, role=role("cell"), data_label=label)
        scope = "col" if name == "th" else "row"
        return tag(
            kind, value, class_=classes, scope=scope, role=role(f"{scope.replace('col', 'column')}header")
        )

    head = tag("tr", *(cell("th", name, k) for k, name in enumerate(columns)), role=role("row"))
    body = [
        tag("tr", *(cell("td", value, k) for k, value in enumerate(row)), role=role("row")) for row in rows
    ]
    return tag(
        "div",
        tag(
            "table",
            tag("caption", caption),
            tag("thead", head, role=role("rowgroup")),
            tag("tbody", *body, role=role("rowgroup")),
            role=role("table"),
            aria_label=caption if stacks else None,
        ),
        class_="scroll stack" if stacks else "scroll",
        role="region",
        tabindex="0",
        aria_label=caption,
    )


def histogram(bars: Sequence[tuple[str, int]], *, caption: str, unit: str, counted: str) -> Element:
    """A table of (label, count) with bars. unit: what the labels are of; counted: what is counted."""
    most = max((count for _, count in bars), default=0) or 1
    total = sum(count for _, count in bars) or 1
    rows: list[list[Element | str]] = [
        [label, f"{count:,}", f"{100 * count / total:.1f} %", bar(count / most)] for label, count in bars
    ]
    return table((unit, counted, "share", ""), rows, numbers=(1, 2), caption=caption)


def zipf(ranks: Sequence[tuple[int, float]], *, label: str) -> Element:
    """Share of all tokens by rank, both logarithmic, with the line of Zipf's law (share ~ 1 / rank) for
    comparison.

    ranks: (rank from 1, share above 0), ranks rising.
    """
    last = max(rank for rank, _ in ranks)
    x_decades = max(1, math.ceil(math.log10(last))) if last > 1 else 1
    low = math.floor(math.log10(min(share for _, share in ranks)))
    high = 0
    names = {power: f"{100 * 10.0**power:.{max(0, -power - 2)}f} %" for power in range(low, high + 1)}
    top, height = 12, 300
    left = 12 + 8 * max(map(len, names.values()))  # a digit is at most 8 wide
    width = 680 - left

    def x(rank: float) -> float:
        return left + width * math.log10(rank) / x_decades

    def y(share: float) -> float:
        return top + height * (high - math.log10(share)) / (high - low)

    chart = svg(720, 356, label=label, class_="chart zipf")
    for power, name in names.items():
        line_y = y(10.0**power)
        add(chart, tag("line", x1=left, x2=left + width, y1=line_y, y2=line_y, class_="grid"))
        add(chart, tag("text", name, x=left - 8, y=line_y + 4, text_anchor="end"))
    for power in range(x_decades + 1):
        line_x = x(10.0**power)
        add(chart, tag("line", x1=line_x, x2=line_x, y1=top, y2=top + height, class_="grid"))
        add(chart, tag("text", f"{10**power:,}", x=line_x, y=top + height + 18, text_anchor="middle"))
    first = ranks[0][1]
    law = [(rank, first / rank) for rank, _ in ranks if first / rank >= 10.0**low]
    add(chart, tag("polyline", points=_points([(x(r), y(s)) for r, s in law]), class_="law"))
    add(chart, tag("polyline", points=_points([(x(r), y(s)) for r, s in ranks]), class_="line"))
    add(
        chart, tag("text", "rank of the token", x=left + width / 2, y=top + height + 38, text_anchor="middle")
    )
    return chart


def stacked(parts: Sequence[Sequence[float]], colours: Sequence[int], *, label: str) -> Element:
    """Columns of equal width and height 1, divided as `parts` says: parts[k] are the shares of column k.

    colours: the number of the colour of each part.
    """
    width, height = 720, 120
    step = width / max(1, len(parts))
    chart = svg(width, height, label=label, class_="chart stacked", preserveAspectRatio="none")
    for k, shares in enumerate(parts):
        top = 0.0
        for colour, share in zip(colours, shares, strict=True):
            if share > 0:
                size = share * height
                add(
                    chart,
                    tag(
                        "rect",
                        x=k * step,
                        y=top,
                        width=step + 0.3,
                        height=size,
                        class_=colour_class(colour),
                    ),
                )
                top += size
    return chart


def legend(names: Sequence[str], colours: Sequence[int]) -> Element:
    """Names beside their colours."""
    items = [
        tag("li", tag("span", class_=f"swatch {colour_class(colour)}", aria_hidden="true"), name)
        for name, colour in zip(names, colours, strict=True)
    ]
    return tag("ul", *items, class_="legend")


def colour_class(number: int) -> str:
    """The class of the colour of the source with this number."""
    return f"c{min(number, COLOURS)}"


def _points(points: Sequence[tuple[float, float]]) -> str:
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
