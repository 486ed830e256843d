"""Numbers for people: short, never cut, and never rounded to something they are not."""

from __future__ import annotations

from btlm_data.wording import counted

__all__ = ["counted", "estimate", "number", "percent", "size"]


def number(value: float | None) -> str:
    """1,234 · 1.2 M · 3.4 G."""
    if value is None:
        return "unknown"
    for limit, unit in ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M")):
        if abs(value) >= 0.9995 * limit:
            scaled = value / limit
            return f"{scaled:.3g} {unit}" if abs(value) < 999.5 * limit else f"{scaled:,.0f} {unit}"
    return f"{value:,.0f}"


def estimate(value: float | None, measured: str) -> str:
    """A number, with `about` before it where it was not counted on all rows. measured: "all", or on what."""
    return number(value) if measured == "all" or value is None else f"about {number(value)}"


def size(value: float | None) -> str:
    """Bytes: 812 B · 3.4 GB (powers of 1,000)."""
    if value is None:
        return "unknown"
    for limit, unit in ((1e15, "PB"), (1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if value >= 0.9995 * limit:
            return f"{value / limit:.3g} {unit}" if value < 999.5 * limit else f"{value / limit:,.0f} {unit}"
    return f"{value:.0f} B"


def percent(share: float | None) -> str:
    """45.2 %; two digits more near 0 and 100, and never rounded up to 100 %."""
    if share is None:
        return "unknown"
    digits = 1 if share == 0 or share == 1 or 0.001 <= share <= 0.999 else 3
    text = f"{100 * share:.{digits}f}"
    return f"{'99.999' if share < 1 and float(text) >= 100 else text} %"
