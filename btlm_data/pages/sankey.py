"""The flow of text from the sources through the stages to the splits, as a Sankey picture.

Columns from left to right are: what was read, by source; each stage that dropped or added something; the
splits. Bands are as high as their bytes of text. What a stage drops leaves it downwards, and is named where
it ends.
"""

from __future__ import annotations

from collections.abc import Sequence
from xml.etree.ElementTree import Element

import msgspec

from btlm_data.pages.charts import colour_class
from btlm_data.pages.elements import add, svg, tag

WIDTH = 980.0
BAND = 260.0  # height of everything that was read
NODE = 12.0
LINE = 17.0
GAP = 9.0
TOP = 34.0
FLOOR = TOP + BAND + 44.0  # where what is dropped ends


class Part(msgspec.Struct, frozen=True):
    """A band. size: its height, in the unit that all bands share. detail: a second line, as 1,234 documents."""

    name: str
    size: float
    detail: str = ""


class Column(msgspec.Struct, frozen=True):
    """A stage: what continues from it, and what leaves the flow there."""

    name: str
    kept: float
    dropped: Part | None


def sankey(
    sources: Sequence[Part], stages: Sequence[Column], splits: Sequence[Part], *, label: str
) -> Element:
    """The picture. sources, splits: bands at the left and right end."""
    read = sum(source.size for source in sources) or 1.0
    scale = BAND / max([read, *(stage.kept for stage in stages)])
    left, right = 190.0, WIDTH - 190.0
    step = (right - left) / (len(stages) + 1)
    picture = svg(WIDTH, 10, label=label, class_="chart sankey")
    add(picture, tag("text", "read", x=left, y=18, class_="stage"))

    begin, inside, text = TOP, TOP, TOP - LINE
    for number, source in enumerate(sources):
        size, colour = source.size * scale, colour_class(number)
        _band(picture, left + NODE, begin, left + step, inside, size, f"flow {colour}")
        add(picture, tag("rect", x=left, y=begin, width=NODE, height=max(size, 1), class_=colour))
        text = max(begin + size / 2 + 4, text + LINE)
        add(picture, tag("text", _short(source.name), x=left - 10, y=text, text_anchor="end"))
        begin += max(size, 1) + GAP
        inside += size
    lowest = max(begin, text + 8)

    received = read
    for number, stage in enumerate(stages, 1):
        x = left + step * number
        height = max(received, stage.kept) * scale
        add(picture, tag("text", stage.name, x=x + NODE / 2, y=18, class_="stage", text_anchor="middle"))
        add(picture, tag("rect", x=x, y=TOP, width=NODE, height=max(height, 1), class_="node"))
        if stage.dropped is not None:
            _drop(picture, stage.dropped, x + NODE, TOP + stage.kept * scale, scale, step)
        if number < len(stages):
            _band(picture, x + NODE, TOP, x + step, TOP, stage.kept * scale, "flow main")
        received = stage.kept

    start = left + step * len(stages) + NODE
    begin, inside, text = TOP, TOP, TOP - LINE
    for split in splits:
        size = split.size * scale
        _band(picture, start, inside, right, begin, size, "flow main")
        add(picture, tag("rect", x=right, y=begin, width=NODE, height=max(size, 1), class_="node"))
        text = max(begin + min(size / 2, 40) + 4, text + LINE)
        add(picture, tag("text", split.name, x=right + NODE + 8, y=text, class_="stage"))
        text += LINE
        add(picture, tag("text", split.detail, x=right + NODE + 8, y=text, class_="quiet"))
        begin = max(begin + size + GAP, text + 8)
        inside += size
    picture.set("viewBox", f"0 0 {WIDTH:g} {max(lowest, begin, FLOOR + 40) + 8:.0f}")
    return picture


def _drop(picture: Element, part: Part, x: float, y: float, scale: float, step: float) -> None:
    """Draw what a stage drops: a band from `y` at the stage's right side down to the floor, and its amount."""
    size = max(part.size * scale, 1.0)
    width = min(size, step - 48)
    near, far = x + 12, x + 12 + width
    bend = min(y + size + 14, FLOOR)
    path = (
        f"M{x:.1f},{y:.1f} C{far:.1f},{y:.1f} {far:.1f},{y:.1f} {far:.1f},{bend:.1f} L{far:.1f},{FLOOR:.1f} "
        f"L{near:.1f},{FLOOR:.1f} L{near:.1f},{bend:.1f} "
        f"C{near:.1f},{y + size:.1f} {near:.1f},{y + size:.1f} {x:.1f},{y + size:.1f} Z"
    )
    add(picture, tag("path", d=path, class_="drop"))
    middle = (near + far) / 2
    add(picture, tag("text", part.name, x=middle, y=FLOOR + 17, text_anchor="middle", class_="lost"))
    add(picture, tag("text", part.detail, x=middle, y=FLOOR + 33, text_anchor="middle", class_="quiet"))


def _band(picture: Element, x0: float, y0: float, x1: float, y1: float, size: float, classes: str) -> None:
    middle = (x0 + x1) / 2
    path = (
        f"M{x0:.1f},{y0:.1f} C{middle:.1f},{y0:.1f} {middle:.1f},{y1:.1f} {x1:.1f},{y1:.1f} "
        f"L{x1:.1f},{y1 + size:.1f} C{middle:.1f},{y1 + size:.1f} {middle:.1f},{y0 + size:.1f} {x0:.1f},{y0 + size:.1f} Z"
    )
    add(picture, tag("path", d=path, class_=classes))


def _short(text: str, most: int = 24) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"
