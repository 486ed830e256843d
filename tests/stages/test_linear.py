"""How often files are opened grows with the corpus, never with the product of two things that grow."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from btlm_data import by_group, input_checks, pipeline
from btlm_data.dedupe import groups, members, report, sizes, steps
from btlm_data.formats import columns
from btlm_data.formats.shard_formats import vsl
from btlm_data.progress import Lines
from btlm_data.recipe.load import load
from btlm_data.stages import document_rows, file_ranges, pieces, shuffle, sorting
from tests.reads import Reads, counting

WORDS = [f"w{number}" for number in range(3000)]
AT_FULL_SIZE = by_group.MOST_FILES / groups.GROUP_BYTES


def write_corpus(folder: Path, num_documents: int) -> Path:
    """Documents of about 500 bytes, a tenth of them copies and a tenth nearly copies of earlier ones."""
    folder.mkdir(parents=True)
    chance, texts = random.Random(1), [""]
    for first in range(0, num_documents, 50):
        lines = []
        for number in range(first, first + 50):
            text = " ".join(chance.choices(WORDS, k=chance.randrange(60, 140)))
            kind = chance.random()
            text = chance.choice(texts) if kind < 0.1 else text
            text = f"{chance.choice(texts)} or so" if 0.1 < kind < 0.2 else text
            texts.append(text)
            url = None if number % 5 == 0 else f"http://x/{number}"
            lines.append(json.dumps({"text": text, "id": str(number), "url": url}) + "\n")
        (folder / f"{first:06d}.jsonl").write_text("".join(lines))
    return folder


@pytest.fixture
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Everything shrunk, so that a corpus of a megabyte is cut as one of terabytes."""
    monkeypatch.setattr(columns, "_HEAD_BYTES", 1000)
    monkeypatch.setattr(file_ranges, "GROUP_FILES", 1)
    monkeypatch.setattr(shuffle, "BUCKET_BYTES", 40_000)
    monkeypatch.setattr(shuffle, "GROUP_DOCUMENTS", 100)
    monkeypatch.setattr(document_rows, "GROUP_DOCUMENTS", 100)
    monkeypatch.setattr(document_rows, "PIECE_BYTES", 2000)
    monkeypatch.setattr(document_rows, "LEAST_FANOUT", 4)
    monkeypatch.setattr(sorting, "SORT_BYTES", 2000)
    monkeypatch.setattr(groups, "GROUP_BYTES", 10_000)
    monkeypatch.setattr(members, "FILE_BYTES", 5000)
    monkeypatch.setattr(by_group, "MOST_FILES", 2)
    monkeypatch.setattr(by_group, "PIECE_BYTES", 500)
    monkeypatch.setattr(by_group, "_LEAST_FILE", 8000)
    monkeypatch.setattr(by_group, "_MOST_RANGES", 6)
    monkeypatch.setattr(sizes, "RANGE_DOCUMENTS", 100)
    monkeypatch.setattr(sizes, "_MOST_RANGES", 4)
    monkeypatch.setattr(steps, "MOST_SPLIT_FILES", 4)
    monkeypatch.setattr(input_checks, "check_memory", lambda run: None)
    return monkeypatch


def prepare(corpus: Path, out: Path, patch: pytest.MonkeyPatch, **more: Any) -> dict[str, Reads]:
    """Prepare in this process; what each step read."""
    given: dict[str, Any] = {"source.name": str(corpus), "run.out": str(out), "run.workers": 1, "seq_len": 64}
    given |= {"source.id_field": "id", "source.keep_fields": ["url"], "run.accept_removal": True}
    given |= {"holdout.fraction": 0.05} | more
    with counting(patch) as found:
        pipeline.prepare(load(None, {key: (value, "test") for key, value in given.items()}), Lines())
    return dict(found)


