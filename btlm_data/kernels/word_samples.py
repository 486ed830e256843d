"""A sample of the word n-grams of normalised texts, such that two texts with 13 words in a row in common have one of the
sample in common.

Winnowing (Schleimer, Wilkerson and Aiken, "Winnowing: Local Algorithms for Document Fingerprinting", SIGMOD 2003): of every
GRAMS n-grams in a row, each of WORDS words, the one with the least hash is taken. What is taken of 13 words depends on these
words alone, so it is the same wherever they are; of random words it is 2 in GRAMS + 1 n-grams. A text of fewer words has
none. The plain twin is in tests/reference/word_samples.py.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from btlm_data.kernels.buckets import readonly
from btlm_data.kernels.compiling import jit
from btlm_data.kernels.ranges import check_stretches

WORDS = 8
GRAMS = 6
SERVED_WORDS = WORDS + GRAMS - 1  # 13: as many words in a row have an n-gram in the sample
_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)
_MIXER = np.uint64(0xBF58476D1CE4E5B9)
_LEAVING = np.uint64(pow(0x9E3779B97F4A7C15, WORDS, 2**64))  # the factor of the word that leaves
UInt8Array = npt.NDArray[np.uint8]
UInt64Array = npt.NDArray[np.uint64]
Int64Array = npt.NDArray[np.int64]


def word_samples(utf8: UInt8Array, starts: Int64Array, stops: Int64Array) -> tuple[UInt64Array, Int64Array]:
    """The hashes of the n-grams that are taken, and the number of the text of each, (g,) uint64 and (g,) int64. One that is
    taken for several windows in a row is there once.

    utf8: (b,) uint8; text i is utf8[starts[i]:stops[i]], normalised: words between single spaces. starts, stops: (n,) int64.
    Raises DataError for a text outside the bytes.
    """
    check_stretches(starts, stops, len(utf8), "Text")
    most = int((stops - starts).sum()) // 2 + len(starts)  # a word and its space are two bytes
    hashes, texts = np.empty(most, np.uint64), np.empty(most, np.int64)
    count = _sample(readonly(utf8), readonly(starts), readonly(stops), hashes, texts)
    return hashes[:count].copy(), texts[:count].copy()


@jit
def _sample(
    utf8: UInt8Array, starts: Int64Array, stops: Int64Array, hashes: UInt64Array, texts: Int64Array
) -> int:
    words, grams = np.zeros(WORDS, np.uint64), np.zeros(GRAMS, np.uint64)
    count = 0
    for d in range(len(starts)):
        i, end, seen = starts[d], stops[d], 0
        rolled, taken = np.uint64(0), np.uint64(0)
        is_first = True
        words[:] = 0
        while i < end:
            word = np.uint64(0)
            while i < end and utf8[i] != 0x20:
                word = (word ^ np.uint64(utf8[i])) * _MULTIPLIER
                word ^= word >> np.uint64(32)
                i += 1
            i += 1
            slot = seen % WORDS
            rolled = rolled * _MULTIPLIER + word - words[slot] * _LEAVING
            words[slot] = word
            seen += 1
            if seen < WORDS:
                continue
            gram = (rolled ^ (rolled >> np.uint64(32))) * _MIXER
            grams[seen % GRAMS] = gram ^ (gram >> np.uint64(29))
            if seen < WORDS + GRAMS - 1:
                continue
            least = grams[0]
            for k in range(1, GRAMS):
                least = min(least, grams[k])
            if is_first or least != taken:
                hashes[count], texts[count] = least, d
                count += 1
                is_first, taken = False, least
    return count
