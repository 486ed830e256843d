"""What the processor can do that kernels are compiled for."""

from __future__ import annotations

import functools
from typing import Any

from llvmlite import binding

from btlm_data.kernels.compiler import config


def has(*features: str) -> bool:
    """Whether kernels are compiled for a processor with all of these features, by LLVM's names for them. Where the user has
    kernels compiled for another processor than this one (NUMBA_CPU_NAME, NUMBA_CPU_FEATURES), or without AVX, no.
    """
    settings: Any = config
    if settings.CPU_NAME is not None or settings.CPU_FEATURES is not None or not settings.ENABLE_AVX:
        return False
    own = _own_features()
    return all(own.get(feature, False) for feature in features)


@functools.cache
def _own_features() -> dict[str, bool]:
    return dict(binding.get_host_cpu_features())
