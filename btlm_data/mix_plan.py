"""From a mix to copies: how often a document is in the train stream, and in which phase each time.

A mix by epochs says it of each document by itself: its source's epochs times those for its number of copies, and
a draw for the fraction. A mix by budget says how many tokens of what; so the tokens of each source are counted
first (`weigh`), then shares become tokens (`allocate`), and tokens become borders (`Borders`).

The documents of a source have an order, by a hash of their keys. Repeated without end, that order is a line of
tokens; each phase takes the next part of it that has its tokens. So a document is seen n times before any of its
source is seen n + 1 times, whatever the phases, and who sees it when depends on nothing but keys, seed and counts.
Where a border falls among the hashes is interpolated between `BINS` sums of tokens: with n documents it is off by
about sqrt(n / BINS) / 2 of them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from fractions import Fraction
from itertools import pairwise
from typing import Any, NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt

from btlm_data import seeding
from btlm_data.errors import ConfigError
from btlm_data.recipe.mix import MAX_EPOCHS, MixSettings
from btlm_data.recipe.mix_budget import in_percent

Int64Array = npt.NDArray[np.int64]
UInt64Array = npt.NDArray[np.uint64]
REPEATED = "repeated_by_mix"
LEFT_OUT = "left_out_by_mix"
_BITS = 12
BINS = 1 << _BITS  # of the hashes of a source's documents
_SHOWN = 5
_ROUNDING = Fraction(1, 10**9)  # of shares that add up to 1 on paper


# Tokens by source and hash ----------------------------------------------------------------------------------


def hashes(keys: UInt64Array, seed: int) -> UInt64Array:
    """The place of each document in the order of its source. keys: (n,) (seeding.document_keys); returns (n,)."""
    return seeding.mix64(keys, seeding.salt(seed, "mix"))


class Weights(NamedTuple):
    """Tokens by source and bin of hashes: `cell` (n,) uint64, ascending, source * BINS + bin; `tokens` (n,) uint64."""

    cell: UInt64Array
    tokens: UInt64Array


def weigh(codes: npt.NDArray[Any], hashed: UInt64Array, tokens: npt.NDArray[Any]) -> Weights:
    """Add up some documents, (n,) each. codes: numbers of their sources; hashed: uint64; tokens: with EOS,
    of an integer type.
    """
    cell = codes.astype(np.uint64) * np.uint64(BINS) + (hashed >> np.uint64(64 - _BITS))
    return _summed(cell, tokens.astype(np.uint64))


def added(parts: Sequence[Weights]) -> Weights:
    """Several weights as one."""
    empty = np.empty(0, np.uint64)
    return _summed(*(np.concatenate([empty, *(part[i] for part in parts)]) for i in range(2)))


def renumbered(cell: UInt64Array, codes: UInt64Array) -> UInt64Array:
    """Cells whose sources have other numbers. cell: (n,); codes: the new number of each source; returns (n,)."""
    bins = np.uint64(BINS)
    moved: UInt64Array = codes[cell // bins] * bins + cell % bins
    return moved


def _summed(cell: UInt64Array, tokens: UInt64Array) -> Weights:
    distinct, place = np.unique(cell, return_inverse=True)
    sums = np.zeros(len(distinct), np.uint64)
    np.add.at(sums, place, tokens)
    return Weights(distinct, sums)


# Shares to tokens -------------------------------------------------------------------------------------------


def allocate(mix: MixSettings, available: Mapping[str, int], part: float = 1.0) -> list[dict[str, int]]:
    """Tokens of each source up to the end of each phase.

    available: tokens of each source in the train split. part: of the documents that are in this set, and so of the
    budget. Raises ConfigError, with the arithmetic, where the budget cannot be met.
    """
    total = sum(available.values())
    budget = total if mix.tokens is None else int(mix.tokens * Fraction(part))
    base = _base(mix, available, budget)
    parts: list[dict[str, Fraction]] = []
    begin = Fraction(0)
    for phase, end in zip(mix.phases, mix.ends, strict=True):
        shares = _overridden(base, phase.sources, phase.name or "mix")
        size = budget * (Fraction(end) - begin)
        before = parts[-1] if parts else dict.fromkeys(available, Fraction(0))
        parts.append({name: before[name] + shares[name] * size for name in available})
        begin = Fraction(end)
    ends = [{name: round(tokens) for name, tokens in part.items()} for part in parts]
    _require_epochs(mix, available, ends[-1], budget)
    return ends


def _base(mix: MixSettings, available: Mapping[str, int], budget: int) -> dict[str, Fraction]:
    """The share of each source where no phase says otherwise."""
    limit = Fraction(mix.max_epochs or 1)
    if isinstance(mix.sources, str):
        most = sum(available.values()) * limit
        if budget > most:
            raise ConfigError(
                f"mix.sources: unimax: {budget:,} tokens are to be had of {sum(available.values()):,}, at most "
                f"{float(limit):g} times each (mix.max_epochs), which are {int(most):,}. Lower mix.tokens to that, or "
                "raise mix.max_epochs."
            )
        weights = unimax(available, budget, limit)
    else:
        weights = {name: Fraction(tokens) for name, tokens in available.items()}
        weights = _overridden(weights, mix.sources, "mix")
    total = sum(weights.values())
    return {name: weight / total if total else weight for name, weight in weights.items()}


def unimax(available: Mapping[str, int], budget: int, max_epochs: Fraction) -> dict[str, Fraction]:
    """Tokens of each source, as uniform as a limit of epochs allows (UniMax: Chung et al. 2023, arXiv 2304.09151,
    algorithm 1): from the smallest source on, each takes an equal part of what is left of the budget, or all of its
    epochs.
    """
    left, taken = Fraction(budget), dict[str, Fraction]()
    ordered = sorted(available.items(), key=lambda pair: (pair[1], pair[0]))
    for number, (name, tokens) in enumerate(ordered):
        taken[name] = min(left / (len(ordered) - number), tokens * max_epochs)
        left -= taken[name]
    return {name: taken[name] for name in available}


def _overridden(
    weights: Mapping[str, Fraction], named: Mapping[str, float], shown: str
) -> dict[str, Fraction]:
    """Shares: those that are named, and of the others in proportion to their weights."""
    missing = [name for name, share in named.items() if share and name not in weights]
    if missing:
        raise ConfigError(
            f"{shown}: {missing[0]} is to be {in_percent(named[missing[0]])} of the tokens, and no document of it is left "
            "in the train split. Leave it out, or correct its name."
        )
    given = {name: Fraction(share) for name, share in named.items() if name in weights}
    total = sum(given.values(), Fraction(0))
    rest = 1 - total
    others = sum((weight for name, weight in weights.items() if name not in given), Fraction(0))
    if not others and given and abs(rest) > _ROUNDING:
        shown_sum = " + ".join(f"{name} {in_percent(share)}" for name, share in list(named.items())[:_SHOWN])
        raise ConfigError(
            f"{shown}: the shares add up to {in_percent(float(total))} ({shown_sum}), and no other source has tokens for "
            f"the rest, {in_percent(float(rest))}. Make them 100%."
        )
    if abs(rest) <= _ROUNDING or not others:
        given = {name: share / total for name, share in given.items()} if total else given
        rest = Fraction(0)
    scale = rest / others if others else Fraction(0)
    return {name: given[name] if name in given else weight * scale for name, weight in weights.items()}


def _require_epochs(
    mix: MixSettings, available: Mapping[str, int], wanted: Mapping[str, int], budget: int
) -> None:
    limit = mix.max_epochs or 1.0
    over = [name for name, tokens in wanted.items() if tokens > limit * available[name] + 1]
    if not over:
        return
    lines = [f"The mix cannot be had: a source would be seen more than {limit:g} times (mix.max_epochs)."]
    for name in over[:_SHOWN]:
        tokens, has = wanted[name], available[name]
        lines.append(
            f"  {name}: {in_percent(tokens / budget)} of {budget:,} tokens are {tokens:,}; it has {has:,}, so that is "
            f"{tokens / has:,.2f} epochs."
        )
    if len(over) > _SHOWN:
        lines.append(f"  and {len(over) - _SHOWN:,} more sources.")
    most = min(int(budget * limit * available[name] / wanted[name]) for name in over)
    epochs = math.ceil(100 * max(wanted[name] / available[name] for name in over)) / 100
    allow = f" or allow {epochs:,.2f} epochs (mix.max_epochs)," if epochs <= MAX_EPOCHS else ""
    lines.append(
        f"With these shares at most {most:,} tokens can be had (mix.tokens);{allow} or lower the share."
    )
    raise ConfigError("\n".join(lines))


# Tokens to copies -------------------------------------------------------------------------------------------


class Borders(msgspec.Struct, frozen=True):
    """Where phases end on each source's line of repeated documents, (sources, phases) each: `whole` int64 times all
    documents, and `part` uint64, the hash below which they are seen once more.

    sources: their names.
    """

    sources: Sequence[str]
    whole: Int64Array
    part: UInt64Array

    @staticmethod
    def of(
        mix: MixSettings, sources: Sequence[str], weights: Weights, part: float = 1.0
    ) -> tuple[Borders, Int64Array]:
        """The borders that give the tokens asked for, and how many these are, (sources, phases) int64. weights: of
        the documents, by the numbers of their sources. part: see allocate. Raises ConfigError where the budget
        cannot be met.
        """
        source = (weights.cell >> np.uint64(_BITS)).astype(np.int64)
        edges = np.searchsorted(source, np.arange(len(sources) + 1))
        totals = [int(weights.tokens[a:b].sum()) for a, b in pairwise(edges)]
        available = {name: tokens for name, tokens in zip(sources, totals, strict=True) if tokens}
        ends = allocate(mix, available, part) if available else [{} for _ in mix.phases]
        shape = (len(sources), len(mix.phases))
        whole, fraction = np.zeros(shape, np.int64), np.zeros(shape, np.uint64)
        upto = np.array([[end.get(name, 0) for end in ends] for name in sources], np.int64).reshape(shape)
        for row, name in enumerate(sources):
            if name not in available:
                continue
            rows = slice(int(edges[row]), int(edges[row + 1]))
            bins = weights.cell[rows] & np.uint64(BINS - 1)
            sums = np.concatenate([np.zeros(1, np.uint64), np.cumsum(weights.tokens[rows])])
            for phase, tokens in enumerate(upto[row].tolist()):
                whole[row, phase], left = divmod(tokens, totals[row])
                fraction[row, phase] = _hash_below(left, bins, sums)
        return Borders(list(sources), whole, fraction), np.diff(upto, axis=1, prepend=0)

    def copies(self, sources: Sequence[str], codes: npt.NDArray[Any], hashed: UInt64Array) -> Int64Array:
        """How often each document is in each phase, (n, phases) int64. codes: (n,), numbers in `sources`; hashed:
        (n,) uint64. Raises KeyError for a source that was not weighed.
        """
        known = {name: number for number, name in enumerate(self.sources)}
        used = np.unique(codes)
        number = np.zeros(len(sources), np.int64)
        number[used] = [known[sources[code]] for code in used.tolist()]
        rows = number[codes]
        upto = self.whole[rows] + (hashed[:, None] < self.part[rows])
        copies: Int64Array = np.diff(upto, axis=1, prepend=0)
        return copies


def _hash_below(tokens: int, bins: UInt64Array, sums: UInt64Array) -> int:
    """The hash below which a source's documents have so many tokens (fewer than all). bins: (n,) that have any;
    sums: (n + 1,) tokens before each.
    """
    at = int(np.searchsorted(sums, np.uint64(tokens), side="right")) - 1
    inside = ((tokens - int(sums[at])) << (64 - _BITS)) // (int(sums[at + 1]) - int(sums[at]))
    return (int(bins[at]) << (64 - _BITS)) + inside


class Mixing:
    """One mix over some documents. sources: names, by their codes. stands_for: (n,) documents of the source that each
    stands for; None where `by_copies` is not used. borders: of a mix by budget.
    """

    def __init__(
        self,
        mix: MixSettings,
        sources: Sequence[str],
        stands_for: npt.NDArray[Any] | None,
        borders: Borders | None = None,
    ) -> None:
        assert stands_for is not None or not mix.by_copies
        self._sources, self._borders = sources, borders
        self._by_source = np.array([mix.epochs.get(name, 1.0) for name in sources])
        self._stands_for = stands_for
        self._lows = np.array([part.low for part, _ in mix.ranges], np.int64)
        self._highs = np.array(
            [2**62 if part.high is None else part.high for part, _ in mix.ranges] + [0], np.int64
        )
        self._by_range = np.array([*(epochs for _, epochs in mix.ranges), 1.0])
        # In the ledger: what a repetition is called, by the document's range.
        self.reasons = [*(f"{REPEATED}_{part.label}" for part, _ in mix.ranges), REPEATED]

    def range_of(self, rows: Int64Array) -> Int64Array:
        """The number in `reasons` of each document's range of copies. rows: (m,) numbers of documents."""
        if self._stands_for is None:
            return np.zeros(len(rows), np.int64)
        copies = self._stands_for[rows].astype(np.int64)
        number = np.searchsorted(self._lows, copies, side="right") - 1
        outside = (number < 0) | (copies > self._highs[number])
        return np.where(outside, len(self._lows), number).astype(np.int64)

    def copies(self, rows: Int64Array, codes: npt.NDArray[Any], keys: UInt64Array, seed: int) -> Int64Array:
        """How often each document is in each phase of the stream, (m, phases) int64. rows: (m,) int64, numbers of
        documents; codes: (m,), of their sources; keys: (m,) uint64, of the documents (seeding.document_keys).
        """
        if self._borders is not None:
            return self._borders.copies(self._sources, codes, hashes(keys, seed))
        epochs = self._by_source[codes] * self._by_range[self.range_of(rows)]
        whole = np.floor(epochs)
        is_more = seeding.unit_interval(keys, seed, "mix") < epochs - whole
        repeats: Int64Array = (whole + is_more).astype(np.int64)[:, None]
        return repeats


