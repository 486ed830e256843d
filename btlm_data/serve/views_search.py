"""The views that look for documents: by text, by what is known of them, by cluster; and those left out."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any
from xml.etree.ElementTree import Element

from btlm_data.inspection.figures import counted, size
from btlm_data.lineage.answers import Answer, DroppedDocument, FoundDocument
from btlm_data.pages.charts import table
from btlm_data.pages.elements import add, tag
from btlm_data.pages.overview_sections import words
from btlm_data.serve.left_out import Members
from btlm_data.serve.originals import Original
from btlm_data.serve.served import Hit
from btlm_data.serve.site import Site
from btlm_data.serve.views import address, link

BY = {
    "text": "text of samples",
    "id": "id, or FILE#OFFSET",
    "url": "URL",
    "hash": "hash of the text",
    "cluster": "number of a cluster",
}
MAX_SPANS = 10  # samples of a document that are named


def form(k: int, by: str, value: str) -> list[Element]:
    """The form of the search, and how to look by what it does not ask for."""
    options = [
        tag("option", name, value=kind, selected="selected" if kind == by else None)
        for kind, name in BY.items()
    ]
    return [
        tag(
            "form",
            tag("label", "by ", tag("select", *options, name="by")),
            tag("label", "what ", tag("input", name="q", value=value, type="search", id="query", size="40")),
            tag("button", "Search"),
            action=f"/{k}/search",
            class_="line",
        ),
        tag(
            "p",
            "Text is looked for letter by letter in the tokens of every sample. By source or file: ",
            link("Documents", address(k, "documents")),
            "; by the reason for which they were dropped: ",
            link("Left out", address(k, "dropped")),
            ".",
            class_="quiet",
        ),
    ]


def hits(site: Site, listed: Sequence[tuple[int, Hit]], complete: bool, seconds: float) -> list[Element]:
    """Samples that hold a text, each with the number of its dataset. complete: whether those are all."""
    count = counted(len(listed), "sample")
    holds = "holds" if len(listed) == 1 else "hold"
    summary = f"{count} {holds} it" if complete else f"The first {count} that hold it"
    items = []
    for k, hit in listed:
        item = tag(
            "li",
            link(f"{hit.split} {hit.sample:,}", address(k, "sample", split=hit.split, n=hit.sample)),
            f"{_generation(site, k)}, from position {hit.position:,}",
        )
        if hit.document is not None:
            href = address(k, "document", split=hit.split, row=hit.document)
            add(item, " in ", link(f"document {hit.document:,}", href))
        if hit.goes_on:
            add(item, "; it goes on in the document's next sample")
        before, sought, behind = (_one_line(part) for part in hit.around)
        items.append(add(item, tag("p", before, tag("mark", sought), behind, class_="around", dir="auto")))
    return [tag("p", f"{summary} ({seconds:.2f} s).", role="status"), tag("ol", *items, class_="hits")]


def _one_line(text: str) -> str:
    """A text with every stretch of white space as one space."""
    return re.sub(r"\s+", " ", text)


def _generation(site: Site, k: int) -> str:
    """Which generation a dataset is, where there are several."""
    members = site.series_of(k).members
    return f", generation {members.index(k) + 1}" if len(members) > 1 else ""


def answer(site: Site, k: int, answered: Answer) -> list[Element]:
    """Documents found by their id, URL or hash, and those of them that were dropped."""
    total = len(answered.documents) + len(answered.dropped)
    parts: list[Element] = [tag("p", f"{counted(total, 'document')} found.", role="status")]
    if answered.note:
        parts.append(tag("p", f"{answered.note[:1].upper()}{answered.note[1:]}."))
    parts += [_found(site, k, document) for document in answered.documents]
    for gone in answered.dropped:
        number = site.place_of(k, gone.generation, gone.set)
        parts.append(_gone(k if number is None else number, gone))
    return parts


def _found(site: Site, k: int, document: FoundDocument) -> Element:
    words = f"Document {document.document:,} of {document.split}"
    number = site.place_of(k, document.generation, document.set)
    listed, heading = tag("p"), tag("span", words)
    if number is None or document.split not in site.datasets[number].splits:  # only a part is served
        add(listed, "What it is in is not served. Name the folder of the whole dataset.")
    else:
        before = site.samples_before(number, document.split)
        samples = [span.sample - before for span in document.places if span.sample is not None]
        first = site.datasets[number].first_sample_of(document.split, document.document)
        samples = list(dict.fromkeys(samples)) or ([first] if first is not None else [])
        add(listed, "Samples: " if samples else "It is in no sample.")
        for sample in samples[:MAX_SPANS]:
            add(listed, link(f"{sample:,}", address(number, "sample", split=document.split, n=sample)), " ")
        if len(samples) > MAX_SPANS:
            add(listed, f"and {len(samples) - MAX_SPANS:,} more")
        words += f" of {document.set}" if document.set and number not in site.series_of(k).members else ""
        words += _generation(site, number)
        heading = link(words, address(number, "document", split=document.split, row=document.document))
    about = (
        f"{document.id} \u00b7 {document.source or '(unnamed)'} \u00b7 {document.file} line {document.line:,} "
        f"\u00b7 {document.tokens:,} tokens" + (" \u00b7 forgotten" if document.forgotten else "")
    )
    return tag("section", tag("h2", heading), tag("p", about), listed)


def _gone(k: int, document: DroppedDocument) -> Element:
    about = (
        f"{document.id} \u00b7 {document.source or '(unnamed)'} \u00b7 {document.file} line {document.line:,} "
        f"\u00b7 {size(document.bytes)}"
    )
    why = f"{words(document.reason)} ({document.stage})" + (f", {document.detail}" if document.detail else "")
    kept = tag("p", "Kept instead: ") if document.kept else None
    for name in document.kept:
        add(kept, link(name, address(k, "search", by="id", q=name)), " ") if kept is not None else None
    record = address(k, "record", file=document.file, offset=str(document.offset))
    return tag(
        "section",
        tag("h2", f"Left out: {why}"),
        tag("p", about),
        kept,
        tag("p", link("Its text in the source", record)),
    )


def cluster(k: int, number: str, members: Members) -> list[Element]:
    """The documents of a cluster, and what became of each."""
    if not members.total:
        return [tag("p", f"There is no cluster {number} of two documents or more.", role="status")]
    rows: list[list[Element | str]] = [
        [
            link(f"{row['file']}#{row['offset']}", address(k, "search", by="id", q=f"{row['file']}#{row['offset']}")),
            "kept" if row["kept"] else words(row["fate"]), row["split"], row["source"] or "(unnamed)",
            f"{row['line'] + 1:,}", size(row["bytes"]),
        ]
        for row in members.rows
    ]  # fmt: skip
    more = members.total - len(rows)
    return [
        tag("p", f"Cluster {number} has {counted(members.total, 'document')}.", role="status"),
        table(("document", "fate", "split", "source", "line", "text"), rows, numbers=(4, 5),
              caption=f"Documents of cluster {number}"),
        *([tag("p", f"{more:,} more are not shown.", class_="quiet")] if more else []),
    ]  # fmt: skip


def left_out(
    k: int,
    reasons: Mapping[str, int],
    reason: str,
    rows: Sequence[Mapping[str, Any]],
    after: int | None,
) -> list[Element]:
    """Documents in no split, by reason. after: the row at which the next page begins."""
    listed = tag("p", class_="buttons")
    total = sum(reasons.values())
    for name, count in [("", total), *reasons.items()]:
        shown = link(f"{words(name) if name else 'all'} {count:,}", address(k, "dropped", reason=name))
        if name == reason:
            shown.set("aria-current", "true")
        add(listed, shown)
    cells: list[list[Element | str]] = [
        [
            link(f"{row['file']}#{row['offset']}", address(k, "record", file=row["file"], offset=str(row["offset"]))),
            words(row["reason"]), row["stage"], row["source"] or "(unnamed)", f"{row['line'] + 1:,}", size(row["bytes"]),
        ]
        for row in rows
    ]  # fmt: skip
    if not cells:
        return [listed, tag("p", "No document was left out for it.")]
    columns = ("document", "reason", "stage", "source", "line", "text")
    more = []
    if after is not None:
        more = [tag("p", link("more", address(k, "dropped", reason=reason, first=str(after)), "n"))]
    return [listed, table(columns, cells, numbers=(4, 5), caption="Documents left out"), *more]


def record(k: int, file: str, offset: int, original: Original) -> list[Element]:
    """The text of a record of the source."""
    where = address(k, "search", by="id", q=f"{file}#{offset}")
    text = original.text if original.text is not None else f"({original.why})"
    return [
        tag("p", f"{file}, from byte or row {offset:,}. ", link("What became of it", where)),
        tag("pre", text, dir="auto", tabindex="0"),
    ]
