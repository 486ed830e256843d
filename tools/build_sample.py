#!/usr/bin/env python3
r"""Build the sample corpus that ships in `btlm_data/data/sample/`, and the list of what was planted in it.

The text is real and redistributable (see LICENSES.md beside the corpus); the layout and the records are SlimPajama's.
Same inputs, same seed and same zstd library give the same bytes: nothing here reads a clock, a locale or a hash seed.

Inputs: a folder holding one unpacked Debian 12 package per subfolder, at the versions in `ORIGINS` below (and
`bible-kjv` 4.38, of which only the program that unpacks the verses is run). To make it, on a Debian 12 machine:

    mkdir debs packages && (cd debs && apt-get download bible-kjv bible-kjv-text dict-jargon dict-devil sqlite3-doc \
        apache2-doc postgresql-doc-15 python3.11-doc python-sympy-doc python3-networkx python3-click python3-jinja2 \
        libstb-dev nlohmann-json3-dev libjs-underscore)
    for deb in debs/*.deb; do name=$(basename $deb); dpkg -x $deb packages/${name%%_*}; done

Then:

    python tools/build_sample.py packages btlm_data/data/sample

Writes train/ validation/ test/ and truth.json; README.md and LICENSES.md there are written by hand, and the build stops
if LICENSES.md does not name an origin it uses. About 30 seconds, mostly the compression. Exit code 1 and a message
when a package is missing or a planted property does not hold.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import random
import re
import string
import subprocess
import sys
import unicodedata
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import zstandard

SEED = 20231
MIN_NORMALISED_CHARS = 200  # SlimPajama drops documents shorter than this after normalisation
NGRAM_CHARS = 13
NATURAL_PAIR_JACCARD = 0.5  # natural look-alikes at or above this are listed in truth.json

# The files of each split, in the order in which a reader that sorts by name meets them. Two folders share file names
# on purpose: SlimPajama's chunks do too.
TRAIN_FILES = [
    "train/chunk1/example_train_0.jsonl.zst",
    "train/chunk1/example_train_1.jsonl.zst",
    "train/chunk1/example_train_2.jsonl.zst",
    "train/chunk2/example_train_0.jsonl.zst",
    "train/chunk2/example_train_1.jsonl.zst",
]
VALIDATION_FILE = "validation/chunk1/example_holdout_0.jsonl.zst"
TEST_FILE = "test/chunk1/example_holdout_0.jsonl.zst"


@dataclass(frozen=True)
class Origin:
    """Where a document comes from, and what must be said when it is passed on."""

    title: str
    licence: str  # SPDX identifier, or "public domain"
    copyright: str
    package: str
    version: str


ORIGINS = {
    "kjv": Origin(
        "The Bible, King James Version", "public domain", "none: published 1611", "bible-kjv-text", "4.38"
    ),
    "devil": Origin(
        "The Devil's Dictionary, Ambrose Bierce",
        "public domain",
        "expired: published 1911",
        "dict-devil",
        "1.0-13.1",
    ),
    "jargon": Origin(
        "The Jargon File, version 4.4.7",
        "public domain",
        "none: dedicated to the public domain",
        "dict-jargon",
        "4.4.7-3.1",
    ),
    "sqlite": Origin(
        "SQLite documentation",
        "public domain",
        "none: dedicated to the public domain",
        "sqlite3-doc",
        "3.40.1-2+deb12u2",
    ),
    "apache": Origin(
        "Apache HTTP Server documentation",
        "Apache-2.0",
        "Copyright The Apache Software Foundation",
        "apache2-doc",
        "2.4.71-1~deb12u1",
    ),
    "postgresql": Origin(
        "PostgreSQL 15 documentation",
        "PostgreSQL",
        "Portions Copyright 1996-2026, PostgreSQL Global Development Group; Portions Copyright 1994, The Regents of the University of California",
        "postgresql-doc-15",
        "15.20-0+deb12u1",
    ),
    "python": Origin(
        "Python 3.11 documentation",
        "PSF-2.0",
        "Copyright 2001-2023 Python Software Foundation",
        "python3.11-doc",
        "3.11.2-6+deb12u9",
    ),
    "sympy": Origin(
        "SymPy documentation",
        "BSD-3-Clause",
        "Copyright 2006-2022 SymPy Development Team",
        "python-sympy-doc",
        "1.11.1-1",
    ),
    "networkx": Origin(
        "NetworkX source code",
        "BSD-3-Clause",
        "Copyright 2004-2022 NetworkX Developers",
        "python3-networkx",
        "2.8.8-1",
    ),
    "click": Origin(
        "Click source code", "BSD-3-Clause", "Copyright 2014 Pallets", "python3-click", "8.1.3-2"
    ),
    "jinja": Origin(
        "Jinja source code",
        "BSD-3-Clause",
        "Copyright 2007 Pallets; 2009-2011 by the Jinja Team",
        "python3-jinja2",
        "3.1.2-1+deb12u3",
    ),
    "stb": Origin(
        "stb single-file libraries",
        "MIT",
        "Copyright 2017 Sean Barrett",
        "libstb-dev",
        "0.0~git20220908.8b5f1f3+ds-1",
    ),
    "nlohmann": Origin(
        "JSON for Modern C++", "MIT", "Copyright 2013-2022 Niels Lohmann", "nlohmann-json3-dev", "3.11.2-2"
    ),
    "underscore": Origin(
        "Underscore.js",
        "MIT",
        "Copyright 2009-2022 Jeremy Ashkenas, Julian Gonggrijp, and DocumentCloud and Investigative Reporters & Editors",
        "libjs-underscore",
        "1.13.4~dfsg+~1.11.4-3",
    ),
}


@dataclass
class Document:
    """One document on its way into the corpus. `name` is unique and only used for sorting and for error messages."""

    origin: str
    source: str
    name: str
    text: str
    edit: str = "original"
    jaccard: float = 1.0  # to the document it was copied from
    family: str = ""  # name of the document it was copied from; "" if it is in no planted cluster
    holdout_of: str = ""  # name of the validation document it was copied from


# --- text out of pages -----------------------------------------------------------------------------------------------

_BREAKS = {
    "p", "div", "br", "li", "tr", "h1", "h2", "h3", "h4", "h5", "h6", "pre", "dt", "dd", "ul", "ol", "dl", "table", "section", "blockquote", "hr",
}  # fmt: skip
_VOID = {"br", "hr", "img", "input", "meta", "link", "col", "area", "base", "wbr", "source"}
_SKIPPED_TAGS = {"script", "style", "nav", "head", "button", "svg", "form", "noscript"}
_SKIPPED_CLASSES = {
    "headerlink", "nosearch", "fancy_toc", "toplang", "bottomlang", "navheader", "navfooter", "top", "viewcode-link",
    "sphinxsidebar", "related", "toc", "toctree-wrapper", "comments",
}  # fmt: skip
_SKIPPED_IDS = {"quickview", "comments_section", "footer", "page-header", "path", "indices-and-tables"}


class _Page(HTMLParser):
    """Collects the readable text of a page; preformatted text keeps its white space, navigation is left out.

    With `role_main` only what stands inside the element of role "main" is taken (Sphinx); with `start_id` only the element of that id.
    """

    def __init__(self, *, role_main: bool = False, start_id: str = "") -> None:
        super().__init__(convert_charrefs=True)
        self.parts: list[str] = []
        self._role_main, self._start_id = role_main, start_id
        self._taking = (
            ("", 0) if role_main or start_id else ("body", 1)
        )  # tag that opened it, nesting of that tag
        self._skipping = ("", 0)
        self._pre = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {key: value or "" for key, value in attrs}
        if tag in _VOID:
            if not self._taking[1] or self._skipping[1]:
                return
            if tag in _BREAKS:
                self.parts.append("\n")
            elif tag == "img" and "/math/" in values.get(
                "src", ""
            ):  # a formula drawn as a picture: its LaTeX is beside it
                self.parts.append(f"${values.get('alt', '')}$")
            return
        if self._skipping[1]:
            self._skipping = (self._skipping[0], self._skipping[1] + (tag == self._skipping[0]))
            return
        if not self._taking[1]:
            if (self._role_main and values.get("role") == "main") or (
                self._start_id and values.get("id") == self._start_id
            ):
                self._taking = (tag, 1)
            return
        if (
            tag in _SKIPPED_TAGS
            or values.get("id") in _SKIPPED_IDS
            or _SKIPPED_CLASSES & set(values.get("class", "").split())
        ):
            self._skipping = (tag, 1)
            return
        if tag == self._taking[0]:
            self._taking = (tag, self._taking[1] + 1)
        self._pre += tag == "pre"
        if tag in _BREAKS:
            self.parts.append("\n\n" if tag in {"p", "pre", "h1", "h2", "h3", "h4"} else "\n")
        elif tag in {"td", "th"}:
            self.parts.append("  ")

    def handle_endtag(self, tag: str) -> None:
        if self._skipping[1]:
            self._skipping = (self._skipping[0], self._skipping[1] - (tag == self._skipping[0]))
            return
        if self._taking[1] and tag == self._taking[0]:
            self._taking = (tag, self._taking[1] - 1)
        if tag == "pre":
            self._pre = max(0, self._pre - 1)
        if self._taking[1] and tag in {"p", "pre", "h1", "h2", "h3", "h4", "table", "ul", "dl"}:
            self.parts.append("\n\n")

    def handle_data(self, data: str) -> None:
        if self._taking[1] and not self._skipping[1]:
            self.parts.append(data if self._pre else re.sub(r"\s+", " ", data))


def page_text(page: str, *, role_main: bool = False, start_id: str = "") -> str:
    """The readable text of an HTML page, paragraphs apart by one empty line."""
    parser = _Page(role_main=role_main, start_id=start_id)
    parser.feed(page)
    return tidy("".join(parser.parts))


def tidy(text: str) -> str:
    """Lines without trailing blanks, at most one empty line in a row, nothing around the text, NFC."""
    text = unicodedata.normalize("NFC", text.replace("\r\n", "\n").replace("\N{NO-BREAK SPACE}", " "))
    text = re.sub(r"\s*¶", "", text)  # the mark on which one clicks to link to a heading
    text = re.sub(r"[ \t]+\n", "\n", text)
    text = re.sub(r"(?m)^ (?=\S)", "", text)
    return re.sub(r"\n{3,}", "\n\n", text).strip()


# --- the pools: (name, source, text) of every candidate document -------------------------------------------------------

Candidate = tuple[str, str, str, str]  # origin, RedPajama set name, document name, text


def _files(root: Path, pattern: str) -> list[Path]:
    found = sorted(p for p in root.glob(pattern) if p.is_file() and not p.is_symlink())
    if not found:
        sys.exit(
            f"error: no file matches {pattern} in {root}. Unpack the package there; see the top of tools/build_sample.py."
        )
    return found


KJV_LONG = {"Ge": "Genesis", "Isa": "Isaiah", "Mat": "The Gospel according to Saint Matthew"}
KJV_SHORT = {
    "Ruth": "Ruth", "Eccl": "Ecclesiastes", "SSol": "The Song of Solomon", "Joel": "Joel", "Obad": "Obadiah", "Jonah": "Jonah",
    "Nahum": "Nahum", "Hag": "Haggai", "Titus": "Titus", "Jas": "James", "Jude": "Jude", "Phmn": "Philemon",
}  # fmt: skip


def kjv(packages: Path, books: dict[str, str]) -> Iterator[Candidate]:
    """Books of the King James Bible, verse by verse; the verses are stored compressed, `bible` unpacks them."""
    command: list[str | Path] = [
        packages / "bible-kjv/usr/bin/bible", "-f", "-l9999", "-p", packages / "bible-kjv-text/usr/lib", "Gen1:1-Rev22:21",
    ]  # fmt: skip
    output = subprocess.run(command, check=True, capture_output=True, stdin=subprocess.DEVNULL).stdout.decode(
        "ascii"
    )
    verses: dict[str, list[tuple[str, str, str]]] = {}
    for line in output.splitlines():
        if match := re.match(r"(\d?[A-Za-z]+)(\d+):(\d+) (.*)", line):
            verses.setdefault(match[1], []).append((match[2], match[3], match[4]))
    for key, title in books.items():
        lines = [title.upper()]
        for chapter, verse, text in verses[key]:
            if verse == "1":
                lines.append(f"\nChapter {chapter}\n")
            lines.append(f"{verse} {text}")
        yield "kjv", "RedPajamaBook", title, tidy("\n".join(lines))


def devil(packages: Path) -> Iterator[Candidate]:
    """The Devil's Dictionary, one document for each initial letter."""
    path = packages / "dict-devil/usr/share/dictd/devil.dict.dz"
    entries = re.split(r"\n\n(?=[A-Z][A-Z'\- ]+[,.(])", gzip.decompress(path.read_bytes()).decode("utf-8"))
    letters: dict[str, list[str]] = {}
    for entry in entries[1:]:  # before the first entry stand notices and the preface
        letters.setdefault(entry[0], []).append(entry)
    for letter, texts in sorted(letters.items()):
        yield "devil", "RedPajamaBook", letter, tidy(f"{letter}\n\n" + "\n\n".join(texts))