# Copies to an order -----------------------------------------------------------------------------------------


def phases_of(copies: Int64Array) -> Int64Array:
    """The phase of each copy, in the order in which `np.repeat` repeats the documents. copies: (n, phases) int64;
    returns (copies.sum(),) int64.
    """
    numbers = np.arange(copies.size, dtype=np.int64) % max(1, copies.shape[1])
    return np.repeat(numbers, copies.reshape(-1))


def order_keys(
    keys: UInt64Array, copies: Int64Array, phase: Int64Array, ends: Sequence[float], seed: int
) -> UInt64Array:
    """What the copies of shuffled documents are ordered by. keys: (m,) uint64 of the document of each copy; copies:
    (n,) int64 how often each document is repeated, m in all; phase: (m,) int64; ends: of the phases, as parts of the
    budget. Returns (m,) uint64: each phase has the range of numbers that is its part of the budget.
    """
    salt = seeding.salt(seed, "shuffle")
    order = seeding.mix64(keys, salt)
    if (copies > 1).any():
        number = np.arange(len(keys)) - np.repeat(np.cumsum(copies) - copies, copies)
        later = number > 0
        order[later] = seeding.mix64(order[later] + number[later].astype(np.uint64), salt)
    if len(ends) == 1:
        return order
    borders = [0, *(min(2**64 - 1, int(Fraction(end) * 2**64)) for end in ends)]
    lows = np.array(borders[:-1], np.uint64)
    widths = np.array([high - low for low, high in pairwise(borders)], np.uint64)
    keys_of_phases: UInt64Array = lows[phase] + _high_part(order, widths[phase])
    return keys_of_phases


def _high_part(left: UInt64Array, right: UInt64Array) -> UInt64Array:
    """The upper 64 of the 128 bits of each product, (n,)."""
    half, mask = np.uint64(32), np.uint64(2**32 - 1)
    a, b, c, d = left >> half, left & mask, right >> half, right & mask
    middle = a * d + ((b * d) >> half)
    middle, carry = b * c + (middle & mask), middle >> half
    upper: UInt64Array = a * c + carry + (middle >> half)
    return upper
