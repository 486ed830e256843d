"""Give a prepared dataset to other trainers.

    run.py       the export itself: what is written where, continued or replaced
    targets.py   the list of targets: a target is one file here and one line there
    megatron.py  Megatron-LM          npy.py  flat files of ids          mds.py  MosaicML Streaming
    split.py     one split of a dataset, opened: rows, documents, the token stream

`megatron` and `npy` are made of the split's *token stream* (`doc_1 EOS doc_2 EOS ...`), with documents as
they were: a sample-format dataset whose samples were shuffled is put back into stream order, as the place of
each sample is a seeded bijection. Every document's EOS is then looked for where documents.parquet says it is.
`mds` is made of samples, in the order in which they are in the shards. The vsl format cuts documents to fit
its bins, so it is not exported.

OUT/export.json, written last, says what was exported: files with sha256, documents, tokens, what was left
out, the tokenizer and the fingerprint of the dataset. The same dataset gives the same bytes.
"""

from __future__ import annotations

from btlm_data.export.run import export
from btlm_data.export.target import ExportedFile, ExportedSplit, ExportTarget
from btlm_data.export.targets import TARGETS

__all__ = ["TARGETS", "ExportTarget", "ExportedFile", "ExportedSplit", "export"]