def jargon(packages: Path) -> Iterator[Candidate]:
    """Entries of the Jargon File, with the lines of a paragraph joined."""
    path = packages / "dict-jargon/usr/share/dictd/jargon.dict.dz"
    lexicon = gzip.decompress(path.read_bytes()).decode("utf-8").split("version 4.4.7, 29 Dec 2003”.)", 1)[1]
    for entry in re.split(r"\n\n(?=\S)", lexicon):
        head, _, body = entry.strip("\n").partition("\n")
        kind, _, body = body.partition("\n")
        paragraphs = []
        for paragraph in re.split(r"\n\s*\n", body):
            lines = paragraph.strip("\n").split("\n")
            verse = any(
                line.startswith(" " * 6) for line in lines
            )  # indented further: an example, keep its lines
            paragraphs.append(
                re.sub(r"^    ", "", "\n".join(lines), flags=re.M)
                if verse
                else " ".join(x.strip() for x in lines)
            )
        text = re.sub(r"\{\s?([^{}]*?)\s?\}", r"\1", "\n\n".join(paragraphs))
        if text.strip():
            yield (
                "jargon",
                "RedPajamaWikipedia",
                head,
                tidy(f"{head} ({kind.strip(' ,.')})\n\n{text}" if kind.strip(" /") else f"{head}\n\n{text}"),
            )


