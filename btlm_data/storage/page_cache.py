"""What this machine can keep of its files in memory."""

from __future__ import annotations

import os

_SHARE, _MOST = 4, 8 * 2**30  # of the memory that is installed; bytes


def fits(num_bytes: int) -> bool:
    """Whether so much can stay in the page cache while it is read in any order."""
    if "BTLM_SCATTER" in os.environ:  # tests make the long way run on small data; the bytes are the same
        return False
    installed = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return num_bytes <= min(installed // _SHARE, _MOST)
