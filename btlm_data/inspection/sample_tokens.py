"""One sample token by token: ids, masks, labels, positions and texts, for pages that show them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import numpy.typing as npt

from btlm_data.formats.documents_table import DocumentTable
from btlm_data.inspection import lookup
from btlm_data.inspection.lookup import Rows
from btlm_data.inspection.opening import Opened
from btlm_data.inspection.report import Sample

if TYPE_CHECKING:
    from btlm_data.tokenizer import Tokenizer

BROKEN = "\ufffd"  # what a part of a character decodes to
PART = "·"
MAX_PARTS = 4  # bytes of a character


class SampleTokens(msgspec.Struct, frozen=True):
    """A sample and its real positions. ids, mask, labels: (n,). positions: position ids of vsl samples, else
    None.

    texts: of each id; the id itself in angle brackets where the tokenizer is not available.
    """

    sample: Sample
    ids: npt.NDArray[np.int64]
    mask: npt.NDArray[np.int64]
    labels: npt.NDArray[np.int64]
    positions: npt.NDArray[np.int64] | None
    texts: list[str]


def read(
    opened: Opened,
    split: str,
    number: int,
    rows: Rows,
    tokenizer: Tokenizer | None = None,
    table: DocumentTable | None = None,
) -> SampleTokens:
    """Sample `number` of a split; arguments as of `lookup.sample`. Raises DataError if there is no such
    sample.
    """
    sample = lookup.sample(opened, split, number, rows, tokenizer, table)
    planes = lookup.planes(opened, rows, number)[:, : sample.real_positions].astype(np.int64)
    ids = planes[0]
    if len(planes) < 3:  # a corpus: every token but the last is followed by its label
        mask, labels = np.ones(len(ids), np.int64), np.append(ids[1:], -1)
    else:
        mask, labels = planes[1], planes[2]
    return SampleTokens(
        sample, ids, mask, labels, planes[4] if len(planes) == 5 else None, texts_of(ids, tokenizer)
    )


def texts_of(ids: npt.NDArray[Any], tokenizer: Tokenizer | None) -> list[str]:
    """The text of each id, (n,). A character of several tokens is at the first of them, PART at the others.
    ids: any integer dtype.
    """
    tokens = ids.tolist()
    if tokenizer is None:
        return [f"⟨{token}⟩" for token in tokens]
    known = {token: tokenizer.decode([token]) for token in set(tokens) if 0 <= token < tokenizer.vocab_size}
    texts = [known.get(token, f"⟨{token}⟩") for token in tokens]
    k = 0
    while k < len(texts):
        joined = _whole_character(tokens, texts, k, tokenizer) if BROKEN in texts[k] else None
        if joined is None:
            k += 1
            continue
        text, length = joined
        texts[k : k + length] = [text, *[PART] * (length - 1)]
        k += length
    return texts


def _whole_character(
    tokens: list[int], texts: list[str], k: int, tokenizer: Tokenizer
) -> tuple[str, int] | None:
    """The text of the fewest tokens from `k` on that are whole characters, and how many they are; None if
    there are none.
    """
    for length in range(2, MAX_PARTS + 1):
        part = tokens[k : k + length]
        if len(part) < length or BROKEN not in texts[k + length - 1]:
            return None
        text = tokenizer.decode(part)
        if BROKEN not in text:
            return text, length
    return None
