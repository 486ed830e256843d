"""The targets of `btlm-data export`, by name."""

from __future__ import annotations

from btlm_data.export.mds import Mds
from btlm_data.export.megatron import Megatron
from btlm_data.export.npy import Npy
from btlm_data.export.target import ExportTarget

TARGETS: dict[str, ExportTarget] = {target.name: target for target in (Megatron(), Mds(), Npy())}
