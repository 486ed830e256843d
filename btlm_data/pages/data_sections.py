"""Sections of a report that show the data itself: lengths, tokens, duplicates, packing, order, samples, what was left out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from xml.etree.ElementTree import Element

from btlm_data.inspection.figures import counted, number, percent, size
from btlm_data.inspection.report import Bar, Lengths, Report, Shuffle, Tokens
from btlm_data.inspection.sample_tokens import SampleTokens
from btlm_data.pages.charts import COLOURS, bar, histogram, legend, stacked, table, zipf
from btlm_data.pages.elements import add, data_block, tag
from btlm_data.pages.overview_sections import facts, words

MAX_TOKENS = 3000  # of one sample that are shown
MAX_SPLITS = 3
FEW_DOCUMENTS = 300  # below which a picture of the mix shows chance only
QUANTILE_NAMES = {"0": "shortest", "0.05": "5 %", "0.25": "25 %", "0.5": "median", "0.75": "75 %", "0.95": "95 %",
                  "0.99": "99 %", "1": "longest"}  # fmt: skip


def _ranges(bars: Sequence[Bar]) -> list[tuple[str, int]]:
    return [
        (f"{one.first:,}" if one.first == one.last else f"{one.first:,} to {one.last:,}", one.count)
        for one in bars
    ]


def lengths(report: Report) -> Iterator[Element]:
    """Quantiles and histogram of the documents' lengths."""
    yield tag("p", "Lengths of documents in tokens, without the token that ends them.")
    known: dict[str, Lengths] = {
        name: value for name, value in report.lengths.items() if value.tokens is not None
    }
    rows: list[list[Element | str]] = [
        [
            name,
            *(number(value.tokens.quantiles.get(share)) for share in QUANTILE_NAMES if value.tokens),
            f"{value.chars_per_token:.2f}" if value.chars_per_token else "",
            f"{value.documents:,} of {value.of:,}",
        ]
        for name, value in known.items()
    ]
    columns = ("split", *QUANTILE_NAMES.values(), "chars a token", "measured")
    yield table(columns, rows, numbers=range(1, len(columns)), caption="Quantiles of lengths, in tokens")
    for name, value in list(known.items())[:1]:
        if value.tokens:
            yield histogram(
                _ranges(value.tokens.histogram),
                caption=f"{name}: documents by length",
                unit="tokens",
                what="documents",
            )


def tokens(report: Report) -> Iterator[Element]:
    """Frequencies: Zipf, dead vocabulary, the most common tokens, the longest run of one."""
    yield tag(
        "p", "How often tokens occur. A healthy text corpus stays near a straight line over the middle ranks."
    )
    for name, one in list(report.tokens.items())[:1]:
        yield from _frequencies(report, name, one)
    rows: list[list[Element | str]] = []
    for name, one in report.tokens.items():
        repeat = one.longest_repeat
        rows.append([
            name, number(one.tokens), f"{one.distinct:,}",
            percent(1 - one.vocabulary_share) if one.vocabulary_share is not None else "not known",
            f"{one.entropy_bits:.2f}", f"{repeat.length:,} × {_quoted(repeat.text, repeat.id)}",
            "all rows" if one.all else f"{one.rows:,} rows",
        ])  # fmt: skip
    columns = (
        "split",
        "tokens",
        "distinct ids",
        "vocabulary not seen",
        "bits a token",
        "longest run of one token",
        "measured",
    )
    yield table(columns, rows, numbers=(1, 2, 3, 4), caption="Vocabulary")


