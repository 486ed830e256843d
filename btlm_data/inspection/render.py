"""Lay out what `summary.inspect` measured so that a person enjoys reading it. Only the report is looked at, never the disk."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Self

from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.rule import Rule
from rich.style import Style
from rich.table import Table
from rich.text import Text as _Text

from btlm_data.terminal import visible

Report = Mapping[str, Any]
BAR = 28
SEGMENT_CHARS = 420  # of a decoded stretch: its beginning and its end
MAX_SEGMENTS = 6
STAGES_OF_DOCUMENTS = ("acquire", "clean", "dedupe", "holdout", "tokenize", "shuffle")


def render(report: Report, console: Console) -> None:
    """Print the report on `console`."""
    if report["kind"] == "sets":
        console.print(_title(report["path"], f"{len(report['sets'])} sets: {', '.join(report['sets'])}"))
        for name, one in report["sets"].items():
            console.print()
            console.print(Rule(Text(name, "bold"), align="left", style="cyan"))
            _render_one(one, console)
        _print_unknown(report["unknown"], console)
    else:
        _render_one(report, console)


def _render_one(report: Report, console: Console) -> None:
    console.print(_title(report["path"], _headline(report)))
    for heading, content in _sections(report):
        if content is not None:
            console.print()
            console.print(Text(heading, "bold cyan"))
            console.print(Padding(content, (0, 0, 0, 2), expand=False))
    for view in report["samples"]:
        console.print()
        console.print(_sample(view))
    _print_unknown(report["unknown"], console)


def _print_unknown(unknown: Sequence[str], console: Console) -> None:
    if unknown:
        console.print()
        console.print(Text("Not known", "bold yellow"))
        for line in unknown:
            console.print(Padding(Text(line), (0, 0, 0, 2), expand=False))


def _sections(report: Report) -> Iterable[tuple[str, RenderableType | None]]:
    yield "Splits", _splits(report)
    yield "Sources", _sources(report)
    yield "Documents, stage by stage", _ledger(report)
    yield "Duplicates", _duplicates(report)
    yield "Lengths of documents, in tokens", _lengths(report)
    yield "Tokens", _tokens(report)
    yield "Shuffle", _shuffle(report)
    yield "Dropped, for example", _examples(report)


class Text(_Text):
    """Text that cannot command the terminal, whatever the corpus holds."""

    def __init__(self, text: str = "", style: str | Style = "", **options: Any) -> None:
        super().__init__(visible(text), style, **options)

    def append(self, text: _Text | str, style: str | Style | None = None) -> Self:
        """As rich does, with what comes made visible."""
        super().append(visible(text) if isinstance(text, str) else text, style)
        return self


# Numbers ----------------------------------------------------------------------------------------------------------


def number(value: float | None) -> str:
    """1,234 · 1.2 M · 3.4 G."""
    if value is None:
        return "unknown"
    for limit, unit in ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M")):
        if abs(value) >= 0.9995 * limit:
            return (
                f"{value / limit:.3g} {unit}"
                if abs(value) < 999.5 * limit
                else f"{value / limit:,.0f} {unit}"
            )
    return f"{value:,.0f}"


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


def _bar(share: float, width: int = BAR) -> Text:
    """A bar of eighths of a character."""
    eighths = round(max(0.0, min(1.0, share)) * width * 8)
    if share > 0 and not eighths:
        eighths = 1
    full, rest = divmod(eighths, 8)
    return Text("█" * full + (" ▏▎▍▌▋▊▉"[rest] if rest else ""), "cyan")


def _table(*columns: str, right: Sequence[int] = ()) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    for k, name in enumerate(columns):
        table.add_column(name, justify="right" if k in right else "left", no_wrap=k in right or k == 0)
    return table


# Sections ---------------------------------------------------------------------------------------------------------


def _title(path: str, line: str) -> RenderableType:
    return Group(Text(path, "bold"), Text(line))


def _headline(report: Report) -> str:
    identity = report["identity"]
    total = report["disk"]["total"]
    tokens = sum(split["label_tokens"] or 0 for split in report["splits"].values())
    if report["kind"] != "dataset":
        layouts = {f"{s['layout']} {s['dtype']}" for s in report["splits"].values() if s["layout"]}
        return f"shards without a manifest ({', '.join(sorted(layouts)) or 'none readable'}) · about {number(tokens)} tokens · {size(total)}"
    tokenizer = identity["tokenizer"]
    form = (
        "corpus"
        if identity["format"] == "corpus"
        else f"{identity['format']}s of {identity['seq_len']:,} tokens".replace("vsls", "vsl samples")
    )
    share = (
        f" · {percent(identity['set']['share'])} of the documents"
        if identity["set"]["share"] is not None
        else ""
    )
    return (
        f"{form} · {number(tokens)} tokens · {size(total)} · {tokenizer['name']} ({tokenizer['vocab_size']:,} ids) · "
        f"shuffled: {identity['shuffle']}, seed {identity['seed']}{share}"
    )


def _splits(report: Report) -> RenderableType:
    table = _table(
        "split", "samples", "documents", "tokens", "packing", "files", "on disk", "B/token", right=range(1, 8)
    )  # fmt: skip
    layouts: dict[str, list[str]] = {}
    for name, split in report["splits"].items():
        stored = " ".join(
            filter(
                None,
                [
                    split["dtype"],
                    "x".join(map(str, split["shape"] or [])),
                    split["compression"] or "uncompressed",
                ],
            )
        )
        measured = "" if split["label_tokens_measured"] == "all" else "about "
        per_token = split["bytes_per_token"]
        table.add_row(
            Text(name, "bold"),
            number(split["samples"]),
            number(split["documents"]),
            measured + number(split["label_tokens"]),
            percent(split["packing_efficiency"]),
            number(split["files"]),
            size(split["disk_bytes"]),
            "unknown" if per_token is None else f"{per_token:.2f}",
        )
        layouts.setdefault(stored if split["layout"] else "in an unknown way", []).append(name)
    disk = report["disk"]
    line = f"on disk: shards {size(disk['shards'])}, tables of documents {size(disk['documents'])}, other files {size(disk['other'])}"
    told = "; ".join(
        stored if len(layouts) == 1 else f"{', '.join(names)}: {stored}" for stored, names in layouts.items()
    )
    lines = [Text(f"stored as {told}", "dim"), *([Text(line, "dim")] if report["kind"] == "dataset" else [])]
    return Group(table, *lines)


def _sources(report: Report) -> RenderableType | None:
    sources = {split: rows for split, rows in report.get("sources", {}).items() if rows}
    if not sources:
        return None
    split = "train" if "train" in sources else next(iter(sources))
    table = _table("source", "documents", "", "bytes", "", "tokens", "", right=range(1, 7))
    for row in sources[split]:
        shares = row["shares"]
        table.add_row(
            Text(row["source"] or "(unnamed)", "bold"),
            *(
                cell
                for unit, show in (("documents", number), ("bytes", size), ("tokens", number))
                for cell in (show(row[unit]), Text(percent(shares[unit]), "dim"))
            ),
        )
    others = [name for name in sources if name != split]
    return Group(table, Text(f"{', '.join(others)}: see --json", "dim")) if others else table


def _ledger(report: Report) -> RenderableType | None:
    stages = [stage for stage in report.get("ledger", []) if stage["stage"] in STAGES_OF_DOCUMENTS]
    if not stages:
        return None
    table = _table("stage", "in", "kept", "", "dropped or added", right=(1, 2, 3))
    for stage in stages:
        came, out = stage["in"]["documents"], stage["out"]["documents"]
        lines = [_reason(reason, amount, "red") for reason, amount in stage["dropped"].items()]
        lines += [_reason(reason, amount, "green", "+") for reason, amount in stage["added"].items()]
        kept = Text(percent(out / came) if came else "", "dim")
        table.add_row(
            Text(stage["stage"], "bold"),
            number(came),
            number(out),
            kept,
            Text(", ").join(lines) if lines else Text("-", "dim"),
        )
    return table


def _reason(reason: str, amount: Mapping[str, int], style: str, sign: str = "") -> _Text:
    what = number(amount["documents"]) if amount["documents"] else size(amount["bytes"])
    return Text.assemble((f"{sign}{what}", style), f" {reason.replace('_', ' ')}")


def _duplicates(report: Report) -> RenderableType | None:
    found = report.get("duplicates")
    if not found:
        return None
    lines: list[RenderableType] = []
    sizes = found.get("sizes")
    if isinstance(found.get("clusters"), int):
        many = found.get("documents_in_clusters")
        inside = f" of {number(many)} documents" if isinstance(many, int) else ""
        lines.append(Text(f"{number(found['clusters'])} clusters{inside}, by {found.get('method')}"))
    if sizes and sizes["histogram"]:
        top = max(row["clusters"] for row in sizes["histogram"])
        table = _table("documents", "clusters", "", right=(0, 1))
        for row in sizes["histogram"]:
            table.add_row(_span(row), number(row["clusters"]), _bar(row["clusters"] / top))
        lines.append(table)
    largest = found.get("largest_clusters", found.get("largest"))
    rows = [row for row in largest if isinstance(row, dict)][:3] if isinstance(largest, list) else []
    for row in rows:
        one = {key: row.get(key, "?") for key in ("documents", "file", "offset", "source")}
        lines += [
            Text(
                f"{one['documents']} documents like {one['file']} offset {one['offset']} ({one['source']})",
                "dim",
            )
        ]
    return Group(*lines) if lines else None


def _span(row: Mapping[str, Any]) -> str:
    return f"{row['from']:,}" if row["from"] == row["to"] else f"{row['from']:,}-{row['to']:,}"


def _lengths(report: Report) -> RenderableType | None:
    lengths = {split: value for split, value in report["lengths"].items() if value["tokens"]}
    if not lengths:
        return None
    table = _table(
        "split",
        "mean",
        "least",
        "5 %",
        "25 %",
        "median",
        "75 %",
        "95 %",
        "99 %",
        "most",
        "chars/token",
        right=range(1, 11),
    )
    for split, value in lengths.items():
        tokens = value["tokens"]
        per_token = value["chars_per_token"]
        quantiles = [number(q) for q in tokens["quantiles"].values()]
        table.add_row(
            Text(split, "bold"),
            number(tokens["mean"]),
            *quantiles,
            "" if per_token is None else f"{per_token:.2f}",
        )
    split = "train" if "train" in lengths else next(iter(lengths))
    value = lengths[split]
    bars = value["tokens"]["histogram"]
    top = max(row["documents"] for row in bars)
    histogram = _table("tokens", "documents", split, right=(0, 1))
    for row in bars:
        histogram.add_row(_span(row), number(row["documents"]), _bar(row["documents"] / top))
    sampled = (
        ""
        if value["documents"] == value["of"]
        else f"measured on {number(value['documents'])} of {number(value['of'])} documents"
    )
    return Group(table, Text(""), histogram, *([Text(sampled, "dim")] if sampled else []))


def _tokens(report: Report) -> RenderableType | None:
    lines: list[RenderableType] = []
    for split, value in report["tokens"].items():
        measured = "all" if value["all"] else f"{number(value['rows'])}"
        eos = "" if value["eos_share"] is None else f", {percent(value['eos_share'])} end a document"
        share = (
            f" ({percent(value['vocabulary_share'])} of the vocabulary)"
            if "vocabulary_share" in value
            else ""
        )
        parts = value["document_parts_per_sample"]
        parts_line = "" if parts is None else f", {parts:.1f} documents a sample"
        lines.append(
            Text.assemble(
                (split, "bold"),
                f"  {number(value['distinct'])} distinct ids from {value['min']:,} to {value['max']:,}{share}, "
                f"{value['entropy_bits']:.2f} bits each{eos}{parts_line}",
                (f"  measured on {measured} rows", "dim"),
            )
        )
        common = Text("  most common: ", "dim")
        for entry in value["most_common"][:8]:
            common.append(repr(entry["text"]) if entry.get("text") is not None else str(entry["id"]), "green")
            common.append(f" {percent(entry['share'])}  ", "dim")
        lines.append(common)
    if report.get("tokenizer_guess"):
        lines.append(Text(f"tokenizer: {report['tokenizer_guess']} (a guess)", "yellow"))
    return Group(*lines) if lines else None


def _shuffle(report: Report) -> RenderableType | None:
    table = _table("split", "what", "found", "perfect shuffle", "measured on", right=(2, 3, 4))
    for split, value in report["shuffle"].items():
        rows: list[tuple[str, str, str, str]] = []
        for key, what in (
            ("documents", "rank correlation of documents with their source order"),
            ("samples", "the same of samples with the stream"),
        ):
            found = value[key]
            if found:
                expected = f"0 ± {found['standard_deviation']:.4f}"
                rows.append(
                    (what, f"{found['rank_correlation']:+.4f}", expected, number(found["measured_on"]))
                )
        if runs := value["runs"]:
            rows.append(
                (
                    f"longest run of one source ({runs['source'] or 'unnamed'})",
                    number(runs["longest_run"]),
                    f"{runs['expected']:.0f}",
                    "",
                )
            )
        if neighbours := value["neighbours"]:
            what = "samples that continue the one before"
            rows.append(
                (
                    what,
                    percent(neighbours["continue"]),
                    percent(neighbours["expected"]),
                    number(neighbours["measured_on"]),
                )
            )
        for k, row in enumerate(rows):
            table.add_row(Text("" if k else split, "bold"), *map(Text, row))
    return table if table.row_count else None


def _examples(report: Report) -> RenderableType | None:
    examples = report.get("examples") or {}
    table = _table("reason", "", "from")
    for reason, found in examples.items():
        for example in found[:1]:
            text = " ".join(example["text"].split())
            place = f"{example.get('file')} at byte {example.get('offset')}"
            table.add_row(
                Text(reason.replace("_", " "), "red"),
                Text(text[:90] + ("…" if len(text) > 90 else "")),
                Text(place, "dim"),
            )
    return table if table.row_count else None


# Samples ----------------------------------------------------------------------------------------------------------


def _sample(view: Report) -> RenderableType:
    head = Text.assemble(
        ("Sample ", "bold cyan"), (f"{view['sample']:,}", "bold cyan"), f" of {view['split']}"
    )
    if "file" not in view:
        return Group(head, Padding(Text(str(view["note"]), "yellow"), (0, 0, 0, 2), expand=False))
    place = f"{view['file']} row {view['row']:,}"
    if view.get("stream_sample") is not None:
        place += f" · sample {view['stream_sample']:,} of the stream"
    if view["real_positions"] < view["positions"]:
        place += f" · {view['positions'] - view['real_positions']:,} of {view['positions']:,} positions are padding"
    head.append(f"  {place}", "dim")
    parts: list[RenderableType] = []
    if view["documents"]:
        parts.append(_documents(view["documents"]))
    elif view["note"]:
        parts.append(Text(str(view["note"]), "yellow"))
    segments = view["segments"]
    shown = segments if len(segments) <= MAX_SEGMENTS else [*segments[: MAX_SEGMENTS - 1], segments[-1]]
    for k, segment in enumerate(shown):
        if len(shown) < len(segments) and k == len(shown) - 1:
            parts.append(Text(f"··· {len(segments) - len(shown):,} more documents ···", "dim"))
        of = view["documents"][segment["document"]] if view["documents"] else None
        parts.append(_segment(segment, continued=of is not None and of["token_range"][0] > 0))
    return Group(head, Padding(Group(*parts), (0, 0, 0, 2), expand=False))


def _documents(documents: Sequence[Report]) -> RenderableType:
    table = _table("document", "source", "file", "line", "its tokens", "at positions", right=(0, 3, 4, 5))
    for document in documents:
        (first, last), (begin, end) = document["token_range"], document["positions"]
        part = f"{first:,}-{last:,} of {document['tokens']:,}"
        table.add_row(
            f"{document['document']:,}",
            Text(document["source"]),
            Text(document["file"]),
            f"{document['line']:,}",
            part,
            f"{begin:,}-{end:,}",
        )
    return table


def _segment(segment: Report, *, continued: bool) -> RenderableType:
    """A stretch of one document, between its borders."""
    begin, end = segment["positions"]
    border = Text(f"┌─ {begin:,}-{end:,}" + (" (goes on from before)" if continued else ""), "magenta")
    if segment["text"] is None:
        body = Text(" ".join(map(str, segment.get("ids", []))) + " …")
    else:
        text = segment["text"]
        half = SEGMENT_CHARS // 2
        body = Text(text if len(text) <= SEGMENT_CHARS else text[:half])
        if len(text) > SEGMENT_CHARS:
            body.append(f" ··· {len(text) - 2 * half:,} characters ··· ", "dim")
            body.append(text[-half:])
    foot = Text(
        "└─ EOS" if segment["ends_document"] else "└─ goes on elsewhere",
        "magenta" if segment["ends_document"] else "dim",
    )
    return Group(border, body, foot)
