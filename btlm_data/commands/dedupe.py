"""`dedupe-curve` and `dedupe-report`: what deduplication finds, and what other settings would remove."""

from __future__ import annotations

from typing import Literal

import click

from btlm_data import entry, terminal
from btlm_data.commands import shared
from btlm_data.errors import ConfigError


@click.command("dedupe-curve", cls=entry.Command)
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


@click.command("dedupe-report", cls=entry.Command)
@click.argument("path", metavar="WORKDIR|DATASET")
@click.option(
    "--threshold",
    "thresholds",
    multiple=True,
    type=click.FloatRange(0, 1, min_open=True),
    metavar="T",
    help="Decide by texts with this threshold; repeatable.  [default: 0.7, 0.75, 0.8, 0.85, 0.9, 0.95, and the run's]",
)
@click.option(
    "--similarity",
    "similarities",
    multiple=True,
    type=click.Choice(["jaccard", "containment"]),
    help="The similarity of texts; repeatable.  [default: the run's]",
)
@click.option(
    "--pairs",
    "num_pairs",
    default=10,
    show_default=True,
    type=click.IntRange(0, 1000),
    metavar="N",
    help="Pairs to show nearest to each threshold, half of each side of it.",
)
@click.option("--dedupe-index", metavar="DIR", help="Where the index is, if the run was matched against one.")
@click.option(
    "--workers",
    type=click.IntRange(1, 4096),
    metavar="N",
    help="Processes, with up to 0.5 GB each.  [default: one for each core]",
)
@click.option("--json", "as_json", is_flag=True, help="Everything, for programs.")
def dedupe_report(
    path: str,
    thresholds: tuple[float, ...],
    similarities: tuple[Literal["jaccard", "containment"], ...],
    num_pairs: int,
    dedupe_index: str | None,
    workers: int | None,
    as_json: bool,
) -> None:
    """Show what other rules and thresholds would remove, by source, without reading the source again.

    WORKDIR is the work folder of a run that got as far as deduplication (--stop-after dedupe, or a
    stop for safety); DATASET a prepared dataset whose .work is still there. Texts are compared as
    the run has stored them. Pairs nearest to each threshold are shown side by side.

    \b
    btlm-data dedupe-report shards/
    btlm-data dedupe-report shards/.work --threshold 0.8 --threshold 0.9 --similarity containment
    """
    if any(not threshold <= 1 for threshold in thresholds):  # NaN passes click's range
        raise ConfigError("--threshold nan is not a similarity. Give a number above 0 and up to 1.")
    shared.load_kernels()
    from btlm_data.dedupe import report
    from btlm_data.inspection import dedupe_report as shown

    made = report.make(
        path,
        thresholds,
        similarities,
        index=dedupe_index,
        workers=workers or report.cores(),
        num_pairs=num_pairs,
    )
    if as_json:
        terminal.echo(terminal.to_json(shown.to_builtins(made), indent=1))
    else:
        shown.render(made, terminal.console())