def _frequencies(report: Report, name: str, one: Tokens) -> Iterator[Element]:
    ranks = [(rank.rank, rank.share) for rank in one.ranks if rank.share > 0]
    vocabulary = report.identity.tokenizer.vocab_size if report.identity is not None else None
    seen = (
        f"{one.distinct:,} of {vocabulary:,} ids were seen"
        if vocabulary
        else f"{one.distinct:,} ids were seen"
    )
    amount = "in all tokens" if one.all else f"in {number(one.tokens)} tokens drawn from all"
    label = (
        f"Share of all tokens by rank in {name}: the most common token makes {percent(ranks[0][1])}, "
        f"rank {ranks[len(ranks) // 2][0]:,} makes {percent(ranks[len(ranks) // 2][1])}. {seen} {amount}; "
        "the others are rare or dead. Dashed: Zipf's law."
    )
    if len(ranks) > 1:
        yield tag("figure", zipf(ranks, label=label), tag("figcaption", label))
    top = one.most_common[0].share or 1.0
    rows: list[list[Element | str]] = [
        [_quoted(entry.text, entry.id), f"{entry.id:,}", percent(entry.share), bar(entry.share / top)]
        for entry in one.most_common
    ]
    yield table(("token", "id", "share", ""), rows, numbers=(1, 2), caption=f"{name}: the most common tokens")


def _quoted(text: str | None, token: int) -> str:
    return f"⟨{token}⟩" if text is None else "“" + text.replace("\n", "↵").replace("\t", "⇥") + "”"


def duplicates(report: Report) -> Iterator[Element]:
    """What deduplication found."""
    found = report.duplicates
    if found is None:
        yield tag("p", "Duplicates were not looked for.")
        return
    yield tag(
        "p", f"Documents that are equal or nearly equal ({found.method}); of each cluster one document stays."
    )
    if found.clusters is not None:
        yield facts({
            "clusters": f"{found.clusters.clusters:,} of {counted(found.clusters.documents, 'document')}",
            "largest": counted(found.clusters.largest, "document"),
            **{words(reason): counted(amounts.documents, "document") for reason, amounts in found.dropped.items()},
        })  # fmt: skip
        if found.clusters.histogram:
            yield histogram(
                _ranges(found.clusters.histogram),
                caption="Clusters by size",
                unit="documents",
                what="clusters",
            )
    if found.similarities:
        yield histogram(
            [(f"{one.low:.2f} to {one.high:.2f}", one.count) for one in found.similarities],
            caption="Removed documents by similarity to the one that was kept", unit="similarity", what="documents",
        )  # fmt: skip
    if found.border:
        rows: list[list[Element | str]] = [
            [
                f"{one.similarity:.3f}", words(one.reason), f"{one.file} line {one.line + 1:,}",
                "in an index of earlier runs" if one.kept_file is None else f"{one.kept_file} line {(one.kept_line or 0) + 1:,}",
            ]
            for one in found.border
        ]  # fmt: skip
        yield table(
            ("similarity", "reason", "removed", "kept"), rows, numbers=(0,),
            caption="At the border: the removed documents that are least alike (`btlm-data serve` shows both texts)",
        )  # fmt: skip
    if found.largest_clusters:
        rows = [
            [f"{cluster.documents:,}", cluster.source, cluster.file, f"{cluster.offset:,}"]
            for cluster in found.largest_clusters
        ]
        yield table(
            ("documents", "source", "file", "at byte or row"), rows, numbers=(0, 3),
            caption="The largest clusters, and the document that stands for each",
        )  # fmt: skip


def packing(report: Report) -> Iterator[Element]:
    """How full the samples are, and of how many documents."""
    yield tag("p", "Positions that hold text, of all that the model computes on; and documents in a sample.")
    rows: list[list[Element | str]] = []
    for name, split in report.splits.items():
        used = split.packing_efficiency
        padded = None if used is None else round(split.positions * (1 - used))
        rows.append([name, f"{split.positions:,}", number(padded), percent(used), bar(used or 0)])
    columns = ("split", "positions", "padding", "used", "")
    yield table(columns, rows, numbers=(1, 2, 3), caption="Positions")
    for name, one in list(report.tokens.items())[:1]:
        if one.documents_per_sample:
            yield histogram(
                _ranges(one.documents_per_sample), caption=f"{name}: documents that a sample has a part of",
                unit="documents", what="samples measured",
            )  # fmt: skip


