"""The lines a run ends with: what came in, what went and why, what is there now."""

from __future__ import annotations

from rich.console import Console

from btlm_data.pipeline import Prepared
from btlm_data.progress import amount
from btlm_data.recipe.models import Recipe
from btlm_data.task import Amount


def _print(console: Console, line: str, style: str | None = None) -> None:
    console.print(line, soft_wrap=True, style=style)


def render(prepared: Prepared, recipe: Recipe, console: Console) -> None:
    """Print the summary of a run on `console`."""
    if prepared.already_done:
        _print(
            console,
            f"Nothing to do: {prepared.out} already holds this very dataset. `btlm-data verify {prepared.out}` re-reads it.",
        )
        return
    for stage, counts in prepared.stages.items():
        came = Amount()
        dropped: dict[str, int] = {}
        for (_, _, what), value in counts.cells.items():
            if what == "in":
                came = came.plus(value)
            elif what.startswith("drop:") and value.documents:
                dropped[what[5:]] = dropped.get(what[5:], 0) + value.documents
        if came.documents and stage in ("acquire", "clean", "dedupe", "holdout"):
            listed = ", ".join(
                f"{n:,} {reason.replace('_', ' ')}"
                for reason, n in sorted(dropped.items(), key=lambda item: -item[1])
            )
            _print(
                console,
                f"  {stage:<9} {came.documents:>13,} documents, {amount(came.bytes, 'B'):>9}   {'dropped: ' + listed if listed else ''}",
            )
    if prepared.num_rejects:
        _print(
            console,
            f"  {prepared.num_rejects:,} records could not be read: {prepared.work_dir / 'rejects.jsonl'} lists reason and place.",
        )
    for warning in prepared.warnings:
        _print(console, f"  {warning}", "yellow")
    if prepared.complete:
        size = sum(path.stat().st_size for path in prepared.work_dir.rglob("*") if path.is_file())
        _print(
            console,
            f"  {amount(size, 'B')} of work files in {prepared.work_dir}: kept for quick changes of options, safe to delete.",
        )
        local = prepared.out
        copied = (
            ""
            if str(local) in (recipe.run.out, recipe.run.out.removeprefix("file://"))
            else f" (uploaded from {local})"
        )
        _print(
            console,
            f"Prepared {recipe.run.out}{copied}. Next: `btlm-data inspect {local}`, `btlm-data verify {local}`.",
        )
    else:
        _print(
            console,
            f"Stopped after {recipe.run.stop_after}, as asked. The same command without --stop-after goes on from here.",
        )
