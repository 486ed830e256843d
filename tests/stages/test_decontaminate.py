"""The report of a decontamination."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq

from btlm_data.formats import columns
from btlm_data.stages import decontaminate
from btlm_data.stages.blocks import Block
from btlm_data.stages.fates import Fate
from tests.cleaning.test_evaluation_ngrams import QUESTION, WORDS, buffers, prepared


def test_report_lists_documents_with_hits(tmp_path: Path) -> None:
    prepared(tmp_path, {"text": "short"}, {"text": QUESTION})
    name, digest = decontaminate.prepare_ngrams([str(tmp_path / "eval.jsonl")], tmp_path)
    before = (tmp_path / name).stat().st_mtime_ns
    assert decontaminate.prepare_ngrams([str(tmp_path / "eval.jsonl")], tmp_path) == (name, digest)
    assert (tmp_path / name).stat().st_mtime_ns == before
    ngrams = decontaminate.open_ngrams(tmp_path)
    blocks = [Block("read/000000-00000", "train", 0, 2), Block("read/000001-00000", "validation", 2, 1)]
    for block, texts in zip(blocks, (["nothing here", "x " + QUESTION], [QUESTION]), strict=True):
        n = len(texts)
        docs: dict[str, npt.NDArray[Any]] = {
            "offset": np.arange(n, dtype=np.uint64) * 10,
            "source": np.zeros(n, np.uint16),
            "file": np.zeros(n, np.uint16),
        }
        docs["num_bytes"] = np.array([len(t) for t in texts], np.uint32)
        columns.write(block.docs(tmp_path), docs, {"sources": ["web"], "files": ["f"]})
        columns.write(tmp_path / f"{block.stem}.contamination", ngrams.hits(*buffers(texts)))
    fates = {"fate": np.array([0, Fate.CONTAMINATED, 0], np.uint8), "split": np.array([0, 0, 1], np.uint8)}
    columns.write(tmp_path / "fates.cols", fates)
    rows = pq.read_table(decontaminate.write_report(blocks, tmp_path, tmp_path / "fates.cols")).to_pylist()
    common = {
        "hits": 3,
        "source": "web",
        "file": "f",
        "eval_file": str(tmp_path / "eval.jsonl"),
        "eval_record": 1,
        "ngram": " ".join(WORDS[:13]),
    }
    assert rows == [
        {"document": 1, "removed": True, "split": "train", "offset": 10, "bytes": len(QUESTION) + 2} | common,
        {"document": 2, "removed": False, "split": "validation", "offset": 0, "bytes": len(QUESTION)}
        | common,
    ]
