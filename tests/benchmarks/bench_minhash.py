"""Sketching (normalise, hash every 13-gram, 128 permutations, bands) against datasketch on the same documents, one core.

Theirs is given SlimPajama's features and its own SHA-1 hash: `update_batch` over a document's features, and the reference scripts' loop,
`update` feature by feature; making the features is part of both. Ours begins where the read stage does, with the documents' UTF-8
in blocks of 16 MB, and normalises them first. Also: the planted near-duplicates of the
corpus (truth.json, tools/build_corpus.py), recall by edit rate and precision by exact Jaccard similarity, decided end to end.

BTLM_BENCH_CORPUS names the corpus; without it the sample inside the package is used.
"""

from __future__ import annotations

import itertools
import json
import os
import tempfile
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from time import process_time
from typing import Any

import numpy as np
import numpy.typing as npt
import zstandard

from tests.reference import minhash as reference

SAMPLE = Path(__file__).resolve().parents[2] / "btlm_data/data/sample"
OURS_BYTES = 64_000_000
BLOCK_BYTES = 16_000_000
BATCH_BYTES = 3_000_000
LOOP_BYTES = 500_000
MIN_CHARS = 200  # of normalised text: clean.min_chars


def run() -> list[dict[str, Any]]:
    """Rows of MB/s and their ratios, then recall and precision."""
    return [*speed(), *planted()]


def corpus() -> Path:
    return Path(os.environ.get("BTLM_BENCH_CORPUS") or SAMPLE)


def documents_with_offsets(split: str = "train") -> Iterator[tuple[str, int, int, str]]:
    """(file, line, offset in the decompressed file, text) of every record whose text is not too short for `prepare`."""
    for path in sorted(corpus().glob(f"{split}/**/*.jsonl.zst")):
        with path.open("rb") as file:
            lines = (
                zstandard.ZstdDecompressor().stream_reader(file, read_across_frames=True).read().split(b"\n")
            )
        offset = 0
        for number, line in enumerate(lines):
            begin, offset = offset, offset + len(line) + 1
            try:
                text = json.loads(line)["text"]
                text.encode()
            except (ValueError, KeyError, TypeError, AttributeError):
                continue
            text = unicodedata.normalize("NFC", text)
            if len(reference.normalise(text)) >= MIN_CHARS:
                yield path.relative_to(corpus()).as_posix(), number, begin, text


def speed() -> list[dict[str, Any]]:
    """Seconds per MB on documents spread over the corpus, so that every size and script is in."""
    import datasketch

    from btlm_data.kernels import minhash, normalisation

    texts = [text for *_, text in documents_with_offsets()]
    order = np.random.default_rng(0).permutation(len(texts))

    def taken(most: int) -> list[str]:
        sizes = np.cumsum([len(texts[i].encode()) for i in order])
        return [texts[i] for i in order[: max(1, int(np.searchsorted(sizes, most)))]]

    def ours(blocks: list[Block]) -> None:
        for some, utf8, offsets in blocks:
            n = normalisation.normalise(some, utf8, offsets)
            minhash.exact_hashes(n.utf8, n.offsets)
            minhash.band_keys(minhash.signatures(n), 9, 13)

    def batch(some: list[str]) -> None:
        for text in some:
            datasketch.MinHash(num_perm=128).update_batch(reference.features(text))

    def loop(some: list[str]) -> None:
        for text in some:
            m = datasketch.MinHash(num_perm=128)
            for feature in reference.features(text):
                m.update(feature)

    blocks = _blocks(taken(OURS_BYTES))
    ours(blocks[:1])  # compiled
    rows = []
    for name, theirs, most, budget in (
        ("update_batch", batch, BATCH_BYTES, "at least 120x, aim 150x"),
        ("update loop", loop, LOOP_BYTES, "at least 500x"),
    ):
        some = taken(most)
        sizes = (sum(len(utf8) for _, utf8, _ in blocks), sum(len(text.encode()) for text in some))
        mine, other = _seconds([lambda: ours(blocks), lambda theirs=theirs, some=some: theirs(some)])  # type: ignore[misc]
        rate, other = sizes[0] / mine / 1e6, sizes[1] / other / 1e6
        rows.append(
            {
                "name": f"sketch, against datasketch {name}",
                "ours": rate,
                "theirs": other,
                "ratio": rate / other,
                "unit": "MB/s",
                "budget": budget,
            }
        )
    return rows


Block = tuple[list[str], npt.NDArray[np.uint8], npt.NDArray[np.int64]]