def shuffle(report: Report) -> Iterator[Element]:
    """How well the stream is mixed."""
    yield tag("p", "The share of each source should look the same along the whole stream.")
    numbers = {source.source: number for number, source in enumerate(report.read)}
    for name, one in list(report.shuffle.items())[:MAX_SPLITS]:
        yield tag("h3", name)
        if one.mix is not None and (report.splits[name].documents or 0) >= FEW_DOCUMENTS:
            colours = [numbers.get(source, COLOURS) for source in one.mix.sources]
            spread = _spread(one.mix.parts)
            label = (
                f"Sources along the stream of {name}, from its beginning on the left to its end on the right, in "
                f"{counted(len(one.mix.parts), 'stretch')}es of equally many documents. The share of the largest source goes from "
                f"{percent(spread[0])} to {percent(spread[1])}."
            ).replace("stretchs", "stretch")
            yield tag(
                "figure",
                stacked(one.mix.parts, colours, label=label),
                legend(one.mix.sources, colours),
                tag("figcaption", label),
            )
        rows = list(_order(one))
        if rows:
            yield table(
                ("figure", "found", "if shuffled well", "measured on"),
                rows,
                numbers=(1, 2, 3),
                caption=f"Order of {name}",
            )


def _spread(parts: Sequence[Sequence[float]]) -> tuple[float, float]:
    first = [shares[0] for shares in parts]
    return min(first), max(first)


def _order(one: Shuffle) -> Iterator[list[Element | str]]:
    for figure, found in (
        ("documents against the source's order", one.documents),
        ("samples against the stream's", one.samples),
    ):
        if found is not None:
            yield [
                f"rank correlation of {figure}", f"{found.rank_correlation:+.4f}", f"0 ± {found.standard_deviation:.4f}",
                f"{found.measured_on:,}",
            ]  # fmt: skip
    if one.runs is not None:
        yield [
            f"longest run of one source ({one.runs.source})",
            f"{one.runs.longest_run:,}",
            f"{one.runs.expected:.0f}",
            "",
        ]
    if one.neighbours is not None:
        yield [
            "samples that continue the one before", percent(one.neighbours.continued), percent(one.neighbours.expected),
            f"{one.neighbours.measured_on:,}",
        ]  # fmt: skip


# Samples ----------------------------------------------------------------------------------------------------------


def samples(shown: Sequence[SampleTokens], eos: int | None) -> Iterator[Element]:
    """Samples as the model sees them."""
    yield tag(
        "p",
        "Each token has a colour of its own; dashed lines are borders of documents. Point at a token, or use the arrow keys, "
        "to see its id, label and mask. A struck-through token is not trained on.",
    )
    for one in shown:
        yield from sample(one, eos)


def sample(one: SampleTokens, eos: int | None) -> Iterator[Element]:
    """One sample: where it is, its documents, its tokens."""
    place = one.sample
    name = f"{place.split}-{place.sample}"
    yield tag("h3", f"Sample {place.sample:,} of {place.split}", id=f"sample-{name}")
    padding = place.positions - place.real_positions
    said = f"{place.file}, row {place.row:,}; {place.real_positions:,} of {place.positions:,} positions hold tokens"
    yield tag("p", said + ("." if not padding else f", {padding:,} are padding."), class_="quiet")
    if place.note:
        yield tag("p", place.note, class_="quiet")
    if place.documents:
        rows: list[list[Element | str]] = [
            [
                f"{document.document:,}", document.source, document.file, f"{document.line:,}",
                f"{document.token_range[0]:,} to {document.token_range[1]:,} of {document.tokens:,}",
                f"{document.positions[0]:,} to {document.positions[1]:,}",
            ]
            for document in place.documents
        ]  # fmt: skip
        columns = ("document", "source", "file", "line", "its tokens", "at positions")
        listed = tag(
            "details", table(columns, rows, numbers=(0, 3, 4, 5), caption="Documents of this sample")
        )
        listed.insert(0, tag("summary", counted(len(place.documents), "document")))
        yield listed
    yield from _text(one, name, eos)