def sqlite(packages: Path) -> Iterator[Candidate]:
    """SQLite's pages, without lists of links and diagrams."""
    root = packages / "sqlite3-doc/usr/share/doc/sqlite3"
    for path in _files(root, "**/*.html"):
        if not re.search(r"index|toc|syntaxdiagram|keyword_|doclist|hlr\d|sitemap", path.name):
            yield (
                "sqlite",
                "RedPajamaCommonCrawl",
                str(path.relative_to(root)),
                page_text(path.read_text("utf-8", "ignore")),
            )


def python(packages: Path) -> Iterator[Candidate]:
    """Chapters of Python's manuals; its FAQ is `python_faq`."""
    root = packages / "python3.11-doc/usr/share/doc/python3.11/html"
    for path in _files(root, "*/*.html"):
        if (
            path.parent.name in {"library", "howto", "tutorial", "reference", "using", "extending", "c-api"}
            and path.name != "index.html"
        ):
            yield (
                "python",
                "RedPajamaCommonCrawl",
                str(path.relative_to(root)),
                page_text(path.read_text("utf-8"), role_main=True),
            )


def python_faq(packages: Path) -> Iterator[Candidate]:
    """Each question of Python's FAQ with its answer: the nearest thing to a question-and-answer site."""
    root = packages / "python3.11-doc/usr/share/doc/python3.11/html/faq"
    for path in _files(root, "*.html"):
        page = path.read_text("utf-8")
        questions = re.findall(
            r'<section id="([^"]+)">\s*(<h[23]>.*?)(?=<section id="|</section>)', page, flags=re.S
        )
        for name, part in questions:
            text = page_text(part)
            if "?" in text.split("\n")[0]:
                yield "python", "RedPajamaStackExchange", f"faq/{path.stem}/{name}", text


