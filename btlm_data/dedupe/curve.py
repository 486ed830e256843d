"""How likely two documents of each similarity are found with given bands and rows, and which bands and rows
suit a threshold.

Two documents of Jaccard similarity s agree in one value of a MinHash signature with probability s, in all
rows of a band with s^rows, and in at least one band with 1 - (1 - s^rows)^bands (Leskovec, Rajaraman &
Ullman, Mining of Massive Datasets, section 3.4.2).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

SIMILARITIES = (0.5, 0.6, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95, 0.99)
_STEPS = 2000  # of each integral, by the midpoint rule: seven correct digits, as the curves are smooth


class Proposal(NamedTuple):
    """Bands and rows for a threshold.

    false_positives: area under the curve below the threshold. false_negatives: area above the curve beyond
    it.
    """

    bands: int
    rows: int
    false_positives: float
    false_negatives: float

    @property
    def num_perm(self) -> int:
        """Values of the signature that are used."""
        return self.bands * self.rows


def probability(
    similarity: float | npt.NDArray[np.float64], bands: int, rows: int
) -> npt.NDArray[np.float64]:
    """Probability that a pair of this Jaccard similarity shares a band, for similarities of any shape;
    float64.
    """
    return np.asarray(
        -np.expm1(bands * np.log1p(-np.minimum(np.asarray(similarity, np.float64) ** rows, 1 - 2**-53)))
    )


def propose(threshold: float, num_perm: int = 128, false_positive_weight: float = 0.5) -> Proposal:
    """The bands and rows within num_perm values with the least weighted sum of false positives and false
    negatives.

    The sum is datasketch's (MinHashLSH): the weight times the area under the curve below the threshold, plus
    the rest of 1 times the area over the curve beyond it; the result is the same as its. Of equal ones the
    fewest bands, then the fewest rows.
    """
    best: tuple[float, Proposal] | None = None
    below, above = _midpoints(0, threshold), _midpoints(threshold, 1)
    for bands in range(1, num_perm + 1):
        for rows in range(1, num_perm // bands + 1):
            positives = float(probability(below, bands, rows).mean() * threshold)
            negatives = float((1 - probability(above, bands, rows)).mean() * (1 - threshold))
            error = false_positive_weight * positives + (1 - false_positive_weight) * negatives
            if best is None or error < best[0]:
                best = error, Proposal(bands, rows, positives, negatives)
    assert best is not None
    return best[1]


def _midpoints(low: float, high: float) -> npt.NDArray[np.float64]:
    return np.asarray(low + (np.arange(_STEPS) + 0.5) * (high - low) / _STEPS)


def table(bands: int, rows: int) -> str:
    """The curve as text: a line for each similarity, with a bar."""
    lines = [f"{bands} bands x {rows} rows: {bands * rows} values of a signature", "similarity   found"]
    for similarity in SIMILARITIES:
        caught = float(probability(similarity, bands, rows))
        lines.append(f"{similarity:10.2f}  {caught:6.3f}  {'#' * round(40 * caught)}".rstrip())
    half = float((1 - 0.5 ** (1 / bands)) ** (1 / rows))
    lines.append(f"Half of the pairs are found at similarity {half:.3f}.")
    return "\n".join(lines)


def proposals(threshold: float, num_perm: int = 128) -> str:
    """Proposals for a threshold as text: balanced, with fewer false positives, and with fewer misses."""
    lines = [f"For a threshold of {threshold} within {num_perm} values:"]
    wishes = (("balanced", 0.5), ("fewer false positives", 0.9), ("fewer misses", 0.1))
    for name, weight in wishes:
        p = propose(threshold, num_perm, weight)
        at = float(probability(threshold, p.bands, p.rows))
        lines.append(
            f"  {name:22}--bands {p.bands} --rows {p.rows}  (num_perm used {p.num_perm}; {at:.3f} found at "
            f"{threshold})"
        )
    lines.append("In a recipe: dedupe: {bands: ..., rows: ..., num_perm: ...}.")
    return "\n".join(lines)
