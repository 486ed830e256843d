"""Sections of a report that show the data itself: lengths, tokens, duplicates, packing, order, samples, what
was left out.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from xml.etree.ElementTree import Element

from btlm_data.inspection.border_pairs import BorderPairs
from btlm_data.inspection.figures import counted, number, percent, size
from btlm_data.inspection.removed_pairs import SHOWN_WORDS, Words, as_words, side_by_side
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
        (f"{bar.first:,}" if bar.first == bar.last else f"{bar.first:,} to {bar.last:,}", bar.count)
        for bar in bars
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
                counted="documents",
            )


def tokens(report: Report) -> Iterator[Element]:
    """Frequencies: Zipf, dead vocabulary, the most common tokens, the longest run of one."""
    yield tag(
        "p", "How often tokens occur. A healthy text corpus stays near a straight line over the middle ranks."
    )
    for name, split_tokens in list(report.tokens.items())[:1]:
        yield from _frequencies(report, name, split_tokens)
    rows: list[list[Element | str]] = []
    for name, split_tokens in report.tokens.items():
        repeat = split_tokens.longest_repeat
        rows.append([
            name, number(split_tokens.tokens), f"{split_tokens.distinct:,}",
            percent(1 - split_tokens.vocabulary_share) if split_tokens.vocabulary_share is not None else "not known",
            f"{split_tokens.entropy_bits:.2f}", f"{repeat.length:,} × {_quoted(repeat.text, repeat.id)}",
            "all rows" if split_tokens.all else f"{split_tokens.rows:,} rows",
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


def _frequencies(report: Report, name: str, split_tokens: Tokens) -> Iterator[Element]:
    ranks = [(rank.rank, rank.share) for rank in split_tokens.ranks if rank.share > 0]
    vocabulary = report.identity.tokenizer.vocab_size if report.identity is not None else None
    seen = (
        f"{split_tokens.distinct:,} of {vocabulary:,} ids were seen"
        if vocabulary
        else f"{split_tokens.distinct:,} ids were seen"
    )
    amount = (
        "in all tokens" if split_tokens.all else f"in {number(split_tokens.tokens)} tokens drawn from all"
    )
    label = (
        f"Share of all tokens by rank in {name}: the most common token makes {percent(ranks[0][1])}, "
        f"rank {ranks[len(ranks) // 2][0]:,} makes {percent(ranks[len(ranks) // 2][1])}. {seen} {amount}; "
        "the others are rare or dead. Dashed: Zipf's law."
    )
    if len(ranks) > 1:
        yield tag(
            "figure", zipf(ranks, label=label), tag("figcaption", label), tabindex="0", role="group",
            aria_label=f"Tokens of {name} by frequency",
        )  # fmt: skip
    top = split_tokens.most_common[0].share or 1.0
    rows: list[list[Element | str]] = [
        [_quoted(entry.text, entry.id), f"{entry.id:,}", percent(entry.share), bar(entry.share / top)]
        for entry in split_tokens.most_common
    ]
    yield table(("token", "id", "share", ""), rows, numbers=(1, 2), caption=f"{name}: the most common tokens")


def _quoted(text: str | None, token: int) -> str:
    return f"⟨{token}⟩" if text is None else "“" + text.replace("\n", "↵").replace("\t", "⇥") + "”"


def duplicates(report: Report, shown: BorderPairs) -> Iterator[Element]:
    """What deduplication found. shown: pairs with their texts."""
    summary = report.duplicates
    if summary is None:
        yield tag("p", "Duplicates were not looked for.")
        return
    yield tag(
        "p",
        f"Documents that are equal or nearly equal ({summary.method}); of each cluster one document stays.",
    )
    if summary.clusters is not None:
        yield facts({
            "clusters": f"{summary.clusters.clusters:,} of {counted(summary.clusters.documents, 'document')}",
            "largest": counted(summary.clusters.largest, "document"),
            **{words(reason): counted(amounts.documents, "document") for reason, amounts in summary.dropped.items()},
        })  # fmt: skip
        if summary.clusters.histogram:
            yield histogram(
                _ranges(summary.clusters.histogram),
                caption="Clusters by size",
                unit="documents",
                counted="clusters",
            )
    if summary.similarities:
        yield histogram(
            [(f"{bar.low:.2f} to {bar.high:.2f}", bar.count) for bar in summary.similarities],
            caption="Removed documents by similarity to the one that was kept", unit="similarity", counted="documents",
        )  # fmt: skip
    if summary.border:
        rows: list[list[Element | str]] = [
            [
                f"{pair.similarity:.3f}", words(pair.reason), f"{pair.file} line {pair.line + 1:,}",
                "in an index of earlier runs" if pair.kept_file is None else f"{pair.kept_file} line {(pair.kept_line or 0) + 1:,}",
            ]
            for pair in summary.border
        ]  # fmt: skip
        yield table(
            ("similarity", "reason", "removed", "kept"), rows, numbers=(0,),
            caption="At the border: the removed documents that are least alike to those kept for them",
        )  # fmt: skip
    yield from _side_by_side(shown)
    if summary.largest_clusters:
        rows = [
            [f"{cluster.documents:,}", cluster.source, cluster.file, f"{cluster.offset:,}"]
            for cluster in summary.largest_clusters
        ]
        yield table(
            ("documents", "source", "file", "at byte or row"), rows, numbers=(0, 3),
            caption="The largest clusters, and the document that stands for each",
        )  # fmt: skip


def _side_by_side(shown: BorderPairs) -> Iterator[Element]:
    """Both texts of pairs, words that the other one does not have there marked."""
    if shown.pairs:
        yield tag("h3", "At the border, side by side")
        yield tag(
            "p",
            f"The least alike, of different kept documents where there are. {SHOWN_WORDS} words of each text from shortly before the "
            "first that differs; words that the other text does not have there are marked. ",
            tag("code", "btlm-data serve"),
            " and ",
            tag("code", "btlm-data inspect --duplicates"),
            " show more.",
            class_="quiet",
        )
    for pair in shown.pairs:
        row = pair.row
        yield tag("p", tag("strong", f"Similarity {row['similarity']:.3f}"), f", {words(row['reason'])}")
        texts: list[tuple[str, Words | None]] = [("Kept", None), ("Removed", as_words(pair.text))]
        if pair.kept_text is not None:
            removed, kept = side_by_side(pair.text, pair.kept_text)
            texts = [("Kept", kept), ("Removed", removed)]
        panes = tag("div", class_="pair")
        for (name, marked), prefix in zip(texts, ("kept_", ""), strict=True):
            where = "in an index of earlier runs"
            if row[f"{prefix}file"] is not None:
                where = f"{row[f'{prefix}file']} line {row[f'{prefix}line'] + 1:,}"
            text = tag("pre", dir="auto", tabindex="0", aria_label=f"{name}: {where}")
            for word, differs in zip(marked.words, marked.differs, strict=True) if marked is not None else ():
                add(text, tag("mark", word) if differs else word, " ")
            add(panes, tag("div", tag("p", tag("strong", name), f" {where}", class_="quiet"), text))
        yield panes
    if shown.note:
        yield tag("p", shown.note, class_="quiet")


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
    for name, split_tokens in list(report.tokens.items())[:1]:
        if split_tokens.documents_per_sample:
            yield histogram(
                _ranges(split_tokens.documents_per_sample), caption=f"{name}: documents that a sample has a part of",
                unit="documents", counted="samples measured",
            )  # fmt: skip


def shuffle(report: Report) -> Iterator[Element]:
    """How well the stream is mixed."""
    yield tag("p", "The share of each source should look the same along the whole stream.")
    numbers = {source.source: number for number, source in enumerate(report.read)}
    for name, order in list(report.shuffle.items())[:MAX_SPLITS]:
        yield tag("h3", name)
        if order.mix is not None and (report.splits[name].documents or 0) >= FEW_DOCUMENTS:
            colours = [numbers.get(source, COLOURS) for source in order.mix.sources]
            spread = _spread(order.mix.parts)
            label = (
                f"Sources along the stream of {name}, from its beginning on the left to its end on the right, in "
                f"{counted(len(order.mix.parts), 'stretch')}es of equally many documents. The share of the largest source goes from "
                f"{percent(spread[0])} to {percent(spread[1])}."
            ).replace("stretchs", "stretch")
            yield tag(
                "figure",
                stacked(order.mix.parts, colours, label=label),
                legend(order.mix.sources, colours),
                tag("figcaption", label),
            )
        rows = list(_order(order))
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


def _order(order: Shuffle) -> Iterator[list[Element | str]]:
    for figure, correlation in (
        ("documents against the source's order", order.documents),
        ("samples against the stream's", order.samples),
    ):
        if correlation is not None:
            yield [
                f"rank correlation of {figure}", f"{correlation.rank_correlation:+.4f}", f"0 ± {correlation.standard_deviation:.4f}",
                f"{correlation.measured_on:,}",
            ]  # fmt: skip
    if order.runs is not None:
        yield [
            f"longest run of one source ({order.runs.source})",
            f"{order.runs.longest_run:,}",
            f"{order.runs.expected:.0f}",
            "",
        ]
    if order.neighbours is not None:
        yield [
            "samples that continue the one before", percent(order.neighbours.continued), percent(order.neighbours.expected),
            f"{order.neighbours.measured_on:,}",
        ]  # fmt: skip


# Samples ----------------------------------------------------------------------------------------------------


def samples(shown: Sequence[SampleTokens], eos: int | None) -> Iterator[Element]:
    """Samples as the model sees them."""
    yield tag(
        "p",
        "Each token has a colour of its own; dashed lines are borders of documents. Point at a token, or use the arrow keys, "
        "to see its id, label and mask. A struck-through token is not trained on.",
    )
    for tokens in shown:
        yield from sample(tokens, eos)


def sample(tokens: SampleTokens, eos: int | None) -> Iterator[Element]:
    """One sample: where it is, its documents, its tokens."""
    row = tokens.sample
    name = f"{row.split}-{row.sample}"
    yield tag("h3", f"Sample {row.sample:,} of {row.split}", id=f"sample-{name}")
    padding = row.positions - row.real_positions
    caption = (
        f"{row.file}, row {row.row:,}; {row.real_positions:,} of {row.positions:,} positions hold tokens"
    )
    yield tag("p", caption + ("." if not padding else f", {padding:,} are padding."), class_="quiet")
    if row.note:
        yield tag("p", row.note, class_="quiet")
    if row.documents:
        rows: list[list[Element | str]] = [
            [
                f"{document.document:,}", document.source, document.file, f"{document.line:,}",
                f"{document.token_range[0]:,} to {document.token_range[1]:,} of {document.tokens:,}",
                f"{document.positions[0]:,} to {document.positions[1]:,}",
            ]
            for document in row.documents
        ]  # fmt: skip
        columns = ("document", "source", "file", "line", "its tokens", "at positions")
        listed = tag(
            "details", table(columns, rows, numbers=(0, 3, 4, 5), caption="Documents of this sample")
        )
        listed.insert(0, tag("summary", counted(len(row.documents), "document")))
        yield listed
    yield from _text(tokens, name, eos)


def _text(tokens: SampleTokens, name: str, eos: int | None) -> Iterator[Element]:
    row = tokens.sample
    shown = min(len(tokens.ids), MAX_TOKENS)
    text = tag(
        "div", class_="text", data_sample=f"data-{name}", data_panel=f"panel-{name}", dir="auto", role="group",
        tabindex="-1", aria_label=f"Tokens of sample {row.sample:,} of {row.split}",
    )  # fmt: skip
    of = []
    ends = {segment.positions[1] for segment in row.segments}
    for k, segment in enumerate(row.segments):
        first, last = segment.positions
        if first >= shown:
            break
        text.append(_border(tokens, k))
        for position in range(first, min(last, shown)):
            classes = []
            if eos is not None and tokens.ids[position] == eos:
                classes.append("eos")
            if not tokens.mask[position]:
                classes.append("off")
            follows = position + 1 < len(tokens.ids) and position + 1 not in ends
            if follows and tokens.labels[position] != tokens.ids[position + 1]:
                classes.append("bad")
            text.append(tag("b", tokens.texts[position], class_=" ".join(classes) or None))
            of.append(k)
    yield text
    if shown < len(tokens.ids):
        yield tag(
            "p",
            f"{len(tokens.ids) - shown:,} more tokens: `btlm-data inspect --sample {row.sample}`.",
            class_="quiet",
        )
    yield tag("div", "No token is chosen.", class_="token", id=f"panel-{name}", aria_live="polite")
    value = {
        "ids": tokens.ids[:shown].tolist(),
        "labels": tokens.labels[:shown].tolist(),
        "mask": tokens.mask[:shown].tolist(),
        "positions": tokens.positions[:shown].tolist() if tokens.positions is not None else None,
        "of": of,
        "documents": [f"{d.document:,} ({d.file}, line {d.line:,})" for d in row.documents or ()],
    }
    yield data_block(f"data-{name}", value)


def _border(tokens: SampleTokens, k: int) -> Element:
    documents = tokens.sample.documents
    if documents is None:
        return tag("span", "another document" if k else "the sample begins", class_="border")
    document = documents[k]
    caption = f"document {document.document:,} · {document.source or 'no source'} · {document.file} line {document.line:,}"
    return tag("span", caption + (" (continues)" if document.token_range[0] else ""), class_="border")


# What is not in the dataset ---------------------------------------------------------------------------------


def dropped(report: Report) -> Iterator[Element]:
    """Examples of records that gave no document, and of documents that were dropped."""
    yield tag(
        "p",
        "Some of each reason: the places of records that gave no document, and the beginnings of documents dropped.",
    )
    rows: list[list[Element | str]] = [
        [words(reason), reject.file, f"{reject.line:,}", reject.detail]
        for reason, listed in sorted(report.rejects.items())
        for reject in listed
    ]
    if rows:
        yield table(
            ("reason", "file", "line", "detail"),
            rows,
            numbers=(2,),
            caption="Records that gave no document (rejects.jsonl)",
        )
    for reason, examples in sorted(report.examples.items()):
        block = tag("details", tag("summary", f"{words(reason)}: {counted(len(examples), 'example')}"))
        for example in examples:
            location = f"{example.source or 'no source'} · {example.file} · byte or row {example.offset}"
            add(
                block,
                tag("p", location, class_="quiet"),
                tag("pre", example.text or "(no text)", dir="auto", tabindex="0"),
            )
        yield block
    if not rows and not report.examples:
        yield tag("p", "Nothing was dropped, or no examples were kept.")


def disk(report: Report) -> str:
    """Bytes of the parts of the dataset."""
    return f"shards {size(report.disk.shards)}, tables of documents {size(report.disk.documents)}, other {size(report.disk.other)}"
