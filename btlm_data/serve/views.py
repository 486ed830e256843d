"""The pages of `btlm-data serve`, as trees of elements: whole without a script, every view with an address of
its own.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any
from urllib.parse import urlencode
from xml.etree.ElementTree import Element

from btlm_data.inspection.figures import percent, size
from btlm_data.inspection.sample_tokens import SampleTokens
from btlm_data.pages import data_sections
from btlm_data.pages.charts import table
from btlm_data.pages.elements import add, document, tag
from btlm_data.pages.overview_sections import facts as listed
from btlm_data.serve.originals import Original
from btlm_data.serve.pairs import PairDocument, Pairs, Verdicts, differences
from btlm_data.serve.served import Served
from btlm_data.serve.site import Site
from btlm_data.serve.training import TakenAt

VIEWS = (
    ("report", "Report"),
    ("sample", "Samples"),
    ("documents", "Documents"),
    ("search", "Search"),
    ("pairs", "Duplicates"),
    ("dropped", "Left out"),
)
NEAR_GENERATIONS = 4  # before and behind the one that is shown
KEYS = {
    "n": "next", "p": "previous", "r": "at random", "/": "search", "s": "sample of a document", "y": "right to drop",
    "x": "wrong", "?": "this list",
}  # fmt: skip


def address(dataset: int, view: str, **query: Any) -> str:
    """The address of a view of a dataset."""
    given = {key: value for key, value in query.items() if value not in (None, "")}
    return f"/{dataset}/{view}" + (f"?{urlencode(given)}" if given else "")


def page(
    title: str,
    content: Iterable[Element],
    entries: Sequence[tuple[str, str]],
    place: str,
    *,
    current: int | None = None,
    members: Sequence[int] = (),
    view: str = "",
) -> str:
    """A whole page. entries: everything that is served, name and address, for the bar at the top; place: the path of the page's own
    address; current: the dataset that it is about; members: the generations of that, itself among them; view: which view of it.
    """
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("title", f"{title} · btlm-data"),
        tag("link", rel="stylesheet", href="/static/page.css"),
        tag("link", rel="stylesheet", href="/static/serve.css"),
    )
    chosen = f"/{members[0]}/report" if members else ""
    datasets = tag("ul")
    for name, href in [("All", "/"), *entries]:
        is_current = "page" if href == place else "true" if href == chosen else None
        add(datasets, tag("li", tag("a", name, href=href, aria_current=is_current)))
    links = tag("ul", class_="views")
    if current is not None:
        for key, name in VIEWS:
            current_page = "page" if key == view else None
            add(links, tag("li", tag("a", name, href=address(current, key), aria_current=current_page)))
    others = _generations(current, members, view) if current is not None and len(members) > 1 else None
    body = tag(
        "body",
        tag("a", "Skip to the content", href="#main", class_="skip"),
        tag("nav", datasets, links, others, class_="top", aria_label="Datasets and views"),
        tag("main", tag("h1", title), *content, id="main", class_="wide"),
        tag(
            "footer",
            "Keys: ",
            *(tag("span", tag("kbd", key), f" {use}") for key, use in KEYS.items()),
            id="keys",
        ),
        tag("script", src="/static/page.js", defer="defer"),
        tag("script", src="/static/serve.js", defer="defer"),
    )
    return document(tag("html", head, body, lang="en"))


def _generations(current: int, members: Sequence[int], view: str) -> Element:
    """Links to the same view of the other generations: of many, the first, the last and those near the one that is shown."""
    listed = tag("ul", tag("li", "Generation"), class_="views")
    at = members.index(current)
    near = {0, len(members) - 1, *range(at - NEAR_GENERATIONS, at + NEAR_GENERATIONS + 1)}
    view = view if view in dict(VIEWS) else "report"
    before = -1
    for place in sorted(near & set(range(len(members)))):
        if place > before + 1:
            add(listed, tag("li", "…"))
        is_current = "true" if place == at else None
        href = address(members[place], view)
        add(listed, tag("li", tag("a", f"{place + 1:,}", href=href, aria_current=is_current)))
        before = place
    return listed


def problem(text: str) -> list[Element]:
    """A message instead of a view."""
    return [tag("section", tag("p", text, role="alert"))]


def link(text: str, href: str, key: str | None = None) -> Element:
    """A link that a key follows, too."""
    return tag("a", text, href=href, data_key=key, class_="button" if key else None)


# Samples ----------------------------------------------------------------------------------------------------


def sample(
    site: Site, k: int, split: str, index: int, chance: int, taken: Sequence[TakenAt] | None
) -> list[Element]:
    """One sample of a split. chance: a sample drawn at random, for the link; taken: by which steps of the run
    that is served, None without one.
    """
    served = site.datasets[k]
    total = served.num_samples(split)
    shown = served.sample(split, index)
    manifest = served.opened.manifest
    eos = manifest.tokenizer.eos_id if manifest is not None else served.opened.eos_id
    origin = shown.sample.stream_sample
    words = f" {index:,} of {total:,}" + (f"; {origin:,} of the stream" if origin is not None else "")
    if (before := site.samples_before(k, split)) and not served.rows(split).are_tokens:
        words += f"; {before + index:,} of all generations, as a reader counts"
    steps = [
        (name, key, site.beside(k, split, index, step))
        for name, key, step in (("previous", "p", -1), ("next", "n", 1))
    ]
    bar_ = tag(
        "p",
        *(link(name, address(other, "sample", split=split, n=n), key) for name, key, (other, n) in steps),
        link("at random", address(k, "sample", split=split, n=chance), "r"),
        tag("span", words),
        class_="buttons",
    )
    return [
        _choose_sample(k, served, split, index),
        bar_,
        *_taken(taken),
        tag("section", *data_sections.sample(shown, eos)),
        *documents_of(k, split, shown),
    ]


def documents_of(k: int, split: str, shown: SampleTokens) -> list[Element]:
    """Links to the documents of a sample."""
    documents = tag("ul")
    for part in shown.sample.documents or ():
        add(documents, tag("li", link(f"document {part.document:,}", address(k, "document", split=split, row=part.document)),
            f" {part.source or '(unnamed)'}, {part.file} line {part.line:,}"))  # fmt: skip
    if not len(documents):
        return []
    return [tag("section", tag("h2", "Its documents, with the original text beside"), documents)]


def _taken(taken: Sequence[TakenAt] | None) -> list[Element]:
    if taken is None:
        return []
    listed = tag("p", "In training: ")
    if not taken:
        add(listed, "no step of this run takes it.")
    for one in taken:
        href = f"/training?{urlencode({'step': one.step, 'batch_index': one.batch_index})}"
        add(
            listed,
            link(f"step {one.step:,}", href),
            f" (rank {one.rank}, {'done' if one.done else 'to come'}) ",
        )
    return [listed]


def _choose_sample(k: int, served: Served, split: str, index: int) -> Element:
    return tag(
        "form",
        *_split_choice(served, split),
        tag("label", "sample ", tag("input", name="n", type="number", min="0", value=str(index))),
        tag("button", "Show"),
        action=f"/{k}/sample",
        class_="line",
    )


def _split_choice(served: Served, split: str) -> list[Element]:
    options = [
        tag("option", name, value=name, selected="selected" if name == split else None)
        for name in served.splits
    ]
    return [tag("label", "split ", tag("select", *options, name="split"))]


# Documents --------------------------------------------------------------------------------------------------


def documents(
    k: int,
    served: Served,
    split: str,
    query: Mapping[str, str],
    rows: Sequence[Mapping[str, Any]],
    after: int | None,
) -> list[Element]:
    """A list of documents. after: the row at which the next page begins."""
    form = tag(
        "form",
        *_split_choice(served, split),
        tag("label", "source ", tag("input", name="source", value=query.get("source", ""))),
        tag("label", "file has ", tag("input", name="file", value=query.get("file", ""))),
        tag(
            "label",
            "from document ",
            tag("input", name="first", type="number", min="0", value=query.get("first", "0")),
        ),
        tag("button", "List"),
        action=f"/{k}/documents",
        class_="line",
    )
    cells: list[list[Element | str]] = [
        [
            link(f"{row['row']:,}", address(k, "document", split=split, row=row["row"])), row["source"] or "(unnamed)",
            row["file"], f"{row['line'] + 1:,}", f"{row['tokens']:,}", size(row["bytes"]),
        ]
        for row in rows
    ]  # fmt: skip
    content: list[Element] = [form]
    if not cells:
        return [*content, tag("p", "No document is like that.")]
    content.append(
        table(
            ("document", "source", "file", "line", "tokens", "text"),
            cells,
            numbers=(3, 4, 5),
            caption="Documents",
        )
    )
    if after is not None:
        content.append(tag("p", link("more", address(k, "documents", split=split, source=query.get("source"),
                                                   file=query.get("file"), first=after), "n")))  # fmt: skip
    return content


def one_document(
    k: int,
    served: Served,
    split: str,
    row: Mapping[str, Any],
    text: str | None,
    original: Original,
    sample: int | None,
) -> list[Element]:
    """A document: where it is from, its text as the model sees it, and as it is in the source."""
    facts = {
        "source": row["source"] or "(unnamed)",
        "file": row["file"],
        "line": f"{row['line'] + 1:,}",
        "begins at": f"byte or row {row['offset']:,}",
        "length": f"{row['tokens']:,} tokens, {row['chars']:,} characters, {size(row['bytes'])}",
        "in the stream": f"from position {row['stream_offset']:,}",
        **_identity(row),
    }
    left, right = ("The text in the shards", "The text in the source")
    panes = tag("div", class_="pair")
    for name, shown in (
        (
            left,
            text
            if text is not None
            else "(These shards do not hold documents one after the other, or the tokenizer is not here.)",
        ),
        (right, original.text if original.text is not None else f"({original.why})"),
    ):
        add(panes, tag("div", tag("h2", name), tag("pre", shown, dir="auto", tabindex="0")))
    buttons = tag(
        "p",
        link("previous", address(k, "document", split=split, row=max(0, row["row"] - 1)), "p"),
        link("next", address(k, "document", split=split, row=row["row"] + 1), "n"),
        link("its sample", address(k, "sample", split=split, n=sample), "s") if sample is not None else None,
        class_="buttons",
    )
    clusters = tag(
        "p",
        link(
            "Where it is, and what it stands for",
            address(k, "search", by="id", q=f"{row['file']}#{row['offset']}"),
        ),
    )
    same = text is not None and original.text is not None and original.text == text
    note = (
        tag("p", "Both are equal.")
        if same
        else tag("p", "Cleaning, or the limit of what is shown, makes a difference.")
    )
    return [
        buttons,
        tag(
            "section",
            listed(facts),
            note if text is not None and original.text is not None else tag("p"),
            clusters,
        ),
        panes,
    ]


def _identity(row: Mapping[str, Any]) -> dict[str, str]:
    """What else documents.parquet says of a document: its id, its hash, the fields that were kept."""
    identity_fields = {
        "id": row.get("id"),
        "hash": row["hash"].hex() if row.get("hash") is not None else None,
    }
    identity_fields |= {name.removeprefix("fields."): row[name] for name in row if name.startswith("fields.")}
    return {name: str(value) for name, value in identity_fields.items() if value is not None}


# Duplicates -------------------------------------------------------------------------------------------------


def pair(
    k: int, pairs: Pairs, index: int, texts: tuple[Original, Original], verdicts: Verdicts, chance: int
) -> list[Element]:
    """A pair of duplicates side by side, and the verdicts so far."""
    shown_pair = pairs.pair(index)
    shown: tuple[Any, Any] = ([], [])
    note = ""
    if texts[0].text is not None and texts[1].text is not None:
        left, right, complete = differences(texts[0].text, texts[1].text)
        shown = (left, right)
        note = "" if complete else "Only the first words of both are compared."
    panes = tag("div", class_="pair")
    names = ("Kept", f"Dropped: {shown_pair.reason.replace('_', ' ')}")
    for name, listed_document, pieces, original in zip(
        names, (shown_pair.kept, shown_pair.removed), shown, texts, strict=True
    ):
        text = tag("pre", dir="auto", tabindex="0")
        for piece, differs in pieces:
            add(text, tag("mark", piece) if differs else piece)
        if original.text is None:
            add(text, f"({original.why})")
        add(panes, tag("div", tag("h2", name), tag("p", _where(listed_document), class_="quiet"), text))
    alike = "" if shown_pair.similarity is None else f" Similarity {shown_pair.similarity:.3f}."
    tally = verdicts.tally()
    status = "No verdict yet."
    if tally["precision"] is not None:
        status = (
            f"{tally['right']} right, {tally['wrong']} wrong: {percent(tally['precision'])} right, between "
            f"{percent(tally['low'])} and {percent(tally['high'])} with 95 % confidence."
        )
    verdict = verdicts.by_pair.get(index)
    form = tag(
        "form",
        tag("input", type="hidden", name="pair", value=str(index)),
        tag("input", type="hidden", name="next", value=str(chance)),
        tag(
            "button",
            "Right to drop it",
            name="verdict",
            value="right",
            data_key="y",
            aria_pressed=_pressed(verdict, "right"),
        ),
        tag(
            "button",
            "Wrong",
            name="verdict",
            value="wrong",
            data_key="x",
            aria_pressed=_pressed(verdict, "wrong"),
        ),
        tag("span", status, role="status"),
        method="post",
        action=f"/{k}/verdict",
        class_="line",
    )
    buttons = tag(
        "p",
        link("previous", address(k, "pairs", n=max(0, index - 1)), "p"),
        link("next", address(k, "pairs", n=min(len(pairs) - 1, index + 1)), "n"),
        link("at random", address(k, "pairs", n=chance), "r"),
        link("its cluster", address(k, "search", by="cluster", q=shown_pair.cluster)),
        link("verdicts as JSON", f"/{k}/verdicts.json"),
        tag("span", f" pair {index:,} of {len(pairs):,}"),
        class_="buttons",
    )
    return [buttons, form, tag("p", (note or "Words that differ are marked.") + alike), panes]


def _where(document: PairDocument | None) -> str:
    if document is None:
        return "in an index of earlier runs"
    return f"{document.source or '(unnamed)'} · {document.file} · byte or row {document.offset:,} · {size(document.bytes)}"


def _pressed(given: str | None, verdict: str) -> str:
    return "true" if given == verdict else "false"
