"""Pieces of which reports are laid out on a terminal: safe text, bars, tables whose digits are never cut."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

from rich.console import RenderableType
from rich.padding import Padding
from rich.style import Style
from rich.table import Table
from rich.text import Text as _Text

from btlm_data.terminal import visible

BAR_WIDTH = 28

Cells = list[_Text | str]


class Text(_Text):
    """Text that cannot command the terminal, whatever the corpus holds."""

    def __init__(self, text: str = "", style: str | Style = "", **options: Any) -> None:
        super().__init__(visible(text), style, **options)

    def append(self, text: _Text | str, style: str | Style | None = None) -> Self:
        """As rich does, with what comes made visible."""
        super().append(visible(text) if isinstance(text, str) else text, style)
        return self


def bar(share: float, width: int = BAR_WIDTH) -> Text:
    """A bar of eighths of a character; never empty for a share above 0."""
    eighths = round(max(0.0, min(1.0, share)) * width * 8)
    if share > 0 and not eighths:
        eighths = 1
    full, rest = divmod(eighths, 8)
    return Text("█" * full + (" ▏▎▍▌▋▊▉"[rest] if rest else ""), "cyan")


def table(columns: Sequence[str], rows: Sequence[Cells], right: Sequence[int] = ()) -> Table:
    """A table without lines. right: columns of numbers; these are never made narrower than what they hold."""
    result = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    cells = [[cell if isinstance(cell, _Text) else Text(cell) for cell in row] for row in rows]
    for k, name in enumerate(columns):
        numeric = k in right
        widest = max((row[k].cell_len for row in cells), default=0)
        result.add_column(
            name,
            justify="right" if numeric else "left",
            no_wrap=numeric,
            min_width=max(widest, len(name)) if numeric else None,
            overflow="fold",
        )
    for row in cells:
        result.add_row(*row)
    return result


def indented(content: RenderableType) -> RenderableType:
    """Two characters to the right."""
    return Padding(content, (0, 0, 0, 2), expand=False)
