"""Sections of a report that say what a dataset is: figures at a glance, verdicts, the flow of text, sources,
how it was made.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any
from xml.etree.ElementTree import Element

from btlm_data.formats.ledger import MOVED, Amounts
from btlm_data.inspection.figures import counted, estimate, number, percent, size
from btlm_data.inspection.report import GenerationSplit, Report, Source, Stage, Verdict
from btlm_data.pages.charts import COLOURS, bar, table
from btlm_data.pages.elements import tag
from btlm_data.pages.sankey import Column, Part, sankey

OTHERS = "(others)"
STAGES_WITH_TEXT = (
    "acquire",
    "clean",
    "dedupe",
    "holdout",
    "shuffle",
)  # stages that count documents and bytes
MAX_SOURCES = 40  # rows of a table of sources
MAX_CONFIGURATION = 60_000  # characters that are shown


def words(reason: str) -> str:
    """A reason of the ledger for people: gopher_quality.too_few_words becomes gopher quality: too few words."""
    return reason.replace(".", ": ").replace("_", " ")


def tiles(report: Report) -> Element:
    """The figures that everybody asks for first."""
    splits = report.splits.values()
    measured = "all" if all(split.label_tokens_measured == "all" for split in splits) else "some"
    tokens = sum(split.label_tokens or 0 for split in splits)
    documents = [split.documents for split in splits if split.documents is not None]
    facts = [
        ("tokens", estimate(tokens, measured)),
        ("samples", number(sum(split.samples for split in splits))),
        ("documents", number(sum(documents)) if documents else "not known"),
        ("on disk", size(report.disk.total)),
        ("shards", number(sum(split.files for split in splits))),
    ]
    return tag(
        "dl", *(tag("div", tag("dt", name), tag("dd", value)) for name, value in facts), class_="tiles"
    )


def generations(splits: Sequence[GenerationSplit]) -> Iterator[Element]:
    """What was added to a dataset. splits: of every generation, the first one too."""
    yield tag(
        "p",
        "Documents were added to this dataset. Readers take its generations one after the other; the rest of this "
        "report is of the first.",
    )
    rows: list[list[Element | str]] = [
        [
            str(entry.generation), "/".join(filter(None, (entry.set, entry.split))), f"{entry.documents:,}", number(entry.tokens),
            "" if entry.samples is None else f"{entry.samples:,}", "" if entry.first_sample is None else f"{entry.first_sample:,}",
            size(entry.bytes),
        ]
        for entry in splits
    ]  # fmt: skip
    columns = ("generation", "split", "documents", "tokens", "samples", "first sample", "on disk")
    yield table(columns, rows, numbers=(2, 3, 4, 5, 6), caption="What each generation has")


def verdicts(report: Report) -> list[Element]:
    """Warnings with what to do, then what is not known, then what is well."""
    order = {"warning": 0, "unknown": 1, "good": 2}
    listed = sorted(report.verdicts, key=lambda verdict: order[verdict.level])
    warnings = sum(verdict.level == "warning" for verdict in listed)
    first = f"{counted(warnings, 'thing')} to look at." if warnings else "Nothing stands out."
    items = [_verdict(verdict) for verdict in listed]
    items += [
        tag(
            "li",
            tag("span", "? ", class_="mark", aria_hidden="true"),
            tag("span", "Not known: "),
            text,
            class_="unknown",
        )
        for text in report.unknown
    ]
    return [tag("p", first), tag("ul", *items, class_="verdicts")]


def _verdict(verdict: Verdict) -> Element:
    mark = {"warning": "!", "unknown": "?", "good": "✓"}[verdict.level]
    prefix = {"warning": "Warning: ", "unknown": "Unclear: ", "good": ""}[verdict.level]
    text = verdict.text[:1].upper() + verdict.text[1:] + "."
    return tag(
        "li",
        tag("span", f"{mark} ", class_="mark", aria_hidden="true"),
        tag("strong", prefix) if prefix else None,
        text,
        tag("p", f"What to do: {verdict.advice}") if verdict.advice and verdict.level == "warning" else None,
        class_=verdict.level,
    )


# The flow ---------------------------------------------------------------------------------------------------


def flow(report: Report) -> Iterator[Element]:
    """From the sources to the splits: the picture, and every drop by reason."""
    yield tag(
        "p",
        "Bands are as high as their bytes of text. Each stage shows what it let through and what it dropped.",
    )
    stages = [stage for stage in report.ledger if stage.stage in STAGES_WITH_TEXT]
    columns = [_column(stage) for stage in stages if stage.dropped or stage.added or stage.stage == "shuffle"]
    columns = [column for column in columns if column.dropped is not None] or columns[-1:]
    splits = [
        Part(
            name,
            sum(source.bytes for source in sources),
            f"{number(split.label_tokens)} tokens" if (split := report.splits.get(name)) else "",
        )
        for name, sources in report.sources.items()
    ]
    read, left = (sum(s.bytes for s in report.read), sum(int(split.size) for split in splits))
    label = (
        f"Flow of text: {size(read)} were read from {counted(len(report.read), 'source')}, {size(left)} are in the dataset. "
        "The tables below have the same figures."
    )
    picture = sankey(_largest(report.read), columns, splits, label=label)
    yield tag(
        "figure", picture, tag("figcaption", label), tabindex="0", role="group", aria_label="Flow of text"
    )
    yield _drops(report)
    yield tag("details", tag("summary", "The ledger, stage by stage"), _ledger(report))


def _largest(sources: Sequence[Source]) -> list[Part]:
    parts = [Part(source.source or "(unnamed)", source.bytes) for source in sources]
    if len(parts) <= COLOURS:
        return parts
    rest = parts[COLOURS - 1 :]
    return [*parts[: COLOURS - 1], Part(f"{len(rest):,} more", sum(part.size for part in rest))]


def _lost(stage: Stage) -> dict[str, Amounts]:
    """What a stage drops, by reason; without what it moves to another split, which stays in the dataset."""
    return {reason: amounts for reason, amounts in stage.dropped.items() if not reason.startswith(MOVED)}


def _column(stage: Stage) -> Column:
    documents = sum(amounts.documents for amounts in _lost(stage).values())
    lost = sum(amounts.bytes for amounts in _lost(stage).values())
    dropped = None
    if documents or lost:
        dropped = Part(f"−{number(documents)}", lost, size(lost))
    return Column(stage.stage, stage.out.bytes, dropped)


def _drops(report: Report) -> Element:
    rows: list[list[Element | str]] = []
    listed = [
        (stage.stage, reason, amounts)
        for stage in report.ledger
        for reason, amounts in _lost(stage).items()
        if amounts.documents
    ]
    most = max((amounts.documents for _, _, amounts in listed), default=1)
    for stage, reason, amounts in listed:
        rows.append([
            words(reason), stage, f"{amounts.documents:,}", size(amounts.bytes),
            bar(amounts.documents / most, colour=1),
        ])  # fmt: skip
    if not rows:
        return tag("p", "No document was dropped.")
    return table(
        ("reason", "stage", "documents", "bytes", ""),
        rows,
        numbers=(2, 3),
        caption="What was dropped, and why",
    )


def _ledger(report: Report) -> Element:
    rows: list[list[Element | str]] = []
    for stage in report.ledger:
        lost = ", ".join(
            f"{words(reason)} {_short(a.documents, a.bytes, a.tokens)}" for reason, a in stage.dropped.items()
        )
        more = ", ".join(
            f"{words(reason)} +{_short(a.documents, a.bytes, a.tokens)}" for reason, a in stage.added.items()
        )
        came, out = stage.received, stage.out
        rows.append([
            stage.stage, f"{came.documents:,}", f"{out.documents:,}", size(out.bytes), number(out.tokens),
            "; ".join(part for part in (lost, more) if part) or "nothing",
        ])  # fmt: skip
    return table(
        ("stage", "documents in", "out", "bytes out", "tokens out", "dropped (+ added)"), rows, numbers=(1, 2, 3, 4),
        caption="In + added = out + dropped, in every row",
    )  # fmt: skip


def _short(documents: int, num_bytes: int, tokens: int) -> str:
    return f"{documents:,}" if documents else size(num_bytes) if num_bytes else f"{number(tokens)} tokens"


# Sources ----------------------------------------------------------------------------------------------------


def sources(report: Report) -> Iterator[Element]:
    """Shares of the sources in what was read and in each split."""
    yield tag(
        "p", "Shares before anything was dropped (of the bytes read) and after (of the tokens in the split)."
    )
    before = {source.source: source for source in report.read}
    for name, listed in report.sources.items():
        if not listed:
            continue
        shown = listed[:MAX_SOURCES]
        most = max(
            [source.shares.tokens for source in shown]
            + [before[s.source].shares.bytes for s in shown if s.source in before]
        )
        rows: list[list[Element | str]] = []
        for source in shown:
            was = before.get(source.source)
            bars = tag(
                "div",
                bar(was.shares.bytes / most if was else 0, colour=8),
                bar(source.shares.tokens / most if most else 0),
            )
            rows.append([
                source.source or "(unnamed)", percent(was.shares.bytes) if was else "", percent(source.shares.tokens),
                f"{source.documents:,}", size(source.bytes), number(source.tokens), bars,
            ])  # fmt: skip
        caption = f"{name}: {counted(len(listed), 'source')}, by tokens"
        if len(shown) < len(listed):
            caption += f"; the {len(shown)} largest"
        yield table(
            ("source", "read", f"in {name}", "documents", "text", "tokens", "read above, kept below"), rows,
            numbers=(1, 2, 3, 4, 5), caption=caption,
        )  # fmt: skip


def splits(report: Report) -> Element:
    """A row for each split."""
    rows: list[list[Element | str]] = [
        [
            name,
            f"{split.samples:,}",
            number(split.documents),
            estimate(split.label_tokens, split.label_tokens_measured),
            percent(split.packing_efficiency),
            f"{split.files:,}",
            size(split.disk_bytes),
        ]
        for name, split in report.splits.items()
    ]
    columns = ("split", "samples", "documents", "tokens", "positions used", "shards", "on disk")
    return table(columns, rows, numbers=range(1, 7), caption="Splits")


# How it was made --------------------------------------------------------------------------------------------


def identity(report: Report) -> Iterator[Element]:
    """What dataset.json says that the dataset is."""
    configured = report.identity
    if configured is None:
        yield tag("p", "These shards have no dataset.json: what they were made of is not known.")
        return
    yield tag(
        "p", "The recipe that decides every byte. The same recipe and source give the same dataset again."
    )
    yield facts(
        {
            "format": f"{configured.format}, {configured.seq_len:,} positions a sample, tail: {configured.tail}",
            "tokenizer": f"{configured.tokenizer.name}, {configured.tokenizer.vocab_size:,} ids, documents end with {configured.tokenizer.eos_id}",
            "tokenizer fingerprint": configured.tokenizer.fingerprint,
            "order": {"samples": "documents and samples shuffled", "documents": "documents shuffled"}.get(
                configured.shuffle, "as in the source"
            )
            + f", seed {configured.seed}",
            "dataset fingerprint": configured.fingerprint,
            "checksum of dataset.json": configured.checksum,
            **{
                f"not read: {left.reason}": f"{counted(left.files, 'file')}: {', '.join(left.names)}"
                for left in configured.left_out
            },
        }
    )
    text = json.dumps(configured.configuration, indent=1, ensure_ascii=False)
    text = text if len(text) <= MAX_CONFIGURATION else f"{text[:MAX_CONFIGURATION]}\n..."
    yield tag("details", tag("summary", "The whole configuration"), tag("pre", text, tabindex="0"))


def made(report: Report) -> Iterator[Element]:
    """How the dataset was made: what differs from run to run."""
    yield tag("p", "How this copy was made. It differs from run to run; the data does not.")
    source = report.source or {}
    yield facts(
        {
            "btlm-data": report.program or "not known",
            "finished": report.finished or "not known",
            **{
                f"source: {words(key)}": _value(value)
                for key, value in source.items()
                if value not in ([], None) and key != "left_out"  # which "What it is" names
            },
            "libraries": ", ".join(f"{name} {version}" for name, version in report.libraries.items())
            or "not known",
        }
    )
    total = sum(step.seconds for step in report.steps) or 1.0
    rows: list[list[Element | str]] = [
        [step.step.replace(".", ": "), f"{step.tasks:,}", f"{step.seconds:.2f}", bar(step.seconds / total)]
        for step in report.steps
    ]
    if rows:
        yield table(("step", "tasks", "seconds", ""), rows, numbers=(1, 2), caption="Time by step")


def facts(values: dict[str, str]) -> Element:
    """A list of names and values."""
    parts = [part for name, value in values.items() for part in (tag("dt", name), tag("dd", value))]
    return tag("dl", *parts, class_="facts")


def _value(value: Any) -> str:
    if type(value) is int:
        return f"{value:,}"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)[:500]