def _blocks(texts: list[str]) -> list[Block]:
    """Documents as the read stage holds them: 16 MB of UTF-8 and its offsets."""
    blocks: list[Block] = []
    while texts:
        sizes = np.cumsum([len(text.encode()) for text in texts])
        count = int(np.searchsorted(sizes, BLOCK_BYTES)) + 1
        some, texts = texts[:count], texts[count:]
        offsets = np.concatenate((np.zeros(1, np.int64), sizes[:count]))
        blocks.append((some, np.frombuffer("".join(some).encode(), np.uint8), offsets))
    return blocks


def _seconds(sides: list[Callable[[], None]], rounds: int = 5) -> list[float]:
    """CPU seconds of each side, the best of some rounds taken in turn, so that a busy machine meets all alike."""
    best = [float("inf")] * len(sides)
    for _ in range(rounds):
        for i, function in enumerate(sides):
            start = process_time()
            function()
            best[i] = min(best[i], process_time() - start)
    return best


def planted() -> list[dict[str, Any]]:
    """Recall of planted copies by edit rate, and the exact similarity of what was removed to what its cluster keeps."""
    import pyarrow.parquet as pq

    import btlm_data

    # file and offset of the record -> its place among the documents
    places: dict[tuple[str, int], int] = {}
    lines: dict[tuple[str, int], int] = {}
    texts: list[str] = []
    for file, line, offset, text in documents_with_offsets():
        places[file, offset] = lines[file, line] = len(texts)
        texts.append(text)
    # the place of the document that each one is a copy of, and whether it went
    cluster, removed = np.arange(len(texts)), np.zeros(len(texts), bool)
    with tempfile.TemporaryDirectory(prefix="bench-planted-") as folder:
        out = Path(folder, "shards")
        btlm_data.prepare(
            {"source": str(corpus()), "seq_len": 2048, "run": {"out": str(out), "accept_removal": True}},
            dedupe__holdout=False,
        )
        rows = pq.read_table(
            out / "clusters.parquet", columns=["file", "offset", "cluster", "document", "kept"]
        )
    by_ordinal: dict[int, int] = {}
    for row in rows.to_pylist():
        place = places.get((row["file"], row["offset"]))
        if place is not None:
            by_ordinal[row["document"]] = place
            cluster[place], removed[place] = -1 - row["cluster"], not row["kept"]
    for place in np.flatnonzero(cluster < 0).tolist():
        cluster[place] = by_ordinal.get(-1 - int(cluster[place]), place)

    # A copy of edit rate r counts against an unedited member of its planted cluster: found if both are in one cluster.
    found: dict[float, list[bool]] = defaultdict(list)
    for members in json.loads((corpus() / "truth.json").read_text())["clusters"]:
        here = [
            (lines[m["file"], m["line"]], _rate_of(m)) for m in members if (m["file"], m["line"]) in lines
        ]
        unedited = [place for place, rate in here if rate == 0]
        for place, rate in here:
            if unedited and place != unedited[0]:
                found[rate].append(bool(cluster[place] == cluster[unedited[0]]))
    report: list[dict[str, Any]] = [
        {
            "name": f"planted copies of edit rate {rate:.1%} found ({len(hits):,})",
            "ours": 100 * sum(hits) / len(hits),
            "theirs": None,
            "ratio": None,
            "unit": "%",
            "budget": {0.0: "100 %", 0.003: "at least 99 %"}.get(rate, ""),
        }
        for rate, hits in sorted(found.items())
    ]
    similarities = []
    features = {}
    for ordinal in np.flatnonzero(removed).tolist():
        keeper = int(cluster[ordinal])
        if keeper not in features:
            features = {
                keeper: set(reference.features(texts[keeper]))
            }  # one at a time: documents are in order, clusters are not large
        one, other = features[keeper], set(reference.features(texts[ordinal]))
        similarities.append(len(one & other) / len(one | other))
    for least in (0.8, 0.6):
        share = 100 * sum(s >= least for s in similarities) / max(1, len(similarities))
        name = f"removed documents with Jaccard >= {least} to the one kept ({len(similarities):,})"
        report.append({"name": name, "ours": share, "theirs": None, "ratio": None, "unit": "%", "budget": ""})
    return report


def _rate_of(member: dict[str, Any]) -> float:
    """The share of a planted copy's words that was replaced: build_corpus.py says it as edit_rate, the sample in the edit's name."""
    if "edit_rate" in member:
        return float(member["edit_rate"])
    share = member["edit"].partition("_")[2].rstrip("%")
    return float(share) / 100 if share else 0.0


if __name__ == "__main__":
    for row in itertools.chain(speed(), planted()):
        print(json.dumps(row))