def postgresql(packages: Path) -> Iterator[Candidate]:
    """Sections of the PostgreSQL manual, without release notes and indexes."""
    root = packages / "postgresql-doc-15/usr/share/doc/postgresql-doc-15/html"
    for path in _files(root, "*.html"):
        if not re.match(r"(index|bookindex|biblio|release|legalnotice|acronyms)", path.name):
            yield "postgresql", "RedPajamaWikipedia", path.name, page_text(path.read_text("utf-8"))


def apache(packages: Path, language: str) -> Iterator[Candidate]:
    """Pages of the Apache manual that are really in `language` (an untranslated page is served in English)."""
    root = packages / "apache2-doc/usr/share/doc/apache2-doc/manual"
    for path in _files(root, f"{language}/**/*.html"):
        page = path.read_bytes()
        lang = re.search(rb'<html[^>]*?\slang="([^"]+)"', page)
        charset = re.search(rb"charset=([\w-]+)", page)
        if (
            lang
            and lang[1].decode() == language
            and not re.search(r"index|quickreference|sitemap|directives", path.name)
        ):
            text = page_text(
                page.decode(charset[1].decode() if charset else "utf-8", "strict"), start_id="page-content"
            )
            yield "apache", "RedPajamaC4", str(path.relative_to(root)), text


def sympy(packages: Path) -> Iterator[Candidate]:
    """SymPy's pages with formulas in them, which MathJax leaves as LaTeX in the text."""
    root = packages / "python-sympy-doc/usr/share/doc/python-sympy-doc/html"
    for path in _files(root, "**/*.html"):
        page = path.read_text("utf-8")
        if page.count('class="math') >= 5:
            yield "sympy", "RedPajamaArXiv", str(path.relative_to(root)), page_text(page, role_main=True)


def code(packages: Path, origin: str, pattern: str, keep: Callable[[str, str], bool]) -> Iterator[Candidate]:
    """Source files of an origin's package that match `pattern` and for which `keep(path, text)` says yes."""
    root = packages / ORIGINS[origin].package
    for path in _files(root, pattern):
        text = path.read_bytes().decode("utf-8", "ignore")
        if keep(str(path), text):
            yield origin, "RedPajamaGithub", str(path.relative_to(root)), tidy(text)


# --- normalisation and similarity, as the deduplication defines them ----------------------------------------------------

_DELETE_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalised(text: str) -> str:
    """Lower-case, without ASCII punctuation, white space collapsed: what the deduplication compares."""
    return re.sub(
        r"\s+", " ", unicodedata.normalize("NFC", text).lower().translate(_DELETE_PUNCTUATION).strip()
    )


def grams(text: str) -> frozenset[str]:
    """The set of character 13-grams of the normalised text."""
    text = normalised(text)
    return frozenset(text[i : i + NGRAM_CHARS] for i in range(max(1, len(text) - NGRAM_CHARS + 1)))


def jaccard(a: frozenset[str], b: frozenset[str]) -> float:
    """Shared members over all members."""
    return len(a & b) / len(a | b)


def natural_pairs(docs: list[Document]) -> list[tuple[int, int, float]]:
    """All pairs of documents whose exact Jaccard similarity reaches NATURAL_PAIR_JACCARD.

    A 1-in-32 sample of the n-grams, chosen by their own bytes, finds the candidates; each is then measured in full. For documents of a
    thousand n-grams and more a pair is then hardly ever overlooked; this is a description of the corpus, not a proof.
    """
    by_gram: dict[str, list[int]] = {}
    samples = []
    for i, doc in enumerate(docs):
        sample = {g for g in grams(doc.text) if sum(g.encode("utf-8")) % 32 == 0}
        samples.append(sample)
        for g in sample:
            by_gram.setdefault(g, []).append(i)
    shared: dict[tuple[int, int], int] = {}
    for members in by_gram.values():
        for x, i in enumerate(members):
            for j in members[x + 1 :]:
                shared[i, j] = shared.get((i, j), 0) + 1
    found = []
    for (i, j), count in sorted(shared.items()):
        if count / (len(samples[i]) + len(samples[j]) - count) >= NATURAL_PAIR_JACCARD * 0.6:
            similarity = jaccard(grams(docs[i].text), grams(docs[j].text))
            if similarity >= NATURAL_PAIR_JACCARD:
                found.append((i, j, similarity))
    return found


