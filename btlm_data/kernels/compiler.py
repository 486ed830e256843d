"""What modules of kernels take of numba. Imported by way of here, so that a program that wants it alone has it so, whichever of them
is first (`want_numba_alone` of the package).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from btlm_data.kernels import load_numba

if TYPE_CHECKING:
    import numba
    from numba import types
    from numba.core import cgutils, config
    from numba.core.caching import FunctionCache, IndexDataCacheFile
    from numba.core.runtime.nrt import rtsys
    from numba.extending import intrinsic
else:
    numba = load_numba()
    types, config, intrinsic = numba.types, numba.config, numba.extending.intrinsic
    cgutils, caching = numba.core.cgutils, numba.core.caching
    FunctionCache, IndexDataCacheFile = caching.FunctionCache, caching.IndexDataCacheFile
    rtsys = numba.core.runtime.rtsys

__all__ = [
    "FunctionCache",
    "IndexDataCacheFile",
    "cgutils",
    "config",
    "intrinsic",
    "numba",
    "rtsys",
    "types",
]
