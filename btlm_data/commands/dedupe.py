"""`dedupe-curve`: how many duplicates a choice of bands finds."""

from __future__ import annotations

import click

from btlm_data import terminal
from btlm_data.errors import ConfigError


@click.command("dedupe-curve")
@click.option(
    "--bands", type=click.IntRange(1, 4096), help="Bands of a signature.  [default: 16, or the preset's]"
)
@click.option(
    "--rows", type=click.IntRange(1, 4096), help="Hash values in a band.  [default: 8, or the preset's]"
)
@click.option(
    "--preset",
    type=click.Choice(["slimpajama", "fineweb", "nemotron"]),
    help="The bands and rows of a published corpus.",
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
def dedupe_curve(
    bands: int | None, rows: int | None, preset: str | None, threshold: float | None, num_perm: int
) -> None:
    """Print the probability that two documents of each similarity are found to be duplicates.

    \b
    btlm-data dedupe-curve --bands 16 --rows 8
    btlm-data dedupe-curve --preset fineweb
    """
    if threshold is not None and not threshold <= 1:  # NaN passes click's range
        raise ConfigError("--threshold nan is not a similarity. Give a number above 0 and up to 1.")
    from btlm_data.dedupe import curve
    from btlm_data.recipe.models import DedupeSettings

    chosen = DedupeSettings.model_validate({"preset": preset})
    if preset is not None:
        terminal.echo(
            f"{preset}: features of {chosen.shingle_size} {chosen.shingle}, verify: {chosen.verify}"
        )
    terminal.echo(curve.table(bands or chosen.bands, rows or chosen.rows))
    if threshold is not None:
        terminal.echo(curve.proposals(threshold, num_perm))
