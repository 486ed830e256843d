#!/usr/bin/env python3
"""Build a real-text corpus in the SlimPajama on-disk layout, with known near-duplicates.

The text comes from Debian documentation packages (fetched with `apt-get download`, so run `apt-get update`
once first), the records look exactly like SlimPajama's:

    OUT/train/chunk1/example_train_0.jsonl.zst      {"text": ..., "meta": {"redpajama_set_name": ...}}
    OUT/validation/chunk1/example_holdout_0.jsonl.zst
    OUT/test/chunk1/example_holdout_0.jsonl.zst
    OUT/truth.json     what was planted: clusters of (file, line) that are copies of one document

Usage:
    .venv/bin/python tools/build_corpus.py OUT [--mb 400] [--seed 0] [--dup-rate 0.10]
                                               [--docs-per-file 4000] [--cache DIR]

Needs the package zstandard, which `make demo` and `pip install .` install. About 3 minutes and 2 GB of
scratch space for the default size.
"""

from __future__ import annotations

import argparse
import gzip
import json
import random
import re
import subprocess
import sys
import tarfile
from html.parser import HTMLParser
from pathlib import Path

try:
    import zstandard
except ModuleNotFoundError:
    sys.exit(
        "This needs the package zstandard. Run it in the environment that `make demo` makes: "
        ".venv/bin/python tools/build_corpus.py OUT"
    )

HTML = {  # package -> SlimPajama source name it stands in for
    "linux-doc-6.1": "RedPajamaCommonCrawl",
    "openjdk-17-doc": "RedPajamaCommonCrawl",
    "libboost1.81-doc": "RedPajamaCommonCrawl",
    "python3.11-doc": "RedPajamaC4",
    "apache2-doc": "RedPajamaC4",
    "debian-policy": "RedPajamaC4",
    "developers-reference": "RedPajamaC4",
    "debian-handbook": "RedPajamaBook",
    "git-doc": "RedPajamaStackExchange",
    "aptitude-doc-en": "RedPajamaStackExchange",
    "postgresql-doc-15": "RedPajamaWikipedia",
    "debian-reference-en": "RedPajamaWikipedia",
    "debian-reference-fr": "RedPajamaWikipedia",
    "debian-reference-ja": "RedPajamaWikipedia",
    "debian-reference-zh-cn": "RedPajamaWikipedia",
    "r-doc-html": "RedPajamaArXiv",
}
ROFF = [
    "manpages",
    "manpages-dev",
    "manpages-fr",
    "manpages-de",
    "manpages-es",
    "manpages-ja",
    "manpages-zh",
    "manpages-ru",
]
TEXT = {"perl-doc": ((".pod",), "RedPajamaArXiv"), "bible-kjv-text": ((".txt", ".gz"), "RedPajamaBook")}
CODE = "linux-source-6.1"
SKIPPED = {"script", "style", "nav", "head"}
BREAKS = {"p", "div", "br", "li", "tr", "h1", "h2", "h3", "h4", "pre", "dt", "dd", "td"}


class _Text(HTMLParser):
    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.parts: list[str] = []
        self.skip = 0

    def handle_starttag(self, tag, attrs):
        self.skip += tag in SKIPPED
        if tag in BREAKS:
            self.parts.append("\n")

    def handle_endtag(self, tag):
        self.skip = max(0, self.skip - (tag in SKIPPED))

    def handle_data(self, data):
        if not self.skip:
            self.parts.append(data)


def html_to_text(page: str) -> str:
    parser = _Text()
    parser.feed(page)
    text = re.sub(r"[ \t]+", " ", "".join(parser.parts))
    return re.sub(r"\n\s*\n+", "\n\n", text).strip()


def roff_to_text(page: str) -> str:
    page = re.sub(r'^\.\\".*$', "", page, flags=re.M)
    page = re.sub(r"^\.[A-Za-z]{1,3}\s?", "", page, flags=re.M)
    return re.sub(r"\\f.|\\-|\\&|\\\(..", "", page)


def read(path: Path) -> str:
    data = path.read_bytes()
    if path.suffix == ".gz":
        data = gzip.decompress(data)
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        return data.decode("latin-1")


def unpack(package: str, cache: Path) -> Path:
    """Download and unpack one Debian package; returns its folder."""
    target = cache / package
    if target.exists():
        return target
    debs = cache / "debs"
    debs.mkdir(parents=True, exist_ok=True)
    subprocess.run(["apt-get", "download", "-qq", package], cwd=debs, check=True, stdout=subprocess.DEVNULL)
    deb = next(debs.glob(f"{package}_*.deb"))
    partial = cache / f"{package}.partial"
    subprocess.run(["dpkg", "-x", str(deb), str(partial)], check=True)
    partial.rename(target)
    return target


