"""The views of whole datasets: the front page, and two beside each other."""

from __future__ import annotations

from collections.abc import Sequence
from xml.etree.ElementTree import Element

from btlm_data.inspection.difference import Difference
from btlm_data.inspection.figures import number, percent
from btlm_data.pages.charts import bar, table
from btlm_data.pages.elements import add, tag
from btlm_data.serve.served import Served
from btlm_data.serve.site import Series, Site
from btlm_data.serve.views import VIEWS, address, link


def comparison(difference: Difference, names: Sequence[str]) -> list[Element]:
    """Two datasets beside each other."""
    left, right = names
    parts: list[Element] = []
    if difference.equal:
        parts.append(tag("p", "The same dataset: both dataset.json have the same checksum."))

    def section(heading: str, *content: Element) -> None:
        parts.append(tag("section", tag("h2", heading), *content))

    settings = [
        [setting.key, *setting.in_words()] for setting in (*difference.settings, *difference.tokenizers)
    ]
    section("Settings", _or_same(settings, left, right, "Settings that differ"))
    files: list[list[Element | str]] = [
        [name, change]
        for names_of, change in ((difference.only_left, f"only in {left}"), (difference.only_right, f"only in {right}"), (difference.changed, "of other content"))
        for name in names_of[:200]
    ]  # fmt: skip
    section(
        "Input files",
        table(("file", ""), files, caption="Input files that differ") if files else tag("p", "The same."),
    )
    counts = [
        [
            count.name,
            *("not there" if value is None else number(value) for value in (count.left, count.right)),
        ]
        for count in difference.counts
    ]
    section("Counts", _or_same(counts, left, right, "Counts that differ", (1, 2)))
    for split, shares in difference.shares.items():
        rows: list[list[Element | str]] = []
        most = max((max(share.left or 0, share.right or 0) for share in shares), default=0) or 1.0
        for share in shares:
            bars = tag("div", bar((share.left or 0) / most), bar((share.right or 0) / most, colour=1))
            rows.append([share.name or "(unnamed)", percent(share.left), percent(share.right), bars])
        columns = ("source", left, right, f"{left} above, {right} below")
        section(
            f"Shares of {split}", table(columns, rows, numbers=(1, 2), caption=f"Tokens of {split} by source")
        )
    documents: list[list[Element | str]] = [
        [
            order.split, f"{order.both:,}", f"{order.only_left:,}", f"{order.only_right:,}",
            "none" if order.first_difference is None else f"document {order.first_difference:,}",
        ]
        for order in difference.documents
    ]  # fmt: skip
    heads = ("split", "in both", f"only {left}", f"only {right}", "first difference in order")
    section("Documents in common", table(heads, documents, numbers=(1, 2, 3), caption="Documents by split"))
    return parts + [tag("p", note) for note in difference.notes]


def _or_same(
    rows: Sequence[Sequence[Element | str]], left: str, right: str, caption: str, numbers: Sequence[int] = ()
) -> Element:
    return table(("", left, right), rows, numbers=numbers, caption=caption) if rows else tag("p", "The same.")


def front(site: Site, training: str | None) -> list[Element]:
    """All that is served. training: name of the training run."""
    items = []
    for series in site.series:
        links = tag("p", class_="buttons")
        for key, name in VIEWS[1:]:
            add(links, link(name, address(series.members[0], key)))
        words = f"Samples: {_samples_of(site.datasets[series.members[0]])}"
        others: list[Element] = []
        if len(series.members) > 1:
            words = f"{len(series.members):,} generations, which readers take one after the other"
            others = [_list_of_generations(site, series)]
        item = tag(
            "li", link(series.name, address(series.members[0], "report")), tag("p", words), links, *others
        )
        items.append(item)
    for k, name in enumerate(site.run_names):
        items.append(tag("li", link(name, f"/run/{k}"), tag("p", "A work folder: how far its run is")))
    if training is not None:
        items.append(
            tag("li", link(training, "/training"), tag("p", "A training run: its samples, step by step"))
        )
    parts = [tag("ul", *items, class_="served")]
    if len(site.comparable) > 1:
        choices = [
            tag("label", f"{label} ", tag("select", *(tag("option", name, value=str(k), selected="selected" if k == default else None)
                for k, (name, _) in enumerate(site.comparable)), name=key))
            for label, key, default in (("compare", "a", 0), ("with", "b", 1))
        ]  # fmt: skip
        form = tag("form", *choices, tag("button", "Compare"), action="/compare", class_="line")
        parts.append(tag("section", tag("h2", "Compare two"), form))
    return parts


def _samples_of(served: Served) -> str:
    return ", ".join(f"{served.num_samples(split):,} of {split}" for split in served.splits)


def _list_of_generations(site: Site, series: Series) -> Element:
    """What each generation has."""
    rows: list[list[Element | str]] = []
    for generation, k in enumerate(series.members, 1):
        served = site.datasets[k]
        manifest = served.opened.manifest
        documents = sum(split.documents for split in manifest.splits.values()) if manifest is not None else 0
        rows.append([link(f"{generation:,}", address(k, "report")), f"{documents:,}", _samples_of(served)])
    columns = ("generation", "documents", "samples")
    return table(columns, rows, numbers=(1,), caption=f"Generations of {series.name}")