def _text(one: SampleTokens, name: str, eos: int | None) -> Iterator[Element]:
    place = one.sample
    shown = min(len(one.ids), MAX_TOKENS)
    text = tag(
        "div", class_="text", data_sample=f"data-{name}", data_panel=f"panel-{name}", dir="auto", role="group",
        tabindex="-1", aria_label=f"Tokens of sample {place.sample:,} of {place.split}",
    )  # fmt: skip
    of = []
    ends = {segment.positions[1] for segment in place.segments}
    for k, segment in enumerate(place.segments):
        first, last = segment.positions
        if first >= shown:
            break
        text.append(_border(one, k))
        for position in range(first, min(last, shown)):
            classes = []
            if eos is not None and one.ids[position] == eos:
                classes.append("eos")
            if not one.mask[position]:
                classes.append("off")
            follows = position + 1 < len(one.ids) and position + 1 not in ends
            if follows and one.labels[position] != one.ids[position + 1]:
                classes.append("bad")
            text.append(tag("b", one.texts[position], class_=" ".join(classes) or None))
            of.append(k)
    yield text
    if shown < len(one.ids):
        yield tag(
            "p",
            f"{len(one.ids) - shown:,} more tokens: `btlm-data inspect --sample {place.sample}`.",
            class_="quiet",
        )
    yield tag("div", "No token is chosen.", class_="token", id=f"panel-{name}", aria_live="polite")
    value = {
        "ids": one.ids[:shown].tolist(),
        "labels": one.labels[:shown].tolist(),
        "mask": one.mask[:shown].tolist(),
        "positions": one.positions[:shown].tolist() if one.positions is not None else None,
        "of": of,
        "documents": [f"{d.document:,} ({d.file}, line {d.line:,})" for d in place.documents or ()],
    }
    yield data_block(f"data-{name}", value)


def _border(one: SampleTokens, k: int) -> Element:
    documents = one.sample.documents
    if documents is None:
        return tag("span", "another document" if k else "the sample begins", class_="border")
    document = documents[k]
    said = f"document {document.document:,} · {document.source or 'no source'} · {document.file} line {document.line:,}"
    return tag("span", said + (" (continues)" if document.token_range[0] else ""), class_="border")


# What is not in the dataset ---------------------------------------------------------------------------------------


def dropped(report: Report) -> Iterator[Element]:
    """Examples of records that could not be read, and of documents that were dropped."""
    yield tag(
        "p",
        "Some of each reason: the places of records that could not be read, and the beginnings of documents dropped.",
    )
    rows: list[list[Element | str]] = [
        [words(reason), one.file, f"{one.line:,}", one.detail]
        for reason, listed in sorted(report.rejects.items())
        for one in listed
    ]
    if rows:
        yield table(
            ("reason", "file", "line", "detail"),
            rows,
            numbers=(2,),
            caption="Records that could not be read (rejects.jsonl)",
        )
    for reason, examples in sorted(report.examples.items()):
        block = tag("details", tag("summary", f"{words(reason)}: {counted(len(examples), 'example')}"))
        for example in examples:
            place = f"{example.source or 'no source'} · {example.file} · byte or row {example.offset}"
            add(
                block,
                tag("p", place, class_="quiet"),
                tag("pre", example.text or "(no text)", dir="auto", tabindex="0"),
            )
        yield block
    if not rows and not report.examples:
        yield tag("p", "Nothing was dropped, or no examples were kept.")


def disk(report: Report) -> str:
    """Bytes of the parts of the dataset."""
    return f"shards {size(report.disk.shards)}, tables of documents {size(report.disk.documents)}, other {size(report.disk.other)}"