# --- edits ----------------------------------------------------------------------------------------------------------


def edit_words(text: str, rate: float, rng: random.Random) -> str:
    """Replace `rate` of the words (at least one); white space stays as it is."""
    pieces = re.split(r"(\s+)", text)
    places = [i for i in range(0, len(pieces), 2) if pieces[i]]
    for i in rng.sample(places, max(1, round(len(places) * rate))):
        pieces[i] = rng.choice(["item", "the", "value", "other", "zq"])
    return "".join(pieces)


def edit_characters(text: str, rate: float, rng: random.Random) -> str:
    """Replace `rate` of the characters (at least one): for scripts that are written without spaces."""
    chars = list(text)
    places = [i for i, c in enumerate(chars) if not c.isspace()]
    for i in rng.sample(places, max(1, round(len(places) * rate))):
        chars[i] = rng.choice("之的人日本")
    return "".join(chars)


def edit_whitespace(text: str, rng: random.Random) -> str:
    """Other white space between the same words, and some around the text."""
    between = ["  ", "\n", " \n ", "\t", "\n\n", " "]
    return (
        " \n" + re.sub(r"\s+", lambda m: rng.choice(between) if rng.random() < 0.2 else m[0], text) + "\n\n"
    )


def edit_case(text: str, rng: random.Random) -> str:
    """Some words in capitals; only ASCII letters, whose lower case is always the letter they came from."""
    upper = str.maketrans(string.ascii_lowercase, string.ascii_uppercase)
    return re.sub(r"\S+", lambda m: m[0].translate(upper) if rng.random() < 0.1 else m[0], text)


def edit_punctuation(text: str, rng: random.Random) -> str:
    """Commas dropped, full stops turned to exclamation marks, some words put in quotation marks."""
    text = re.sub(r"[,.]", lambda m: {",": "", ".": "!"}[m[0]] if rng.random() < 0.3 else m[0], text)
    return re.sub(r"\b[A-Za-z]{3,}\b", lambda m: f'"{m[0]}"' if rng.random() < 0.03 else m[0], text)


EDITS: dict[str, Callable[[str, random.Random], str]] = {
    "exact": lambda text, _: text,
    "whitespace": edit_whitespace,
    "case": edit_case,
    "punctuation": edit_punctuation,
    "nfd": lambda text, _: unicodedata.normalize("NFD", text),
    "words_0.3%": lambda text, rng: edit_words(text, 0.003, rng),
    "words_1%": lambda text, rng: edit_words(text, 0.01, rng),
    "characters_0.3%": lambda text, rng: edit_characters(text, 0.003, rng),
}
SAME_TEXT_EDITS = ("exact", "whitespace", "case", "punctuation", "nfd")  # equal after normalisation
WORD_EDITS = (
    "exact",
    "whitespace",
    "case",
    "punctuation",
    "words_0.3%",
    "words_0.3%",
    "words_1%",
    "words_1%",
)


def copy_of(doc: Document, edit: str, rng: random.Random, number: int) -> Document:
    """A copy of `doc`, edited; the build stops if the edit did not keep (or did not change) what its name promises."""
    text = EDITS[edit](doc.text, rng)
    similarity = jaccard(grams(doc.text), grams(text))
    if (normalised(text) == normalised(doc.text)) != (edit in SAME_TEXT_EDITS) or (text == doc.text) != (
        edit == "exact"
    ):
        sys.exit(
            f"error: edit {edit!r} of {doc.name} did not do what its name says. Choose another document or seed."
        )
    return Document(
        doc.origin, doc.source, f"{doc.name}#{number}", text, edit, round(similarity, 4), doc.name
    )


# --- choosing ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Pool:
    """A share of the corpus: how many bytes of which candidates, and how many of them go to each holdout split."""

    candidates: list[Candidate]
    max_bytes: int
    holdout: int = 0  # documents for validation, and as many for test
    min_chars: int = 700
    max_chars: int = 24_000


