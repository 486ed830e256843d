"""The record formats we read, each in a file of its own; and which one a file has, by its name."""

from __future__ import annotations

from collections.abc import Sequence

from btlm_data.records.arrow import ARROW
from btlm_data.records.base import RecordFormat
from btlm_data.records.compression import COMPRESSIONS
from btlm_data.records.delimited import CSV, TSV
from btlm_data.records.json_document import JSON_DOCUMENT, JSON_LINES
from btlm_data.records.parquet import PARQUET
from btlm_data.records.text import TEXT
from btlm_data.records.warc import WARC

FORMATS: dict[str, RecordFormat] = {
    form.name: form for form in (JSON_LINES, JSON_DOCUMENT, PARQUET, TEXT, CSV, TSV, ARROW, WARC)
}


# Written beside the data by `datasets`: descriptions, and what `map` and `filter` keep for themselves.
_BESIDE_DATA = ("dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json")
_CACHE_PREFIX = "cache-"


def classify(name: str) -> tuple[str, str] | None:
    """Record format and compression from a file name's endings (".jsonl.zst": jsonl, zstd); None: not an
    input file.
    """
    lowered = name.lower()
    base = lowered.rpartition("/")[2]
    if base in _BESIDE_DATA or (base.startswith(_CACHE_PREFIX) and base.endswith(".arrow")):
        return None
    compression = "none"
    for codec in COMPRESSIONS.values():
        for ending in codec.endings:
            if compression == "none" and lowered.endswith(ending):
                lowered, compression = lowered[: -len(ending)], codec.name
    for form in FORMATS.values():
        if lowered.endswith(form.endings) and (form.compressible or compression == "none"):
            return form.name, compression
    return None


def endings() -> Sequence[str]:
    """Every ending of a readable file, without compression."""
    return [ending for form in FORMATS.values() for ending in form.endings]