def files(root: Path, suffixes: tuple[str, ...]):
    for path in sorted(root.rglob("*")):
        if path.is_file() and not path.is_symlink() and path.name.endswith(suffixes):
            yield path


def documents(cache: Path, budget: int):
    """Yields (source, text) until about `budget` characters were given; code is capped at 30% of it."""
    given = 0
    for package, source in HTML.items():
        for path in files(unpack(package, cache), (".html", ".htm", ".html.gz")):
            text = html_to_text(read(path))
            given += len(text)
            yield source, text
            if given > budget * 0.6:
                break
    for package in ROFF:
        for path in files(unpack(package, cache), (".gz",)):
            yield "RedPajamaStackExchange", roff_to_text(read(path))
    for package, (suffixes, source) in TEXT.items():
        for path in files(unpack(package, cache), suffixes):
            yield source, read(path)
    code = 0
    archive = next(unpack(CODE, cache).rglob("linux-source-*.tar.xz"))
    with tarfile.open(archive, "r|xz") as tar:
        for member in tar:
            if member.isfile() and member.name.endswith((".c", ".h", ".rst")):
                text = tar.extractfile(member).read().decode("utf-8", "replace")
                code += len(text)
                yield "RedPajamaGithub", text
                if code > budget * 0.3:
                    return


def edited(text: str, rate: float, rng: random.Random) -> str:
    """A near-duplicate: `rate` of the words are replaced."""
    words = text.split(" ")
    for _ in range(int(len(words) * rate)):
        words[rng.randrange(len(words))] = rng.choice(["item", "the", "value", "other", "zq"])
    return " ".join(words)


def write_split(out: Path, split: str, stem: str, docs: list[tuple[str, str]], per_file: int) -> None:
    folder = out / split / "chunk1"
    folder.mkdir(parents=True, exist_ok=True)
    for k in range(0, len(docs), per_file):
        lines = (
            json.dumps({"text": t, "meta": {"redpajama_set_name": s}}, ensure_ascii=False)
            for s, t in docs[k : k + per_file]
        )
        blob = ("\n".join(lines) + "\n").encode("utf-8", "replace")
        (folder / f"{stem}_{k // per_file}.jsonl.zst").write_bytes(
            zstandard.ZstdCompressor(level=3).compress(blob)
        )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path)
    parser.add_argument("--mb", type=int, default=400, help="about how much text, in MB of UTF-8")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--dup-rate", type=float, default=0.10, help="share of documents that get 1-3 copies")
    parser.add_argument("--docs-per-file", type=int, default=4000)
    parser.add_argument("--cache", type=Path, default=Path.home() / ".cache" / "btlm-corpus")
    args = parser.parse_args()

    rng = random.Random(args.seed)
    docs = [d for d in documents(args.cache, args.mb * 1_000_000) if len(d[1]) > 50]
    rng.shuffle(docs)
    size, cut = 0, len(docs)
    for i, (_, text) in enumerate(docs):
        size += len(text.encode("utf-8", "replace"))
        if size > args.mb * 1_000_000:
            cut = i + 1
            break
    docs = docs[:cut]
    held = max(20, len(docs) // 100)
    validation, test, train = docs[:held], docs[held : 2 * held], docs[2 * held :]

    tagged = [(i, 0.0, s, t) for i, (s, t) in enumerate(train)]
    for i, (s, t) in enumerate(train):
        if rng.random() < args.dup_rate:
            for _ in range(rng.randint(1, 3)):
                rate = rng.choice([0.0, 0.0, 0.003, 0.01])
                tagged.append((i, rate, s, edited(t, rate, rng)))
    rng.shuffle(tagged)
    clusters: dict[int, list] = {}
    for position, (origin, rate, _, _) in enumerate(tagged):
        file, line = divmod(position, args.docs_per_file)
        clusters.setdefault(origin, []).append(
            {"file": f"train/chunk1/example_train_{file}.jsonl.zst", "line": line, "edit_rate": rate}
        )
    args.out.mkdir(parents=True, exist_ok=True)
    write_split(args.out, "train", "example_train", [(s, t) for _, _, s, t in tagged], args.docs_per_file)
    write_split(args.out, "validation", "example_holdout", validation, args.docs_per_file)
    write_split(args.out, "test", "example_holdout", test, args.docs_per_file)
    planted = [c for c in clusters.values() if len(c) > 1]
    (args.out / "truth.json").write_text(json.dumps({"clusters": planted, "train_documents": len(tagged)}))
    print(
        f"{len(tagged)} train documents ({len(planted)} planted clusters), {held} validation, {held} test -> "
        f"{args.out}",
        file=sys.stderr,
    )


if __name__ == "__main__":
    main()