def test_rows_moved_in_several_passes_are_those_of_one(
    tmp_path: Path, small_pieces: pytest.MonkeyPatch
) -> None:
    corpus = write_corpus(tmp_path / "corpus", 1000)
    small_pieces.setattr(sizes, "_MOST_RANGES", 16)
    small_pieces.setattr(by_group, "MOST_INPUTS", 12)
    several = prepare(corpus, tmp_path / "several", small_pieces, **{"run.memory": "200KB"})
    moved = {"shard.rows-2", "dedupe.members-2", "dedupe.pairs-2", "dedupe.edges-bands-2"}
    assert {"shard.rows", *moved} <= several.keys()
    assert several["dedupe.pairs"].most_opens <= 12 + 4, "partitions are put together first"
    assert several["dedupe.sort-bands"].tasks > 12
    assert several["dedupe.compare"].tasks > 10
    small_pieces.setattr(document_rows, "LEAST_FANOUT", 1000)
    small_pieces.setattr(document_rows, "GROUP_DOCUMENTS", 10**6)
    small_pieces.setattr(by_group, "MOST_FILES", 1000)
    small_pieces.setattr(by_group, "MOST_INPUTS", 1000)
    once = prepare(corpus, tmp_path / "once", small_pieces)
    assert not moved & once.keys()
    for table in ("removals.parquet", "clusters.parquet"):
        assert (tmp_path / "several" / table).read_bytes() == (tmp_path / "once" / table).read_bytes()
    left = {path.name for path in (tmp_path / "several/.work/dedupe").iterdir()}
    assert "members-2" in left
    assert not any(name.startswith("edges-") and not name.endswith(".json") for name in left)
    assert "members" not in left, "what was moved is removed once the dataset is complete"
    made = [report.make(str(tmp_path / name), [], []).outcomes for name in ("several", "once")]
    assert made[0] == made[1]
    for split in ("train", "validation"):
        tables = [
            pq.read_table(tmp_path / name / split / "documents.parquet") for name in ("several", "once")
        ]
        assert tables[0].equals(tables[1])
        assert tables[0]["fields.url"].null_count > 0 or len(tables[0]) < 20
        by_id = {row["id"]: row for row in tables[0].to_pylist()}
        lines = {path.name: path.read_text().splitlines() for path in corpus.iterdir()}
        for row in by_id.values():
            record = json.loads(lines[row["file"]][row["line"]])
            assert (record["id"], record["url"]) == (row["id"], row["fields.url"])
            assert len(record["text"].encode()) == row["bytes"]


def test_opens_grow_with_the_corpus_and_not_faster(tmp_path: Path, small_pieces: pytest.MonkeyPatch) -> None:
    found = []
    for number, count in enumerate((500, 2000)):
        corpus = write_corpus(tmp_path / f"corpus-{number}", count)
        found.append(prepare(corpus, tmp_path / f"out-{number}", small_pieces, **{"run.memory": "200KB"}))
    small, large = found
    for step, reads in small.items():
        if not reads.opens:
            continue
        # Twice a logarithm more is a pass more; a product would be sixteen times.
        assert large[step].opens <= 6 * reads.opens + 20, (step, reads, large[step])
        assert large[step].most_opens <= 6 * max(20, reads.most_opens) or large[step].tasks == 1
    assert large["shard.documents"].most_opens <= 60
    # What a group reads is as long in proportion to the group as 64 kB are at full size.
    scale = groups.GROUP_BYTES / by_group.MOST_FILES * AT_FULL_SIZE
    assert large["dedupe.compare"].tables.mean >= 64_000 * scale
    assert large["dedupe.compare"].most_opens <= 2 * by_group.MOST_FILES
    assert large["dedupe.decide"].most_opens <= 1 + by_group.MOST_FILES


def test_a_shard_of_packed_documents_looks_into_few_files(
    tmp_path: Path, small_pieces: pytest.MonkeyPatch
) -> None:
    """Its rows come from all windows and blocks, whose number grows with the corpus."""
    small_pieces.setenv("BTLM_SCATTER", "1")
    small_pieces.setattr(vsl, "WINDOW_TOKENS", 4000)
    small_pieces.setattr(pieces, "LEAST_PIECE", 10_000)
    options = {"format": "vsl", "dedupe": "none", "shards.samples_per_file": 100, "run.memory": "30KB"}
    found = []
    for number, count in enumerate((250, 1000)):
        corpus = write_corpus(tmp_path / f"corpus-{number}", count)
        found.append(prepare(corpus, tmp_path / f"out-{number}", small_pieces, **options))
    small, large = found
    assert large["pack.cut"].tasks >= 3 * small["pack.cut"].tasks > 3
    assert large["pack.pieces"].tasks > 15
    assert large["shard.write"].most_opens <= 2 * max(4, small["shard.write"].most_opens)
