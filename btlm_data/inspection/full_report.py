"""What `btlm-data inspect --full` shows: every figure of a report. Only the report is looked at, never the
disk.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich.console import Console, Group, RenderableType

from btlm_data.inspection.figures import counted, estimate, number, percent, size
from btlm_data.inspection.first_screen import masked, reasons
from btlm_data.inspection.headline import headline
from btlm_data.inspection.parts import Cells, Text, bar, indented, table
from btlm_data.inspection.report import Bar, DocumentPart, Report, Sample, Segment

SEGMENT_CHARS = 420  # of a decoded stretch: its beginning and its end
MAX_SEGMENTS = 6
MAX_EXAMPLE_CHARS = 90
_STAGES_OF_DOCUMENTS = ("acquire", "clean", "dedupe", "holdout", "tokenize", "shuffle")
_QUANTILES = {
    "0": "least",
    "0.05": "5 %",
    "0.25": "25 %",
    "0.5": "median",
    "0.75": "75 %",
    "0.95": "95 %",
    "0.99": "99 %",
    "1": "most",
}


def show(report: Report, console: Console) -> None:
    """Print every section of a report."""
    console.print(Text(report.path, "bold"), soft_wrap=True)
    console.print(Text(headline(report)))
    for heading, content in _sections(report):
        if content is not None:
            console.print()
            console.print(Text(heading, "bold cyan"))
            console.print(indented(content))
    show_samples(report, console)


def show_samples(report: Report, console: Console) -> None:
    """Print the samples of a report."""
    for sample in report.samples:
        console.print()
        console.print(_sample(sample))


def _sections(report: Report) -> Iterable[tuple[str, RenderableType | None]]:
    yield "Splits", _splits(report)
    yield "Sources", _sources(report)
    yield "Documents, stage by stage", _ledger(report)
    yield "Forgotten documents", masked(report) if report.masked else None
    yield "Duplicates", _duplicates(report)
    yield "Lengths of documents, in tokens", _lengths(report)
    yield "Tokens", _tokens(report)
    yield "Shuffle", _shuffle(report)
    yield "Dropped, for example", _examples(report)
    yield (
        "Verdicts",
        Text("\n".join(f"{v.level:<8} {v.text}" for v in report.verdicts)) if report.verdicts else None,
    )
    yield "Not known", Text("\n".join(report.unknown), "yellow") if report.unknown else None


def _splits(report: Report) -> RenderableType:
    rows: list[Cells] = [
        [
            Text(name, "bold"),
            number(split.samples),
            number(split.documents),
            estimate(split.label_tokens, split.label_tokens_measured),
            percent(split.packing_efficiency),
            number(split.files),
            size(split.disk_bytes),
            "unknown" if split.bytes_per_token is None else f"{split.bytes_per_token:.2f}",
        ]
        for name, split in report.splits.items()
    ]
    columns = ("split", "samples", "documents", "tokens", "packing", "shards", "on disk", "B/token")
    layouts: dict[str, list[str]] = {}
    for name, split in report.splits.items():
        stored = "in an unknown way"
        if split.layout:
            shape = "x".join(map(str, split.shape or []))
            stored = " ".join(filter(None, [split.dtype, shape, split.compression or "uncompressed"]))
        layouts.setdefault(stored, []).append(name)
    stored_as = "; ".join(
        stored if len(layouts) == 1 else f"{', '.join(names)}: {stored}" for stored, names in layouts.items()
    )
    lines = [Text(f"stored as {stored_as}", "dim")]
    if report.identity is not None:
        disk = report.disk
        lines.append(
            Text(
                f"on disk: shards {size(disk.shards)}, tables of documents {size(disk.documents)}, other "
                f"files {size(disk.other)}",
                "dim",
            )
        )
        lines += [
            Text(
                f"not read: {counted(entry.files, 'file')} ({entry.reason})"
                + (f": {', '.join(entry.names)}" if entry.names else ""),
                "dim",
            )
            for entry in report.identity.left_out
        ]
    return Group(table(columns, rows, right=range(1, 8)), *lines)


def _sources(report: Report) -> RenderableType | None:
    parts: list[RenderableType] = []
    columns = ("source", "documents", "", "bytes", "", "tokens", "")
    for split, sources in report.sources.items():
        if not sources:
            continue
        rows: list[Cells] = [
            [
                Text(source.source or "(unnamed)", "bold"),
                number(source.documents),
                Text(percent(source.shares.documents), "dim"),
                size(source.bytes),
                Text(percent(source.shares.bytes), "dim"),
                number(source.tokens),
                Text(percent(source.shares.tokens), "dim"),
            ]
            for source in sources
        ]
        parts += [Text(split), table(columns, rows, right=range(1, 7))]
    return Group(*parts) if parts else None


def _ledger(report: Report) -> RenderableType | None:
    rows: list[Cells] = []
    for stage in report.ledger:
        if stage.stage not in _STAGES_OF_DOCUMENTS:
            continue
        received, out = stage.received.documents, stage.out.documents
        share = percent(out / received) if received else ""
        rows.append(
            [Text(stage.stage, "bold"), number(received), number(out), Text(share, "dim"), reasons(stage)]
        )
    return table(("stage", "in", "out", "", "dropped (+ added)"), rows, right=(1, 2, 3)) if rows else None


def _duplicates(report: Report) -> RenderableType | None:
    summary = report.duplicates
    if summary is None:
        return None
    lines: list[RenderableType] = []
    if summary.clusters is not None:
        clusters = summary.clusters
        lines.append(
            Text(
                f"{counted(clusters.clusters, 'cluster')} of {counted(clusters.documents, 'document')}, by "
                f"{summary.method}"
            )
        )
        if clusters.histogram:
            lines.append(_histogram(("documents", "clusters", ""), clusters.histogram))
    lines += [
        Text(
            f"{counted(large.documents, 'document')} like {large.file} offset {large.offset:,} "
            f"({large.source})",
            "dim",
        )
        for large in summary.largest_clusters[:3]
    ]
    return Group(*lines) if lines else None


def _histogram(columns: tuple[str, str, str], bars: Sequence[Bar]) -> RenderableType:
    top = max(1, *(entry.count for entry in bars))
    rows: list[Cells] = [[_span(entry), number(entry.count), bar(entry.count / top)] for entry in bars]
    return table(columns, rows, right=(0, 1))


def _span(entry: Bar) -> str:
    return f"{entry.first:,}" if entry.first == entry.last else f"{entry.first:,}-{entry.last:,}"


def _lengths(report: Report) -> RenderableType | None:
    measured = {split: value for split, value in report.lengths.items() if value.tokens}
    if not measured:
        return None
    # A row a figure and a column a split: at most four columns, so that it fits any terminal.
    rows: list[Cells] = [
        ["mean", *(number(value.tokens.mean) for value in measured.values() if value.tokens)]
    ]
    for share, name in _QUANTILES.items():
        values = [value.tokens.quantiles.get(share) for value in measured.values() if value.tokens]
        rows.append([name, *map(number, values)])
    per_token = [value.chars_per_token for value in measured.values()]
    rows.append(["characters a token", *("unknown" if v is None else f"{v:.2f}" for v in per_token)])
    parts: list[RenderableType] = [table(("", *measured), rows, right=range(1, len(measured) + 1))]
    split, first = next(iter(measured.items()))
    assert first.tokens is not None
    parts += [Text(""), _histogram(("tokens", "documents", split), first.tokens.histogram)]
    if first.documents != first.of:
        parts.append(Text(f"measured on {number(first.documents)} of {number(first.of)} documents", "dim"))
    return Group(*parts)


def _tokens(report: Report) -> RenderableType | None:
    lines: list[RenderableType] = []
    for split, value in report.tokens.items():
        measured = "all rows" if value.all else counted(value.rows, "row")
        eos = "" if value.eos_share is None else f", {percent(value.eos_share)} end a document"
        share = (
            ""
            if value.vocabulary_share is None
            else f" ({percent(value.vocabulary_share)} of the vocabulary)"
        )
        parts = value.document_parts_per_sample
        per_sample = "" if parts is None else f", {parts:.1f} documents a sample"
        lines.append(
            Text.assemble(
                (split, "bold"),
                f"  {number(value.distinct)} distinct ids from {value.min:,} to {value.max:,}{share}, "
                f"{value.entropy_bits:.2f} bits each{eos}{per_sample}",
                (f"  measured on {measured}", "dim"),
            )
        )
        common = Text("  most common: ", "dim")
        for entry in value.most_common[:8]:
            common.append(repr(entry.text) if entry.text is not None else str(entry.id), "green")
            common.append(f" {percent(entry.share)}  ", "dim")
        lines.append(common)
    if report.tokenizer_guess:
        lines.append(Text(f"tokenizer: {report.tokenizer_guess} (a guess)", "yellow"))
    return Group(*lines) if lines else None


def _shuffle(report: Report) -> RenderableType | None:
    rows: list[Cells] = []
    for split, value in report.shuffle.items():
        figures: list[tuple[str, str, str, str]] = []
        for correlation, name in (
            (value.documents, "rank correlation of documents with their source order"),
            (value.samples, "rank correlation of samples with the stream"),
        ):
            if correlation is not None:
                expected = f"0 ± {correlation.standard_deviation:.4f}"
                figures.append(
                    (name, f"{correlation.rank_correlation:+.4f}", expected, number(correlation.measured_on))
                )
        if (runs := value.runs) is not None:
            name = f"longest run of one source ({runs.source or 'unnamed'})"
            figures.append((name, number(runs.longest_run), f"{runs.expected:.0f}", ""))
        if (neighbours := value.neighbours) is not None:
            figures.append(
                (
                    "samples that continue the one before",
                    percent(neighbours.continued),
                    percent(neighbours.expected),
                    number(neighbours.measured_on),
                )
            )
        rows += [[Text("" if k else split, "bold"), *figure] for k, figure in enumerate(figures)]
    columns = ("split", "figure", "found", "if perfect", "measured on")
    return table(columns, rows, right=(2, 3, 4)) if rows else None


def _examples(report: Report) -> RenderableType | None:
    rows: list[Cells] = []
    for reason, examples in report.examples.items():
        for example in examples[:1]:
            text = " ".join(example.text.split())
            shortened = text[:MAX_EXAMPLE_CHARS] + ("…" if len(text) > MAX_EXAMPLE_CHARS else "")
            location = f"{example.file} at byte {example.offset}"
            rows.append([Text(reason.replace("_", " "), "red"), shortened, Text(location, "dim")])
    return table(("reason", "", "from"), rows) if rows else None


# Samples ----------------------------------------------------------------------------------------------------


def _sample(sample: Sample) -> RenderableType:
    head = Text.assemble(("Sample ", "bold cyan"), (f"{sample.sample:,}", "bold cyan"), f" of {sample.split}")
    if sample.file is None:
        return Group(head, indented(Text(str(sample.note), "yellow")))
    location = f"{sample.file} row {sample.row:,}"
    if sample.stream_sample is not None:
        location += f" · sample {sample.stream_sample:,} of the stream"
    if sample.real_positions < sample.positions:
        padded = sample.positions - sample.real_positions
        location += f" · {padded:,} of {sample.positions:,} positions are padding"
    head.append(f"  {location}", "dim")
    parts: list[RenderableType] = []
    if sample.documents:
        parts.append(_documents(sample.documents))
    elif sample.note:
        parts.append(Text(sample.note, "yellow"))
    segments = sample.segments
    shown = segments if len(segments) <= MAX_SEGMENTS else [*segments[: MAX_SEGMENTS - 1], segments[-1]]
    for k, segment in enumerate(shown):
        if len(shown) < len(segments) and k == len(shown) - 1:
            parts.append(Text(f"··· {counted(len(segments) - len(shown), 'more document')} ···", "dim"))
        document = sample.documents[segment.document] if sample.documents else None
        parts.append(_segment(segment, continued=document is not None and document.token_range[0] > 0))
    return Group(head, indented(Group(*parts)))


def _documents(documents: Sequence[DocumentPart]) -> RenderableType:
    rows: list[Cells] = []
    for document in documents:
        (first, last), (begin, end) = document.token_range, document.positions
        rows.append(
            [
                f"{document.document:,}",
                document.source,
                document.file,
                f"{document.line:,}",
                f"{first:,}-{last:,} of {document.tokens:,}",
                f"{begin:,}-{end:,}",
            ]
        )
    columns = ("document", "source", "file", "line", "its tokens", "at positions")
    return table(columns, rows, right=(0, 3, 4, 5))


def _segment(segment: Segment, *, continued: bool) -> RenderableType:
    """A stretch of one document, between its borders."""
    begin, end = segment.positions
    border = Text(f"┌─ {begin:,}-{end:,}" + (" (continues a document)" if continued else ""), "magenta")
    if segment.text is None:
        body = Text(" ".join(map(str, segment.ids or [])) + " …")
    else:
        text = segment.text
        half = SEGMENT_CHARS // 2
        body = Text(text if len(text) <= SEGMENT_CHARS else text[:half])
        if len(text) > SEGMENT_CHARS:
            body.append(f" ··· {len(text) - 2 * half:,} characters ··· ", "dim")
            body.append(text[-half:])
    foot = Text(
        "└─ EOS" if segment.ends_document else "└─ continues elsewhere",
        "magenta" if segment.ends_document else "dim",
    )
    return Group(border, body, foot)
