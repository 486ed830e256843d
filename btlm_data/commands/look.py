"""`inspect`, `serve` and `diff`: what is in a dataset."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from btlm_data import entry, terminal
from btlm_data.commands import shared
from btlm_data.errors import ConfigError, install_command


@click.command(cls=entry.Command)
@click.argument("path", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Everything, for programs.")
@click.option(
    "--split", type=shared.SPLIT, help="Show samples of this split.  [default: train, or the first]"
)
@click.option(
    "--sample",
    "samples",
    multiple=True,
    type=click.IntRange(0),
    metavar="N",
    help="Show sample N and the documents it is made of; repeatable.",
)
@click.option(
    "--num-samples",
    type=click.IntRange(0, 1000),
    metavar="N",
    help="Draw N samples and show them.  [default: 2 with --full and --json]",
)
@click.option(
    "--duplicates",
    is_flag=True,
    help="Show removed documents beside those kept for them, differences marked: a sample, drawn by a seed.",
)
@click.option("--source", metavar="NAME", help="With --duplicates: removed documents of this source.")
@click.option("--reason", metavar="REASON", help="With --duplicates: removed for this reason.")
@click.option(
    "--similarity", metavar="A-B", help="With --duplicates: pairs of this similarity, such as 0.85-0.90."
)
@click.option("--cluster", type=click.IntRange(0), metavar="N", help="With --duplicates: of component N.")
@click.option("--largest", is_flag=True, help="With --duplicates: of the largest component.")
@click.option(
    "--from",
    "source_folder",
    type=click.Path(path_type=Path),
    metavar="FOLDER",
    help="With --duplicates: where the source's files are.  [default: where the run read them]",
)
@click.option(
    "--cost", is_flag=True, help="Show what each step of the run took, beside what --plan expects of it."
)
@click.option(
    "--prefix",
    metavar="PART",
    help="Show the shares of sources in the first samples, in their order: 10%, or how many.",
)
@click.option("--full", is_flag=True, help="Show all figures, not only the most important ones.")
@click.option(
    "--html",
    is_flag=False,
    flag_value="",
    metavar="[FILE]",
    help="Write everything to one self-contained page.  [default: report.html in the dataset]",
)
def inspect(
    path: Path,
    as_json: bool,
    split: str | None,
    samples: tuple[int, ...],
    num_samples: int | None,
    full: bool,
    html: str | None,
    duplicates: bool,
    cost: bool,
    prefix: str | None,
    **conditions: Any,
) -> None:
    """Show what is in a dataset, a folder of shards or one .h5 file, made by this program or another.

    \b
    btlm-data inspect shards/
    btlm-data inspect shards/ --sample 17
    btlm-data inspect shards/ --prefix 10%
    btlm-data inspect shards/ --html
    btlm-data inspect shards/ --duplicates --similarity 0.85-0.90
    """
    if not duplicates and any(value is not None and value is not False for value in conditions.values()):
        raise ConfigError(
            "--source, --reason, --similarity, --cluster, --largest and --from choose removed documents. Add --duplicates."
        )
    if duplicates:
        _inspect_duplicates(path, as_json, num_samples, **conditions)
        return
    shared.take_kernels()
    if prefix is not None:
        _inspect_prefix(shared.dataset(path), prefix, split or "train", as_json)
        return
    if cost:
        from btlm_data import run_cost

        compared = run_cost.compare(shared.dataset(path))
        if as_json:
            terminal.echo(terminal.to_json(run_cost.to_json(compared), indent=1))
        else:
            run_cost.render(compared, terminal.console())
        return
    if html is not None:
        from btlm_data.pages import publish

        terminal.echo(
            f"Written: {publish.write_report(_existing_or_url(path), html)}. Open it with a browser."
        )
        return
    from msgspec import to_builtins

    from btlm_data.inspection import render, summary

    drawn = num_samples if num_samples is not None else 2 if full or as_json else 0
    report = summary.inspect(shared.existing(path), sample=samples, split=split, num_samples=drawn)
    if as_json:
        terminal.echo(terminal.to_json(to_builtins(report), indent=1))
    else:
        render.render(report, terminal.console(), full=full, samples=bool(samples or num_samples))


def _inspect_prefix(path: Path, part: str, split: str, as_json: bool) -> None:
    from msgspec import to_builtins

    from btlm_data.lineage import prefix

    for counted_prefix in prefix.prefixes(path, prefix.parse_part(part), split):
        if as_json:
            terminal.echo(terminal.to_json(to_builtins(counted_prefix)))
        else:
            for text in prefix.lines(counted_prefix):
                terminal.echo(text)


def _existing_or_url(path: Path) -> Path:
    """The path of what is there; a URL is asked when it is read."""
    return path if shared.is_url(path) else shared.existing(path)


def _inspect_duplicates(
    path: Path,
    as_json: bool,
    count: int | None,
    source_folder: Path | None,
    similarity: str | None,
    **conditions: Any,
) -> None:
    from btlm_data.inspection import duplicates

    between = duplicates.parse_range(similarity) if similarity is not None else None
    wanted = duplicates.Wanted(count=10 if count is None else count, similarity=between, **conditions)
    chosen = duplicates.pairs(shared.existing(path), wanted, source_folder)
    if as_json:
        terminal.echo(terminal.to_json(duplicates.to_builtins(chosen), indent=1))
    else:
        duplicates.render(chosen, terminal.console())


@click.command(cls=entry.Command)
@click.argument("paths", type=click.Path(path_type=Path), nargs=-1, required=True)
@click.option("--host", default="127.0.0.1", show_default=True, metavar="ADDRESS", help="Where to listen.")
@click.option(
    "--port", default=8765, show_default=True, type=click.IntRange(0, 65535), help="0 takes any free port."
)
@click.option(
    "--run",
    type=click.Path(path_type=Path),
    metavar="RUNDIR",
    help="A training run: also show its samples step by step, and which steps take a sample.",
)
def serve(paths: tuple[Path, ...], host: str, port: int, run: Path | None) -> None:
    """Show datasets, and runs in progress, in a browser: samples, documents, duplicates, search.

    PATHS are dataset folders, or work folders of runs that prepare one. Other machines can
    connect only if --host says so, and then only with the token in the printed address.

    \b
    btlm-data serve shards/
    btlm-data serve shards/ other/ --port 9000
    btlm-data serve shards/ --run runs/stage1
    """
    for path in paths:
        shared.existing(path)
    shared.load_kernels()
    try:
        from btlm_data.serve import app
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"`btlm-data serve` needs the package {error.name}. Install it with {install_command('serve')}."
        ) from None

    def ready(address: str) -> None:
        terminal.echo(f"Open {address} (Ctrl-C ends it).")
        terminal.finish()

    app.listen(paths, host, port, ready, run)


@click.command(cls=entry.Command)
@click.argument("left", type=click.Path(path_type=Path))
@click.argument("right", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Everything, for programs.")
def diff(left: Path, right: Path, as_json: bool) -> None:
    """Compare two datasets: settings, input files, counts, shares, documents in common, order.

    Exit code 0 whether they differ or not; `equal` in the --json output says which.

    \b
    btlm-data diff shards/ other/
    """
    from msgspec import to_builtins

    from btlm_data.inspection import difference, difference_text

    compared = difference.compare(shared.dataset(left), shared.dataset(right))
    if as_json:
        terminal.echo(terminal.to_json(to_builtins(compared), indent=1))
    else:
        difference_text.show(compared, terminal.console())
