"""report.html: everything that `inspect` finds out about a dataset, on one page that needs nothing else.

The page has its style and script inside, asks no server for anything (its Content-Security-Policy forbids
it), and reads without the script. Its bytes depend on the dataset and on provenance.json only, but for the
texts of duplicates, which are read from the source where it is still there.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from importlib import resources
from pathlib import Path
from xml.etree.ElementTree import Element

import msgspec
import numpy as np

from btlm_data.errors import DataError
from btlm_data.formats import dataset, generations
from btlm_data.formats import pages as seals
from btlm_data.formats.documents_table import DocumentTable
from btlm_data.inspection import border_pairs, lookup, sample_tokens, summary
from btlm_data.inspection.border_pairs import BorderPairs
from btlm_data.inspection.headline import headline
from btlm_data.inspection.opening import Opened, open_path
from btlm_data.inspection.report import GenerationSplit, Report, SetsReport
from btlm_data.inspection.sample_tokens import SampleTokens
from btlm_data.inspection.token_measures import SEED, find_tokenizer
from btlm_data.pages import data_sections, overview_sections
from btlm_data.pages.elements import add, document, raw_script, raw_style, source_hash, tag

NUM_SAMPLES = 3
Section = tuple[str, str, list[Element]]  # identifier, heading, content


class _Read(msgspec.Struct, frozen=True):
    """What the page reads beside the report: samples drawn, and pairs of duplicates with their texts."""

    samples: Sequence[SampleTokens] = ()
    pairs: BorderPairs = BorderPairs([])  # it is frozen


def build(path: Path) -> bytes:
    """The page about a dataset, or about shards that others made. Raises DataError if there is nothing to
    look at.
    """
    report = summary.inspect_one(path, num_samples=0)
    if isinstance(report, SetsReport):
        articles = [
            (name, set_report, _read(open_path(Path(report.path) / name)))
            for name, set_report in report.sets.items()
        ]
    else:
        articles = [("", report, _read(open_path(path)))]
    return seals.sealed_html(_page(report, articles, _grown(path)), _checksum(Path(report.path)))


def _grown(path: Path) -> list[GenerationSplit]:
    """The splits of all generations, where documents were added to the dataset at `path`; else nothing."""
    opened = open_path(path)
    if opened.chosen is not None or not generations.listed(opened.root):
        return []
    return list(summary.generation_splits(generations.read(opened.root)))


def _checksum(root: Path) -> str:
    """Of the dataset.json of a folder; of one that cannot be read, the report says so."""
    try:
        return dataset.read(root).checksum
    except DataError:
        return seals.NO_DATASET


def _read(opened: Opened) -> _Read:
    return _Read(_drawn(opened), border_pairs.read(opened))


def _drawn(opened: Opened) -> list[SampleTokens]:
    """A few samples, drawn from the first split that has some; seeded."""
    split = next((name for name in opened.splits if opened.chosen in (None, name)), None)
    if split is None:
        return []
    try:
        rows = lookup.rows_of(opened, split)
        total = lookup.num_sequences(opened, rows)
        table = DocumentTable(opened.documents_path(split)) if opened.manifest is not None else None
    except DataError:
        return []  # the report says so
    tokenizer = find_tokenizer(opened, None).tokenizer
    numbers = np.random.default_rng(SEED).integers(0, total, NUM_SAMPLES) if total else np.empty(0, np.int64)
    shown = []
    for number in np.unique(numbers).tolist():
        try:
            shown.append(sample_tokens.read(opened, split, number, rows, tokenizer, table))
        except DataError:
            continue
    return shown


def _page(
    report: Report | SetsReport,
    articles: Sequence[tuple[str, Report, _Read]],
    grown: Sequence[GenerationSplit],
) -> str:
    name = Path(report.path).name or "dataset"
    style, script = asset("page.css"), asset("page.js")
    policy = f"default-src 'none'; style-src {source_hash(style)}; script-src {source_hash(script)}; base-uri 'none'; form-action 'none'"
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=policy),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="generator", content="btlm-data"),
        tag("meta", name="referrer", content="no-referrer"),
        tag("title", f"{name}: dataset report"),
        raw_style(style),
    )
    contents, main = tag("ol"), tag("main", id="main")
    if grown:
        add(contents, tag("li", tag("a", "Generations", href="#generations")))
        add(
            main,
            tag("section", tag("h2", "Generations"), *overview_sections.generations(grown), id="generations"),
        )
    for prefix, set_report, shown in articles:
        if prefix:
            add(main, tag("h2", f"Set {prefix}", id=prefix))
            add(contents, tag("li", tag("a", tag("strong", prefix), href=f"#{prefix}")))
        add(main, overview_sections.tiles(set_report))
        for identifier, heading, content in _sections(set_report, shown):
            identifier = f"{prefix}-{identifier}" if prefix else identifier
            add(contents, tag("li", tag("a", heading, href=f"#{identifier}")))
            add(main, tag("section", tag("h2", heading, id=f"{identifier}-heading"), *content, id=identifier,
                          aria_labelledby=f"{identifier}-heading"))  # fmt: skip
    first = articles[0][1] if articles else None
    header = tag(
        "header",
        tag("p", "Dataset report"),
        tag("h1", name),
        tag("p", headline(first) if len(articles) == 1 and first else f"{len(articles)} sets"),
    )
    footer = tag(
        "footer",
        "Written by btlm-data. Figures are of the whole dataset unless a table says on what they were measured.",
    )
    body = tag(
        "body",
        tag("a", "Skip to the content", href="#main", class_="skip"),
        tag("div", header, tag("nav", contents, aria_label="Contents"), main, footer, class_="page"),
        raw_script(script),
    )
    return document(tag("html", head, body, lang="en"))


def content(report: Report) -> list[Element]:
    """The sections of a report without samples, for a page that has its own frame."""
    parts = [overview_sections.tiles(report)]
    for identifier, heading, elements in _sections(report, _Read()):
        parts.append(tag("section", tag("h2", heading, id=f"{identifier}-heading"), *elements, id=identifier))
    return parts


def _sections(report: Report, shown: _Read) -> Iterator[Section]:
    eos = report.identity.tokenizer.eos_id if report.identity is not None else None
    yield "verdicts", "What to look at", overview_sections.verdicts(report)
    made: list[tuple[str, str, bool, Callable[[], Iterator[Element]]]] = [
        (
            "flow",
            "From source to shard",
            bool(report.ledger and report.read),
            lambda: overview_sections.flow(report),
        ),
        ("sources", "Sources", any(report.sources.values()), lambda: overview_sections.sources(report)),
        ("splits", "Splits and packing", bool(report.splits), lambda: _splits(report)),
        ("lengths", "Lengths of documents", bool(report.lengths), lambda: data_sections.lengths(report)),
        ("tokens", "Tokens", bool(report.tokens), lambda: data_sections.tokens(report)),
        (
            "duplicates",
            "Duplicates",
            report.identity is not None,
            lambda: data_sections.duplicates(report, shown.pairs),
        ),
        ("order", "Shuffle quality", bool(report.shuffle), lambda: data_sections.shuffle(report)),
        ("samples", "Samples", bool(shown.samples), lambda: data_sections.samples(shown.samples, eos)),
        ("dropped", "Left out", report.identity is not None, lambda: data_sections.dropped(report)),
        ("recipe", "What it is", True, lambda: overview_sections.identity(report)),
        ("made", "How it was made", report.program is not None, lambda: overview_sections.made(report)),
    ]
    for identifier, heading, wanted, content in made:
        if wanted:
            yield identifier, heading, list(content())


def _splits(report: Report) -> Iterator[Element]:
    yield from data_sections.packing(report)
    yield overview_sections.splits(report)
    yield tag("p", f"On disk: {data_sections.disk(report)}.", class_="quiet")


@functools.cache
def asset(name: str) -> str:
    """A file of this package, as text."""
    return resources.files("btlm_data.pages").joinpath(name).read_text(encoding="utf-8")
