"""Compressions of whole files, one file each, as a layer of its own below the record formats."""

from __future__ import annotations

from btlm_data.records.base import Compression
from btlm_data.records.compression.bzip2 import BZIP2
from btlm_data.records.compression.gzip import GZIP
from btlm_data.records.compression.xz import XZ
from btlm_data.records.compression.zstd import ZSTD

COMPRESSIONS: dict[str, Compression] = {codec.name: codec for codec in (GZIP, ZSTD, BZIP2, XZ)}
