"""What `btlm-data inspect` shows first: at most 40 lines with what matters, and what it means."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec
from rich.console import Console, Group, RenderableType

from btlm_data.inspection.figures import counted, estimate, number, percent, size
from btlm_data.inspection.headline import headline
from btlm_data.inspection.parts import Cells, Text, bar, indented, table
from btlm_data.inspection.report import Report, Stage

MAX_LINES = 40
_MARKS = {"good": ("ok", "green"), "warning": ("!", "bold yellow"), "unknown": ("?", "dim")}
_STAGES_SHOWN = ("acquire", "clean", "dedupe", "holdout", "shuffle")


class _Limits(msgspec.Struct, frozen=True):
    """At most how many of each are shown. chars: of each line of text."""

    sources: int
    reasons: int
    verdicts: int
    unknown: int
    chars: int


# The first with which everything fits into MAX_LINES is taken.
_LIMITS = (
    _Limits(8, 4, 9, 3, 240),
    _Limits(6, 3, 8, 2, 150),
    _Limits(5, 2, 6, 1, 140),
    _Limits(3, 1, 5, 1, 70),
)


def show(report: Report, console: Console) -> None:
    """Print the first screen of a report."""
    for limits in _LIMITS:
        screen = _screen(report, limits)
        if len(console.render_lines(screen)) < MAX_LINES:
            break
    console.print(Text(report.path, "bold"), soft_wrap=True)
    console.print(screen)


def _screen(report: Report, limits: _Limits) -> RenderableType:
    parts: list[RenderableType] = [Text(headline(report))]
    for heading, content in _sections(report, limits):
        parts.append(Text(""))
        if heading:
            parts.append(Text(heading, "bold cyan"))
        parts.append(indented(content))
    return Group(*parts)


def _sections(report: Report, limits: _Limits) -> Iterator[tuple[str, RenderableType]]:
    if report.splits:
        yield "", _splits(report)
    split = next((name for name in report.sources if report.sources[name]), None)
    if split is not None and len(report.sources[split]) > 1:
        yield f"Sources of {split}, by tokens", _sources(report, split, limits.sources)
    if report.ledger:
        yield "Documents, stage by stage", _stages(report, limits.reasons)
        if report.masked:
            yield "Forgotten documents", masked(report)
    if report.identity is not None and report.identity.left_out:
        yield "Files of the source that were not read", _not_read(report, limits.chars)
    split = next((name for name, lengths in report.lengths.items() if lengths.tokens), None)
    if split is not None:
        yield f"Lengths of documents of {split}", _lengths(report, split)
    if report.verdicts:
        yield "Verdicts", _verdicts(report, limits.verdicts)
    if report.unknown:
        yield "Not known", _unknown(report, limits)
    if report.splits:
        yield (
            "",
            Text("More: --full; --sample N, a sample and its documents; --json", "dim"),
        )


def masked(report: Report) -> RenderableType:
    """What was masked of documents that were forgotten."""
    return Text(f"{counted(report.masked, 'label position')} masked; forgotten.json has the certificates")


def _splits(report: Report) -> RenderableType:
    rows: list[Cells] = [
        [
            Text(name, "bold"),
            number(split.samples),
            number(split.documents),
            estimate(split.label_tokens, split.label_tokens_measured),
            percent(split.packing_efficiency),
            size(split.disk_bytes),
        ]
        for name, split in report.splits.items()
    ]
    columns = ("split", "samples", "documents", "tokens", "packing", "on disk")
    return table(columns, rows, right=range(1, 6))


def _sources(report: Report, split: str, at_most: int) -> RenderableType:
    sources = report.sources[split]
    top = sources[0].shares.tokens or 1.0
    shown = sources if len(sources) <= at_most else sources[: at_most - 1]
    rows: list[Cells] = [
        [
            source.source or "(unnamed)",
            percent(source.shares.tokens),
            number(source.documents),
            bar(source.shares.tokens / top),
        ]
        for source in shown
    ]
    if len(shown) < len(sources):
        rest = sources[len(shown) :]
        rows.append(
            [
                Text(f"{len(rest):,} more", "dim"),
                percent(sum(source.shares.tokens for source in rest)),
                number(sum(source.documents for source in rest)),
                "",
            ]
        )
    return table(("source", "tokens", "documents", ""), rows, right=(1, 2))


def _stages(report: Report, at_most: int) -> RenderableType:
    stages = [stage for stage in report.ledger if stage.stage in _STAGES_SHOWN]
    rows: list[Cells] = [
        [
            Text(stage.stage, "bold"),
            number(stage.received.documents),
            number(stage.out.documents),
            Text(reasons(stage, at_most), "" if stage.dropped or stage.added else "dim"),
        ]
        for stage in stages
        if stage.received.documents != stage.out.documents or stage.stage in ("acquire", "shuffle")
    ]
    return table(("stage", "in", "out", "dropped"), rows, right=(1, 2))


def reasons(stage: Stage, at_most: int | None = None) -> str:
    """What a stage dropped and added, by reason: most documents first."""
    dropped = [
        f"{number(a.documents) if a.documents else size(a.bytes)} {reason.replace('_', ' ')}"
        for reason, a in stage.dropped.items()
        if at_most is None or a.documents
    ]
    added = [
        f"+{number(a.documents) if a.documents else size(a.bytes)} {reason.replace('_', ' ')}"
        for reason, a in stage.added.items()
        if at_most is None or a.documents
    ]
    parts = [*dropped, *added]
    if at_most is not None and len(parts) > at_most:
        parts[at_most - 1 :] = [f"{len(parts) - at_most + 1} more reasons"]
    return ", ".join(parts) or "nothing"


def _not_read(report: Report, chars: int) -> RenderableType:
    assert report.identity is not None
    entries = (
        f"{number(entry.files)} {entry.reason} ({', '.join(entry.names[:2])}{', ...' * (entry.files > 2)})"
        for entry in report.identity.left_out
    )
    return Text(_short("; ".join(entries), chars))


def _lengths(report: Report, split: str) -> RenderableType:
    lengths = report.lengths[split]
    assert lengths.tokens is not None
    quantiles = {share: number(value) for share, value in lengths.tokens.quantiles.items()}
    per_token = (
        "" if lengths.chars_per_token is None else f"; {lengths.chars_per_token:.2f} characters a token"
    )
    return Text(
        f"median {quantiles['0.5']} tokens; 5 % have at most {quantiles['0.05']}, 5 % at least "
        f"{quantiles['0.95']}; "
        f"the longest has {quantiles['1']}{per_token}"
    )


def _verdicts(report: Report, at_most: int) -> RenderableType:
    order = {"warning": 0, "unknown": 1, "good": 2}
    verdicts = sorted(report.verdicts, key=lambda verdict: order[verdict.level])
    rows: list[Cells] = []
    for verdict in verdicts[:at_most]:
        mark, style = _MARKS[verdict.level]
        rows.append([Text(mark, style), Text(verdict.text)])
    result = table(("", ""), rows)
    result.show_header = False
    return result


def _unknown(report: Report, limits: _Limits) -> RenderableType:
    lines = report.unknown[: limits.unknown]
    more = len(report.unknown) - len(lines)
    text = "\n".join(_short(line, limits.chars) for line in lines) + (
        f"\nand {more:,} more: --full" if more else ""
    )
    return Text(text, "yellow")


def _short(line: str, chars: int) -> str:
    """The line, or what of its words is in `chars` characters with `...` behind."""
    if len(line) <= chars:
        return line
    words = line[: chars - 3].rpartition(" ")[0]
    return f"{words} ..." if 2 * len(words) > chars else line[: chars - 3] + "..."
