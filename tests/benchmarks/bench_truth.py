"""Deduplication against planted truth: which copies are found, and which distinct documents are lost.

    python -m tests.benchmarks.bench_truth CORPUS [--documents N] [--pages N]

CORPUS: a folder of SlimPajama's layout (tools/build_corpus.py). From its texts are made: originals; copies of them (exact,
0.3, 1 and 5 % of the words edited, truncated to 95 %, re-cased, re-flowed); hard negatives, which are distinct documents (pages of one
template with other content, one licence header over different texts, one table with other numbers, different texts that
quote the same half page); a hot cluster of template pages; chains A-B-C, where A and C differ. Prints a row for each
way to decide: recall of copies, recall of pairs of exact Jaccard similarity of 0.85 or more, distinct documents removed.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
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


def measure(truth: Truth, way: dict[str, object], folder: Path) -> dict[str, float]:
    """Prepare with one way to decide, and compare with the truth."""
    source = folder / "in"
    if not source.exists():
        source.mkdir()
        lines = (json.dumps({"text": text, "meta": {"redpajama_set_name": "web"}}) for text in truth.texts)
        (source / "a.jsonl").write_text("".join(f"{line}\n" for line in lines))
    with tempfile.TemporaryDirectory(dir=folder) as out:
        given: dict[str, object] = {
            "source.name": str(source),
            "run.out": f"{out}/out",
            "run.workers": 1,
            "run.accept_removal": True,
            "clean.min_chars": 0,
            **way,
        }
        before = resource.getrusage(resource.RUSAGE_SELF)
        children = resource.getrusage(resource.RUSAGE_CHILDREN)
        pipeline.prepare(load(None, {key: (value, "bench") for key, value in given.items()}), Lines())
        after = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
        seconds = sum(
            now.ru_utime + now.ru_stime - then.ru_utime - then.ru_stime
            for now, then in zip(after, (before, children), strict=True)
        )
        gone = set(pq.read_table(f"{out}/out/removals.parquet", columns=["line"])["line"].to_pylist())
    alike = [
        copy
        for copy, original in truth.original.items()
        if jaccard(features(truth.texts[copy]), features(truth.texts[original])) >= 0.85
    ]
    size = sum(len(text.encode()) for text in truth.texts) / 1e6
    return {
        "recall of copies": sum(copy in gone for copy in truth.original) / len(truth.original),
        "recall at 0.85": sum(copy in gone for copy in alike) / len(alike),
        "distinct removed": len(truth.distinct & gone),
        "CPU ms a MB": 1000 * seconds / size,
    }


def main() -> None:
    """Build the corpus and print a row for each way."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("corpus", type=Path)
    parser.add_argument("--documents", type=int, default=8000)
    parser.add_argument("--pages", type=int, default=200_000)
    options = parser.parse_args()
    truth = build(options.corpus, options.documents, options.pages, random.Random(1))
    size = sum(len(text) for text in truth.texts) / 1e6
    print(
        f"{len(truth.texts):,} documents, {size:.0f} MB; {len(truth.original):,} copies, {len(truth.distinct):,} distinct"
    )
    with tempfile.TemporaryDirectory() as folder:
        for name, way in WAYS.items():
            found = measure(truth, way, Path(folder))
            print(f"{name:20}" + "".join(f"  {key} {value:.4g}" for key, value in found.items()), flush=True)


if __name__ == "__main__":
    main()
