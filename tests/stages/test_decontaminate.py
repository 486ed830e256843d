"""The table of evaluation n-grams as a work file, and the report of a decontamination."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq
import pytest

from btlm_data import by_ordinal
from btlm_data.blocks import Block
from btlm_data.cleaning.evaluation_sets import evaluation_files
from btlm_data.fates import Fate
from btlm_data.formats import columns
from btlm_data.formats.columns import Columns
from btlm_data.stages import decontaminate
from btlm_data.storage import open_store
from btlm_data.task import Artifact
from btlm_data.task_files import write_list
from tests.cleaning.test_evaluation_ngrams import QUESTION, WORDS, buffers, prepared
from tests.stages.runs import Context

NOTHING = Artifact("", 0, "")


def test_report_lists_documents_with_hits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decontaminate, "RANGE_DOCUMENTS", 2)
    prepared(tmp_path, {"text": "short"}, {"text": QUESTION})
    context = Context(tmp_path / "work")
    store = open_store(context.work_dir)
    plan = decontaminate.plan_ngrams(evaluation_files([str(tmp_path / "eval.jsonl")]))
    with context.runner() as runner:
        [made] = runner.run(plan)
        [table_file] = made.outputs
        before = (context.work_dir / table_file.name).stat().st_mtime_ns
        assert runner.run(plan) == [made]
        assert (context.work_dir / table_file.name).stat().st_mtime_ns == before
    assert context.ran == ["holdout.ngrams all"]
    ngrams = decontaminate.open_ngrams(Columns(store, table_file))
    blocks: list[Block] = []
    for split, texts in (("train", ["nothing here", "x " + QUESTION]), ("validation", [QUESTION])):
        n, stem = len(texts), f"read/{len(blocks):06d}-00000"
        docs: dict[str, npt.NDArray[Any]] = {
            "offset": np.arange(n, dtype=np.uint64) * 10,
            "source": np.zeros(n, np.uint32),
            "file": np.zeros(n, np.uint16),
        }
        docs["num_bytes"] = np.array([len(t) for t in texts], np.uint32)
        docs_file = columns.write(store, f"{stem}.docs", docs, {"sources": ["web"], "files": ["f"]})
        hits = columns.write(store, f"{stem}.contamination", ngrams.hits(*buffers(texts)))
        first = blocks[-1].last_ordinal if blocks else 0
        blocks.append(Block(stem, split, first, n, 0, docs_file, NOTHING, None, hits, None, None, None))
    fates = {"fate": np.array([0, Fate.CONTAMINATED, 0], np.uint8), "split": np.array([0, 0, 1], np.uint8)}
    drawn = columns.write(store, "holdout/draw/000000.cols", fates)
    fates_file = by_ordinal.write_list(store, "holdout/fates.json", [(0, 3, drawn)])
    with context.runner() as runner:
        reported = runner.run(decontaminate.plan_report(blocks, table_file, fates_file))
        parts = write_list(store, "holdout/report.json", [result.outputs[0] for result in reported])
        [joined] = runner.run(decontaminate.plan_table(parts))
    assert len(reported) == 2, "a task per range of blocks"
    [report] = joined.outputs
    rows = pq.read_table(context.work_dir / report.name).to_pylist()
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
