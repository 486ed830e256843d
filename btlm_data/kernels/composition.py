"""Which documents are plainly in Normalization Form C, told from their bytes (Unicode Standard Annex 15, section 9).

A text is in the form if each of its characters is in it alone, has combining class 0, and never joins the character before it.
The kernel knows characters of which this is so, by the first two or three of their bytes, in the scripts that most text is
written in. A text with another character may still be in the form: `unicodedata` tells.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from btlm_data.kernels.buckets import readonly
from btlm_data.kernels.compiling import jit
from btlm_data.kernels.ranges import check_offsets
from btlm_data.kernels.words import load64

UInt8Array = npt.NDArray[np.uint8]
Int64Array = npt.NDArray[np.int64]

_HIGH_BITS = np.uint64(0x8080808080808080)


def are_composed(utf8: UInt8Array, offsets: Int64Array) -> npt.NDArray[np.bool_]:
    """Whether each document is plainly in the form, (n,): where not, it is to be looked at.

    utf8: (bytes,) uint8, n documents one after the other. offsets: (n + 1,) int64.
    """
    check_offsets(offsets, len(utf8), "The offsets of documents")
    composed = np.empty(len(offsets) - 1, np.bool_)
    _are_composed(readonly(utf8), readonly(offsets), composed)
    return composed


@jit
def _are_composed(utf8: UInt8Array, offsets: Int64Array, composed: npt.NDArray[np.bool_]) -> None:
    for d in range(len(offsets) - 1):
        i, end, is_plain = offsets[d], offsets[d + 1], True
        while is_plain and i < end:
            if utf8[i] < 0x80:
                i += 1
                while i + 8 <= end and load64(utf8, i) & _HIGH_BITS == 0:
                    i += 8
            else:
                width = 2 + np.int64(utf8[i] >= 0xE0) + np.int64(utf8[i] >= 0xF0)
                is_plain = i + width <= end and _is_plain(utf8[i], utf8[i + 1], utf8[min(i + 2, end - 1)])
                i += width
        composed[d] = is_plain


@jit
def _is_plain(first: np.uint8, second: np.uint8, third: np.uint8) -> bool:
    """Whether a character that begins with these bytes is known to be plain. third: any byte, where it has only two."""
    if first < 0xE0:  # U+0080 to U+02FF (Latin), U+0400 to U+047F (Cyrillic)
        return bool((first < 0xCC) | (first == 0xD0) | (first == 0xD1))
    if first == 0xE2:  # punctuation but for two spaces, signs, arrows, mathematics, boxes
        return bool(
            ((second == 0x80) & (third >= 0x82))  # U+2002 to U+203F
            | (second == 0x81)  # U+2040 to U+207F
            | (second == 0x82)  # U+2080 to U+20BF
            | ((second >= 0x85) & (second <= 0x8B))  # U+2140 to U+22FF
            | ((second >= 0x8D) & (second <= 0xA9))  # U+2340 to U+2A7F
        )
    if first == 0xE3:  # U+3000 to U+3029, U+3040 to U+307F, U+30C0 to U+3FFF (Japanese, Chinese)
        return bool(((second == 0x80) & (third < 0xAA)) | (second == 0x81) | (second >= 0x83))
    if first < 0xF0:
        return bool(
            ((first >= 0xE4) & (first <= 0xE9))  # U+4000 to U+9FFF (Chinese)
            | ((first == 0xEA) & (second >= 0xB0))  # U+AC00 to U+D77F (Korean)
            | (first == 0xEB)
            | (first == 0xEC)
            | ((first == 0xED) & (second < 0x9E))
        )
    return bool((first == 0xF0) & (second == 0x9F))  # U+1F000 to U+1FFFF (pictures)
