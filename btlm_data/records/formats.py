"""Which record format and which compression a file has, by its name."""

from __future__ import annotations

from typing import Literal

Format = Literal["jsonl", "parquet", "txt"]
Compression = Literal["none", "gzip", "zstd"]
_FORMATS: dict[str, Format] = {
    ".jsonl": "jsonl",
    ".json": "jsonl",
    ".ndjson": "jsonl",
    ".parquet": "parquet",
    ".txt": "txt",
}
_COMPRESSIONS: dict[str, Compression] = {".gz": "gzip", ".zst": "zstd"}


def classify(name: str) -> tuple[Format, Compression] | None:
    """Format and compression from a file name's endings (".jsonl.zst": jsonl, zstd); None: not an input file."""
    lowered = name.lower()
    compression: Compression = "none"
    for ending, kind in _COMPRESSIONS.items():
        if lowered.endswith(ending):
            lowered, compression = lowered[: -len(ending)], kind
    for ending, form in _FORMATS.items():
        if lowered.endswith(ending) and not (form == "parquet" and compression != "none"):
            return form, compression
    return None