def pools(packages: Path) -> list[Pool]:
    """The recipe: about 6 MB, all seven RedPajama sets, a sixth of it in languages other than English."""

    def stb(_: str, text: str) -> bool:
        return "ALTERNATIVE A - MIT License\nCopyright (c) 2017 Sean Barrett" in text

    def spdx_mit(_: str, text: str) -> bool:
        return "SPDX-License-Identifier: MIT" in text and text.count("SPDX-FileCopyrightText") == 1

    notices = (packages / "python3-networkx/usr/share/doc/python3-networkx/copyright").read_text("utf-8")

    def networkx(path: str, text: str) -> bool:
        own_holder = (
            path.split("dist-packages/")[1] in notices or "copyright" in text.lower()
        )  # would need a notice of its own
        return "/tests/" not in path and not own_holder

    return [
        Pool(list(kjv(packages, KJV_LONG)), 10**6, max_chars=10**6),
        Pool(list(kjv(packages, KJV_SHORT)), 120_000, holdout=2, min_chars=2000),
        Pool(list(devil(packages)), 150_000, holdout=1),
        Pool(list(jargon(packages)), 420_000, holdout=4, min_chars=420),
        Pool(list(sqlite(packages)), 750_000, holdout=3),
        Pool(list(python(packages)), 900_000, holdout=4),
        Pool(list(python_faq(packages)), 160_000, holdout=4, min_chars=300),
        Pool(list(postgresql(packages)), 750_000, holdout=4),
        Pool(list(apache(packages, "en")), 350_000, holdout=2),
        Pool(list(apache(packages, "fr")), 180_000, holdout=1),
        Pool(list(apache(packages, "de")), 140_000, holdout=1),
        Pool(list(apache(packages, "es")), 120_000),
        Pool(list(apache(packages, "tr")), 140_000, holdout=1),
        Pool(list(apache(packages, "ja")), 220_000, holdout=1),
        Pool(list(apache(packages, "ko")), 180_000, holdout=1),
        Pool(list(apache(packages, "zh-cn")), 120_000),
        Pool(list(apache(packages, "ru")), 60_000, max_chars=60_000),
        Pool(list(apache(packages, "pt-br")), 40_000),
        Pool(list(sympy(packages)), 500_000, holdout=2),
        Pool(list(code(packages, "networkx", "usr/lib/**/*.py", networkx)), 330_000, holdout=2),
        Pool(
            list(code(packages, "click", "usr/lib/**/*.py", lambda path, _: "parser.py" not in path)),
            80_000,
            holdout=1,
        ),
        Pool(list(code(packages, "jinja", "usr/lib/**/*.py", lambda *_: True)), 80_000),
        Pool(list(code(packages, "stb", "usr/include/**/*.h", stb)), 130_000, max_chars=40_000),
        Pool(list(code(packages, "nlohmann", "usr/include/**/*.hpp", spdx_mit)), 130_000, holdout=1),
        Pool(
            list(code(packages, "underscore", "usr/share/javascript/**/underscore.js", lambda *_: True)),
            100_000,
            max_chars=100_000,
        ),
    ]


MAX_HOLDOUT_CHARS = 9_000


def choose(pool: Pool, rng: random.Random) -> tuple[list[Document], list[Document], list[Document]]:
    """Draw a pool's train, validation and test documents; no two with the same text."""
    candidates = sorted(pool.candidates)
    rng.shuffle(candidates)
    seen: set[str] = set()
    splits: tuple[list[Document], list[Document], list[Document]] = ([], [], [])
    size = 0
    for origin, source, name, text in candidates:
        fits = pool.min_chars <= len(text) <= pool.max_chars and len(normalised(text)) >= MIN_NORMALISED_CHARS
        if not fits or text in seen:
            continue
        seen.add(text)
        doc = Document(origin, source, f"{origin}/{source}/{name}", text)
        if len(splits[1]) < pool.holdout and len(text) <= MAX_HOLDOUT_CHARS:
            splits[1].append(doc)
        elif len(splits[2]) < pool.holdout and len(text) <= MAX_HOLDOUT_CHARS:
            splits[2].append(doc)
        elif size + len(text.encode("utf-8")) <= pool.max_bytes:
            size += len(text.encode("utf-8"))
            splits[0].append(doc)
    return splits


# --- records ----------------------------------------------------------------------------------------------------------


def record(doc: Document, rng: random.Random) -> bytes:
    """The document's line. One in ten is pure ASCII, all else escaped: both forms occur in the wild."""
    value = {"text": doc.text, "meta": {"redpajama_set_name": doc.source}}
    return json.dumps(value, ensure_ascii=rng.random() < 0.1).encode("utf-8")


