"""Deduplication against planted truth: which copies are found, and which distinct documents are lost.

    python -m tests.benchmarks.bench_truth CORPUS [--documents N] [--pages N] [--only WAY] [--peer NAME=PYTHON]

CORPUS: a folder of SlimPajama's layout (tools/build_corpus.py). From its texts are made: originals; copies of them (exact,
0.3, 1 and 5 % of the words edited, truncated to 95 %, re-cased, re-flowed); hard negatives, which are distinct documents (pages of one
template with other content, one licence header over different texts, one table with other numbers, different texts that
quote the same half page); a hot cluster of template pages; chains A-B-C, where A and C differ. Prints a row for each
way to decide: recall of copies, recall of pairs of exact Jaccard similarity of 0.85 or more, distinct documents removed.
--peer (repeatable): also another program, by an environment's Python that has it (peer_dedupe.py says how to make one).
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import subprocess
import tempfile
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import pyarrow.parquet as pq
import xxhash
import zstandard

from btlm_data import pipeline
from btlm_data.progress import Lines
from btlm_data.recipe.load import load
from tests.reference.shingles import features, jaccard

WAYS: dict[str, dict[str, object]] = {
    "none, 16 x 8": {"dedupe.verify": "none"},
    "signature, 16 x 8": {"dedupe.verify": "signature"},
    "text": {},
    "slimpajama": {"dedupe.preset": "slimpajama"},
}


@dataclass
class Truth:
    """Texts in order. original: of each copy, the place of what it is a copy of; distinct: places of documents like no other."""

    texts: list[str] = field(default_factory=list)
    original: dict[int, int] = field(default_factory=dict)
    distinct: set[int] = field(default_factory=set)

    def add(self, text: str, original: int | None = None, *, distinct: bool = False) -> int:
        """Append a text; returns its place."""
        place = len(self.texts)
        self.texts.append(text)
        if original is not None:
            self.original[place] = original
        if distinct:
            self.distinct.add(place)
        return place

    def recall(self, copies: Collection[int], gone: set[int]) -> float:
        """Of some copies, those that do not stay beside what they are copies of. Which of the two goes is a program's choice."""
        return sum(copy in gone or self.original[copy] in gone for copy in copies) / len(copies)

    def lost(self, gone: set[int]) -> set[int]:
        """Distinct documents of which neither they nor a copy of them is left."""
        left = {original for copy, original in self.original.items() if copy not in gone}
        return (self.distinct & gone) - left


def originals(corpus: Path, count: int) -> Iterator[str]:
    """Texts of 1,500 to 20,000 characters, no two of which share more than a third of their features (by one in 32 of these)."""
    seen: dict[str, list[int]] = {}
    for path in sorted(corpus.glob("train/**/*.zst")):
        data = zstandard.ZstdDecompressor().stream_reader(path.read_bytes()).read()
        for line in data.split(b"\n"):
            text = json.loads(line)["text"] if line else ""
            if not 1500 <= len(text) <= 20_000:
                continue
            sample = [one for one in features(text) if xxhash.xxh3_64_intdigest(one.encode()) % 32 == 0]
            near = Counter(place for one in sample for place in seen.get(one, ()))
            if max(near.values(), default=0) <= 0.3 * len(sample):
                for one in sample:
                    seen.setdefault(one, []).append(count)
                yield text
                count -= 1
                if count == 0:
                    return


def edited(text: str, share: float, rng: random.Random) -> str:
    """A share of the words replaced, one at least."""
    words = text.split(" ")
    for place in rng.sample(range(len(words)), max(1, round(share * len(words)))):
        words[place] = rng.choice(("entirely", "otherwise", "some7", "xyzzy", "nobody"))
    return " ".join(words)


