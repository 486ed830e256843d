"""The n-grams of evaluation sets as a file of the work folder, and the report of which documents share one with them.

decontaminate/ngrams.cols   the arrays of cleaning/evaluation_ngrams.py; meta: {"digest", "files"}
BLOCK.contamination         `hits` (n,) uint32: n-grams of each document in the table; `ngram` (n,) uint32: number of the
first, or 2^32 - 1
contamination.parquet       a row per document with hits, see write_report
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from btlm_data.cleaning.evaluation_ngrams import ARRAYS, EvalNgrams, evaluation_digest
from btlm_data.cleaning.evaluation_sets import evaluation_files
from btlm_data.formats import atomic, columns
from btlm_data.splits import SPLITS
from btlm_data.stages.blocks import Block
from btlm_data.stages.fates import Fate

NGRAMS = "decontaminate/ngrams.cols"
REPORT = "decontaminate/contamination.parquet"


def prepare_ngrams(patterns: Sequence[str], work_dir: Path) -> tuple[str, str]:
    """Make the table of all evaluation n-grams, or leave it if these very files made it: (its path in the work folder, digest).

    patterns: files or globs. Raises ConfigError if one matches nothing, InputError if a file cannot be read whole or has
    no text of 13 words.
    """
    files = evaluation_files(patterns)
    digest = evaluation_digest(files)
    path = work_dir / NGRAMS
    if not path.exists() or columns.read(path, []).meta["digest"] != digest:
        ngrams = EvalNgrams.read(files)
        columns.write(path, ngrams.arrays, {"digest": digest, "files": list(ngrams.files)})
    return NGRAMS, digest


def open_ngrams(work_dir: Path) -> EvalNgrams:
    """The table that prepare_ngrams wrote. Raises DataError if it is damaged."""
    table = columns.read(work_dir / NGRAMS, ARRAYS)
    return EvalNgrams(table.arrays, table.meta["files"])


def write_report(blocks: Sequence[Block], work_dir: Path, fates: Path) -> Path:
    """List every document that has hits, in source order; returns the path of contamination.parquet.

    fates: columns file with `fate` and `split` (holdout/fates.cols). Columns: document (ordinal, uint32), removed (bool: its fate is
    "contaminated"), hits (uint32), split, source, file, offset (uint64), bytes (uint32) of the document; eval_file, eval_record (uint32,
    from 0) and ngram (its words) of the first hit.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    ngrams = open_ngrams(work_dir)
    decided = columns.read(fates, ["fate", "split"])
    schema = pa.schema(
        [
            ("document", pa.uint32()),
            ("removed", pa.bool_()),
            ("hits", pa.uint32()),
            ("split", pa.string()),
            ("source", pa.string()),
            ("file", pa.string()),
            ("offset", pa.uint64()),
            ("bytes", pa.uint32()),
            ("eval_file", pa.string()),
            ("eval_record", pa.uint32()),
            ("ngram", pa.string()),
        ]
    )
    path = work_dir / REPORT
    with (
        atomic.replacing(path, durable=False) as temporary,
        pq.ParquetWriter(temporary, schema, compression="zstd") as writer,
    ):
        for block in blocks:
            found = columns.read(work_dir / f"{block.stem}.contamination", ["hits", "ngram"])
            rows = np.flatnonzero(found["hits"])
            if not len(rows):
                continue
            docs = columns.read(block.docs(work_dir))
            listed = []
            for row in rows.tolist():
                ordinal = block.first_ordinal + row
                eval_file, eval_record, words = ngrams.describe(int(found["ngram"][row]))
                listed.append(
                    {
                        "document": ordinal,
                        "removed": bool(decided["fate"][ordinal] == Fate.CONTAMINATED),
                        "hits": int(found["hits"][row]),
                        "split": SPLITS[int(decided["split"][ordinal])],
                        "source": docs.meta["sources"][int(docs["source"][row])],
                        "file": docs.meta["files"][int(docs["file"][row])],
                        "offset": int(docs["offset"][row]),
                        "bytes": int(docs["num_bytes"][row]),
                        "eval_file": eval_file,
                        "eval_record": eval_record,
                        "ngram": words,
                    }
                )
            writer.write_table(pa.Table.from_pylist(listed, schema))
    return path
