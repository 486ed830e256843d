"""How the data of a saved state differs from the data at hand."""

from __future__ import annotations

from typing import Any


def data_differences(then: Any, now: list[dict[str, Any]], limit: int = 8) -> list[str]:
    """What changed between two lists of fingerprints, in words; at most `limit` lines and a count of the rest."""
    if len(then) != len(now):
        return [f"{len(then)} data sets then, {len(now)} now"]
    lines = []
    for old, new in zip(then, now, strict=True):
        if old["layout"] != new["layout"]:
            lines.append(f"rows: {old['layout']} then, {new['layout']} now")
        before, after = [list(file) for file in old["files"]], [list(file) for file in new["files"]]
        if before == after:
            continue
        if [file[0] for file in before] == [file[0] for file in after]:
            for (name, *was), (_, *is_now) in zip(before, after, strict=True):
                what = [
                    f"{label} {a} then, {b} now"
                    for label, a, b in zip(("rows", "bytes", "content", "sha256"), was, is_now, strict=True)
                    if a != b and a is not None and b is not None
                ]
                lines += [f"{name}: {'; '.join(what)}"] if what else []
            continue
        gone = [file[0] for file in before if file not in after]
        come = [file[0] for file in after if file not in before]
        lines += [f"{name}: there then, not now (or changed)" for name in gone]
        lines += [f"{name}: here now, not then (or changed)" for name in come]
        lines += [] if gone or come else ["the files stand in another order"]
    return lines if len(lines) <= limit else [*lines[:limit], f"and {len(lines) - limit} more differences"]