def bad_lines(doc: Document, latin: Document) -> list[tuple[str, bytes]]:
    """(reason, line) of every kind of record that a reader must refuse without stopping."""
    meta = {"redpajama_set_name": doc.source}
    text = doc.text[:400]
    whole = json.dumps({"text": text, "meta": meta}, ensure_ascii=False)
    latin_line = json.dumps({"text": latin.text[:600], "meta": meta}, ensure_ascii=False).encode(
        "latin-1", "replace"
    )
    surrogate = json.dumps({"text": f"{text[:300]} \ud800 {text[300:]}", "meta": meta})
    return [
        ("invalid_json", whole[: len(whole) // 2].encode()),  # cut off, as by a full disk
        ("invalid_json", whole.replace('"', "'").encode()),  # a Python repr written in place of JSON
        ("invalid_utf8", latin_line),
        ("not_an_object", json.dumps([text, doc.source]).encode()),
        ("not_an_object", json.dumps(text).encode()),
        ("missing_text", json.dumps({"content": text, "meta": meta}).encode()),
        ("null_text", json.dumps({"text": None, "meta": meta}).encode()),
        ("text_not_string", json.dumps({"text": 20231, "meta": meta}).encode()),
        ("text_not_string", json.dumps({"text": [text[:80], text[80:]], "meta": meta}).encode()),
        ("lone_surrogate", surrogate.encode()),
        ("blank_line", b""),
        ("blank_line", b"   "),
    ]


def _cut(text: str, length: int) -> str:
    """The start of `text` that has `length` characters after normalisation and ends with a word; "" if there is none."""
    words = [m.end() for m in re.finditer(r"\w+\b", text)]
    return next((text[:end] for end in words if len(normalised(text[:end])) == length), "")


def short_documents(candidates: list[Candidate], rng: random.Random) -> list[Document]:
    """Documents that the length rule drops, with the two borderline cases and one that is long only before normalisation."""
    short = [c for c in sorted(candidates) if 40 < len(normalised(c[3])) < MIN_NORMALISED_CHARS - 10]
    docs = [Document(o, s, f"short/{n}", t) for o, s, n, t in rng.sample(short, 18)]
    longer = (c for c in sorted(candidates) if len(normalised(c[3])) > 600)
    for length in (MIN_NORMALISED_CHARS - 1, MIN_NORMALISED_CHARS):
        origin, source, name, text = next(c for c in longer if _cut(c[3], length))
        docs.append(Document(origin, source, f"border/{length}/{name}", _cut(text, length)))
    rule = "-" * 100
    docs.append(Document(*short[0][:2], f"ruled/{short[0][2]}", f"{rule}\n{short[0][3]}\n{rule}"))
    return docs


# --- the whole ----------------------------------------------------------------------------------------------------------


def plant(
    train: list[Document], validation: list[Document], alike: set[str], rng: random.Random
) -> list[Document]:
    """The copies to add to `train`: clusters within it, and copies of validation documents."""
    copies: list[Document] = []
    plain = [d for d in train if d.name not in alike and 1500 <= len(d.text) <= 20_000]
    spaced = [d for d in plain if len(d.text.split()) * 12 > len(d.text) and d.text.isascii()]
    for doc in rng.sample(spaced, 44):
        copies += [
            copy_of(doc, rng.choice(WORD_EDITS), rng, number + 1)
            for number in range(rng.choice([1, 1, 1, 2, 2, 3]))
        ]
    unspaced = [
        d for d in plain if len(re.findall(r"[\u3040-\u30ff\u4e00-\u9fff]", d.text)) * 4 > len(d.text)
    ]
    for number, doc in enumerate(rng.sample(unspaced, 3)):
        copies.append(copy_of(doc, "exact" if number == 0 else "characters_0.3%", rng, 1))
    accented = [d for d in plain if "apache/" in d.name and "/fr/" in d.name]
    copies += [
        copy_of(doc, edit, rng, 1)
        for doc, edit in zip(rng.sample(accented, 2), ("nfd", "words_0.3%"), strict=True)
    ]
    held = [d for d in validation if d.name not in alike and d.text.isascii() and len(d.text) >= 1500]
    for number, (doc, edit) in enumerate(
        zip(
            rng.sample(held, 7),
            ("exact", "exact", "exact", "whitespace", "case", "words_0.3%", "words_1%"),
            strict=True,
        )
    ):
        copy = copy_of(doc, edit, rng, 90 + number)
        copy.family, copy.holdout_of = "", doc.name
        copies.append(copy)
    return copies


def compress(lines: list[bytes], *, final_newline: bool) -> tuple[bytes, int]:
    """One zstd frame of the joined lines, and the size of its content in bytes."""
    blob = b"\n".join(lines) + (b"\n" if final_newline else b"")
    return zstandard.ZstdCompressor(level=19, write_checksum=True).compress(blob), len(blob)


def build(packages: Path, out: Path) -> None:
    """Write the corpus and truth.json. Exits with a message if an input is missing or a planted property does not hold."""
    rng = random.Random(SEED)
    missing = [o.package for o in ORIGINS.values() if not (packages / o.package).is_dir()]
    if missing:
        sys.exit(
            f"error: {packages} lacks the unpacked packages {', '.join(missing)}. See the top of tools/build_sample.py."
        )
    train: list[Document] = []
    validation: list[Document] = []
    test: list[Document] = []
    all_pools = pools(packages)
    for pool in all_pools:
        for split, drawn in zip((train, validation, test), choose(pool, rng), strict=True):
            split.extend(drawn)

    originals = train + validation + test
    pairs = natural_pairs(originals)
    alike = {originals[k].name for i, j, _ in pairs for k in (i, j)}
    copies = plant(train, validation, alike, rng)
    used = {d.name for d in originals}
    short = short_documents([c for c in jargon(packages) if f"{c[0]}/{c[1]}/{c[2]}" not in used], rng)
    special = next(
        d
        for d in train
        if d.origin == "python" and d.name not in alike and d.name not in {c.family for c in copies}
    )
    middle = special.text.index("\n\n", len(special.text) // 2)
    special.text = f"{special.text[:middle]}\n\nThe text <|endoftext|> is not the end.{special.text[middle:]}<|endoftext|>"
    for doc in copies:
        if doc.family:
            next(d for d in train if d.name == doc.family).family = doc.family

    train = train + copies + short
    for split in (train, validation, test):
        rng.shuffle(split)
    latin = next(d for d in train if d.origin == "apache" and "/fr/" in d.name)
    bad = bad_lines(
        next(d for d in train if d.origin == "postgresql" and len(d.text) > 2000 and d.text.isascii()), latin
    )

    # Contiguous runs of about equal size go to the five files; then the bad lines are put in between.
    total = sum(len(d.text.encode("utf-8")) for d in train)
    files: dict[str, list[Document | tuple[str, bytes]]] = {
        name: [] for name in [*TRAIN_FILES, VALIDATION_FILE, TEST_FILE]
    }
    size = 0
    for doc in train:
        files[TRAIN_FILES[min(len(TRAIN_FILES) - 1, size * len(TRAIN_FILES) // total)]].append(doc)
        size += len(doc.text.encode("utf-8"))
    files[VALIDATION_FILE] += validation
    files[TEST_FILE] += test
    for number, item in enumerate(bad):
        entries = files[TRAIN_FILES[number % len(TRAIN_FILES)]]
        entries.insert(rng.randrange(1, len(entries)), item)
    files[TEST_FILE].insert(3, bad[5])

    truth = write(files, out, rng)
    places = truth.pop("places")
    truth["natural_pairs"] = sorted(
        (
            {"a": places[originals[i].name], "b": places[originals[j].name], "jaccard": round(s, 4)}
            for i, j, s in pairs
        ),
        key=lambda p: (p["a"]["file"], p["a"]["line"], p["b"]["file"], p["b"]["line"]),
    )
    licences = (out / "LICENSES.md").read_text("utf-8")
    for origin in truth["origins"]:
        if origin["title"] not in licences or origin["copyright"] not in licences:
            sys.exit(
                f"error: {out / 'LICENSES.md'} does not name {origin['title']!r} with its copyright. Add it there."
            )
    (out / "truth.json").write_text(one_item_per_line(truth), "utf-8")


def write(
    files: dict[str, list[Document | tuple[str, bytes]]], out: Path, rng: random.Random
) -> dict[str, Any]:
    """Write the compressed files; returns truth.json's content, and under "places" where each named document stands."""
    places: dict[str, dict[str, Any]] = {}
    clusters: dict[str, list[dict[str, Any]]] = {}
    holdout_copies = []
    rejects = []
    shorts = []
    special = []
    contents = []
    origin_ids = list(ORIGINS)
    counts = {key: [0, 0] for key in ORIGINS}
    last_train = TRAIN_FILES[-1]
    for file, entries in files.items():
        lines: list[bytes] = []
        origins: list[int | None] = []
        text_bytes = 0
        for line, entry in enumerate(entries):
            place = {"file": file, "line": line}
            if isinstance(entry, tuple):
                rejects.append({**place, "reason": entry[0]})
                lines.append(entry[1])
                origins.append(None)
                continue
            lines.append(record(entry, rng))
            origins.append(origin_ids.index(entry.origin))
            places[entry.name] = place
            size = len(entry.text.encode("utf-8"))
            text_bytes += size
            counts[entry.origin][0] += 1
            counts[entry.origin][1] += size
            if entry.family:
                clusters.setdefault(entry.family, []).append(
                    {**place, "edit": entry.edit, "jaccard": entry.jaccard}
                )
            if entry.holdout_of:
                holdout_copies.append((entry, place))
            if len(normalised(entry.text)) < MIN_NORMALISED_CHARS:
                shorts.append({**place, "normalised_characters": len(normalised(entry.text))})
            if "<|endoftext|>" in entry.text:
                special.append({**place, "occurrences": entry.text.count("<|endoftext|>")})
        blob, size = compress(lines, final_newline=file != last_train)
        (out / file).parent.mkdir(parents=True, exist_ok=True)
        (out / file).write_bytes(blob)
        contents.append(
            {"file": file, "lines": len(lines), "bytes": size, "text_bytes": text_bytes, "origins": origins}
        )
    return {
        "about": "What is in the sample corpus and what was planted in it; README.md explains each key. Lines are counted from 0.",
        "seed": SEED,
        "origins": [
            {**vars(ORIGINS[key]), "documents": counts[key][0], "bytes": counts[key][1]} for key in ORIGINS
        ],
        "files": contents,
        "clusters": list(clusters.values()),
        "holdout_copies": [
            {**p, "of": places[d.holdout_of], "edit": d.edit, "jaccard": d.jaccard} for d, p in holdout_copies
        ],
        "bad_records": rejects,
        "short_documents": shorts,
        "special_text": special,
        "places": places,
    }


def one_item_per_line(value: dict[str, Any]) -> str:
    """JSON in which every item of a top-level list has a line of its own: it can be read, searched and compared."""
    parts = []
    for key, item in value.items():
        if isinstance(item, list):
            rows = ",\n".join(f"  {json.dumps(row, ensure_ascii=False)}" for row in item)
            parts.append(f"{json.dumps(key)}: [\n{rows}\n]")
        else:
            parts.append(f"{json.dumps(key)}: {json.dumps(item, ensure_ascii=False)}")
    return "{\n" + ",\n".join(parts) + "\n}\n"


def main() -> None:
    """Read the command line and build."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("packages", type=Path, help="folder with one unpacked Debian package per subfolder")
    parser.add_argument("out", type=Path, help="folder of the corpus; holds LICENSES.md already")
    args = parser.parse_args()
    os.environ["COLUMNS"] = "80"  # `bible` reads it
    build(args.packages, args.out)


if __name__ == "__main__":
    main()
