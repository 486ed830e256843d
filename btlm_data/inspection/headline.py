"""What a dataset is, in a line or two: for a terminal and for pages."""

from __future__ import annotations

from btlm_data.inspection.figures import counted, number, percent, size
from btlm_data.inspection.report import Report


def headline(report: Report) -> str:
    """What the dataset is, in a line or two."""
    tokens = sum(split.label_tokens or 0 for split in report.splits.values())
    files = sum(split.files for split in report.splits.values())
    on_disk = f"{size(report.disk.shards)} in {counted(files, 'shard')}"
    if report.identity is None:
        layouts = sorted({f"{s.layout} {s.dtype}" for s in report.splits.values() if s.layout})
        if not files:
            return "no shards yet"
        kinds = ", ".join(layouts) or "none readable"
        return f"shards without dataset.json ({kinds}) · about {number(tokens)} tokens · {on_disk}"
    identity = report.identity
    form = {
        "corpus": "token streams (corpus format)",
        "sample": f"samples of {identity.seq_len:,} tokens",
        "vsl": f"vsl samples of {identity.seq_len:,} tokens",
    }.get(identity.format, f"{identity.format} rows of {identity.seq_len:,} tokens")
    share = f" · {percent(identity.set.share)} of the documents" if identity.set.share is not None else ""
    shuffled = {
        "samples": "documents and samples shuffled",
        "documents": "documents shuffled",
        "none": "not shuffled",
    }[identity.shuffle]
    return (
        f"{form} · {number(tokens)} tokens · {on_disk} · {identity.tokenizer.name} "
        f"({identity.tokenizer.vocab_size:,} ids) · {shuffled}, seed {identity.seed}{share}"
    )