def build(corpus: Path, num_documents: int, num_pages: int, rng: random.Random) -> Truth:
    """The documents, in a seeded order but for originals, which come before their copies."""
    base = list(originals(corpus, num_documents))
    truth = Truth()
    places = [truth.add(text, distinct=True) for text in base[: num_documents // 2]]
    kinds: list[Callable[[str], str]] = [
        lambda text: text,
        lambda text: edited(text, 0.003, rng),
        lambda text: edited(text, 0.01, rng),
        lambda text: edited(text, 0.05, rng),
        lambda text: text[: int(0.95 * len(text))],
        lambda text: text.upper(),
        lambda text: "\n\n".join(text.split("\n")).replace(" ", "  "),
    ]
    for place in places:
        truth.add(rng.choice(kinds)(truth.texts[place]), place)
    rest = base[num_documents // 2 :]
    header, licence, quotation = rest[0][:1200], rest[1][:1500], rest[2][:1400]
    for k, text in enumerate(rest[3:]):
        if k % 4 == 0:
            truth.add(f"{header}\n{text[:900]}\n{header[:300]}", distinct=True)
        elif k % 4 == 1:
            truth.add(f"{licence}\n{text[:1200]}", distinct=True)
        elif k % 4 == 2:
            half = len(text) // 2
            truth.add(f"{text[:half]}\n> {quotation}\n{text[half:]}", distinct=True)
        else:
            rows = (
                f"station {i:03d} pressure {rng.random():.6f} height {rng.random():.6f}" for i in range(60)
            )
            truth.add("\n".join(rows), distinct=True)
    template = " ".join(rest[0].split()[:150])
    vocabulary = sorted({word for text in rest[:200] for word in text.split()})
    for _ in range(num_pages):
        truth.add(f"{template} {' '.join(rng.choices(vocabulary, k=60))}", distinct=True)
    for text in rest[3:203]:
        words = text.split()
        if len(words) >= 400:
            a = truth.add(" ".join(words[:300]))
            truth.add(" ".join(words[22:322]), a)
            truth.add(" ".join(words[100:400]), distinct=True)
    return truth


def usage() -> float:
    """CPU seconds of this process and of all that it has waited for."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in used)


def ours(way: dict[str, object], source: Path, folder: Path) -> set[int]:
    """Prepare with one way to decide; returns the lines that go."""
    with tempfile.TemporaryDirectory(dir=folder) as out:
        given: dict[str, object] = {
            "source.name": str(source),
            "run.out": f"{out}/out",
            "run.workers": 1,
            "run.accept_removal": True,
            "clean.min_chars": 0,
            **way,
        }
        pipeline.prepare(load(None, {key: (value, "bench") for key, value in given.items()}), Lines())
        return set(pq.read_table(f"{out}/out/removals.parquet", columns=["line"])["line"].to_pylist())


def peers(name: str, python: str, source: Path, folder: Path, count: int) -> set[int]:
    """Deduplicate with another program; returns the lines that go."""
    with tempfile.TemporaryDirectory(dir=folder) as out:
        script = Path(__file__).with_name("peer_dedupe.py")
        command = [python, str(script), name, str(source), f"{out}/{name}"]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        return set(range(count)) - set(json.loads(Path(f"{out}/{name}/kept.json").read_text()))


def alike(truth: Truth) -> set[int]:
    """Copies whose exact similarity to their originals is 0.85 or more."""
    return {
        copy
        for copy, original in truth.original.items()
        if jaccard(features(truth.texts[copy]), features(truth.texts[original])) >= 0.85
    }


def main() -> None:
    """Build the corpus and print a row for each way."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("corpus", type=Path)
    parser.add_argument("--documents", type=int, default=8000)
    parser.add_argument("--pages", type=int, default=200_000)
    parser.add_argument("--only", action="append", metavar="WAY", help="of ours; default: all")
    parser.add_argument("--peer", action="append", default=[], metavar="NAME=PYTHON")
    options = parser.parse_args()
    truth = build(options.corpus, options.documents, options.pages, random.Random(1))
    size = sum(len(text.encode()) for text in truth.texts) / 1e6
    copies = alike(truth)
    print(
        f"{len(truth.texts):,} documents, {size:.0f} MB; {len(truth.original):,} copies, {len(copies):,} of them alike; "
        f"{len(truth.distinct):,} distinct"
    )
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        source = folder / "in/a.jsonl"
        source.parent.mkdir()
        records = ({"text": t, "id": str(i), "meta": {}} for i, t in enumerate(truth.texts))
        source.write_text("".join(json.dumps(record) + "\n" for record in records))
        ways: dict[str, Callable[[], set[int]]] = {
            way: partial(ours, settings, source.parent, folder)
            for way, settings in WAYS.items()
            if options.only is None or way in options.only
        }
        for peer in options.peer:
            program, _, python = peer.partition("=")
            ways[program] = partial(peers, program, python, source, folder, len(truth.texts))
        for way, run in ways.items():
            before = usage()
            gone = run()
            found = {
                "recall of copies": truth.recall(truth.original.keys(), gone),
                "recall at 0.85": truth.recall(copies, gone),
                "distinct removed": len(truth.lost(gone)),
                "CPU ms a MB": 1000 * (usage() - before) / size,
            }
            print(f"{way:20}" + "".join(f"  {key} {value:.4g}" for key, value in found.items()), flush=True)


if __name__ == "__main__":
    main()
