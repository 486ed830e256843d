"""`dedupe-curve`: how many duplicates a choice of bands finds."""

from __future__ import annotations

import click

from btlm_data import terminal
from btlm_data.errors import ConfigError


@click.command("dedupe-curve")
@click.option(
    "--bands", default=16, show_default=True, type=click.IntRange(1, 4096), help="Bands of a signature."
)
@click.option(
    "--rows", default=8, show_default=True, type=click.IntRange(1, 4096), help="Hash values in a band."
)
@click.option(
    "--threshold",
    type=click.FloatRange(0, 1, min_open=True),
    help="Also propose bands and rows for this similarity.",
)
@click.option(
    "--num-perm",
    default=128,
    show_default=True,
    type=click.IntRange(1, 4096),
    help="Hash values in a signature, for the proposals.",
)
def dedupe_curve(bands: int, rows: int, threshold: float | None, num_perm: int) -> None:
    """Print the probability that two documents of each similarity are found to be duplicates.

    \b
    btlm-data dedupe-curve --bands 16 --rows 8
    """
    if threshold is not None and not threshold <= 1:  # NaN passes click's range
        raise ConfigError("--threshold nan is not a similarity. Give a number above 0 and up to 1.")
    from btlm_data.dedupe import curve

    terminal.echo(curve.table(bands, rows))
    if threshold is not None:
        terminal.echo(curve.proposals(threshold, num_perm))
