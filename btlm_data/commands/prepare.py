"""`prepare` and `run`: from a recipe and its options to a dataset."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

import click
import msgspec

from btlm_data import entry, terminal
from btlm_data.commands import shared
from btlm_data.errors import ConfigError, Interrupted
from btlm_data.wording import amount

if TYPE_CHECKING:
    from btlm_data.cluster_plan import Cluster
    from btlm_data.engine.runner import Events
    from btlm_data.generations.index import IndexSize
    from btlm_data.pipeline import Prepared
    from btlm_data.recipe.models import Recipe


logger = logging.getLogger(__name__)
MOST_USED = "Most used"  # the first group of recipe.options.GROUPS
set_option = click.option(
    "--set",
    "assignments",
    multiple=True,
    metavar="KEY=VALUE",
    cls=entry.GroupedOption,
    group=MOST_USED,
    help="Any setting of a recipe by its dotted key (docs/recipes.md); repeatable.",
)


class RecipeCommand(entry.Command):
    """A command with an option for the settings of a recipe.

    They are made on demand: --help of the program stays quick.
    """

    _complete = False

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        """All parameters; the recipe's options come first."""
        if not self._complete:
            from btlm_data.recipe.options import options

            self._complete = True
            self.params[:0] = list(options(_source_names))
        return super().get_params(ctx)


def _source_names() -> list[str]:
    from btlm_data.sources import corpora

    return sorted([*corpora.BUILT_IN, "sample"])


def _recipe_names() -> list[str]:
    return sorted({path.stem for folder in _recipe_folders() for path in folder.glob("*.yaml")})


_RECIPE = entry.Completed(_recipe_names, files=True)


def _common_options(command: Any) -> Any:
    """The options of `prepare` and `run` that set no recipe key."""
    for option in (
        click.option(
            "--json",
            "as_json",
            is_flag=True,
            cls=entry.GroupedOption,
            group=MOST_USED,
            help="Print the result (or the plan) as JSON.",
        ),
        click.option(
            "--plan",
            is_flag=True,
            cls=entry.GroupedOption,
            group=MOST_USED,
            help="Print files, stages, disk, memory and an estimate of the time; run nothing.",
        ),
        click.option(
            "--cores",
            type=click.IntRange(1, 10**7),
            metavar="N",
            cls=entry.GroupedOption,
            group=MOST_USED,
            help="With --plan: what the run takes on a cluster of N cores, per stage.",
        ),
        click.option(
            "--nodes",
            type=click.IntRange(1, 10**6),
            metavar="N",
            cls=entry.GroupedOption,
            group=MOST_USED,
            help="With --cores: of so many nodes.  [default: 1]",
        ),
        click.option(
            "--storage",
            metavar="RATE[,LATENCY][,REQUESTS/s]",
            cls=entry.GroupedOption,
            group=MOST_USED,
            help="With --cores: what a node reads in a second, such as 2GB/s/node,1ms; or nvme, lustre, s3.  [default: nvme]",
        ),
        click.option(
            "--price",
            metavar="HOUR[,MILLION]",
            cls=entry.GroupedOption,
            group=MOST_USED,
            help="With --cores: the price of a node for an hour, and of a million requests.",
        ),
        set_option,
    ):
        command = option(command)
    return command


@click.command(cls=RecipeCommand)
@click.option(
    "--config",
    cls=entry.GroupedOption,
    group=MOST_USED,
    type=_RECIPE,
    metavar="RECIPE",
    help="A recipe file; options given here override it.",
)
@_common_options
def prepare(config: str | None, **options: Any) -> None:
    """Prepare a corpus: from text to verified shards. Run again, it continues where an earlier run stopped.

    Reads the source, writes the dataset (shards, dataset.json, tables) to --out, and keeps intermediate files
    in the work folder.

    \b
    btlm-data prepare --source my_corpus/ --seq-len 2048 --out shards/
    """
    _prepare(config, trust=False, **options)


@click.command("run", cls=RecipeCommand)
@click.argument("recipe", type=_RECIPE)
@click.option(
    "--trust",
    is_flag=True,
    cls=entry.GroupedOption,
    group=MOST_USED,
    help="Let a dataset.json name code to run (filter functions) and an index to write.",
)
@_common_options
def run_recipe(recipe: str, trust: bool, **options: Any) -> None:
    """Prepare what a recipe describes: a file, the name of a shipped recipe, or a dataset.json to repeat.

    From a dataset.json only what decides the data is repeated, never where or how the other run worked.

    \b
    btlm-data run pipelines/sample.yaml
    """
    _prepare(recipe, trust=trust, **options)


def _recipe_folders() -> list[Path]:
    package = Path(__file__).resolve().parent.parent
    return [folder for folder in (package / "pipelines", package.parent / "pipelines") if folder.is_dir()]


def _find_recipe(name: str) -> Path:
    """A path, the dataset.json of a dataset folder, or the name of a recipe inside the package (stage1).

    Raises ConfigError with the shipped names if there is no such thing.
    """
    from btlm_data.formats.dataset import FILE_NAME

    path = Path(name)
    if not name:
        raise ConfigError(
            "The name of the recipe is empty. Name a recipe file, such as pipelines/sample.yaml."
        )
    if os.path.isfile(path / FILE_NAME):
        return path / FILE_NAME
    if os.path.lexists(path):
        return path
    for folder in _recipe_folders():
        candidate = folder / (path.name if name.endswith(".yaml") else f"{name}.yaml")
        if os.path.isfile(candidate) and candidate.parent == folder:
            return candidate
    raise ConfigError(
        f"There is no recipe {name[:200]}. Name a recipe file, a dataset.json, or a shipped recipe: "
        f"{', '.join(_recipe_names())}."
    )


def _prepare(
    recipe_name: str | None,
    *,
    trust: bool,
    plan: bool,
    as_json: bool,
    assignments: tuple[str, ...],
    cores: int | None,
    nodes: int | None,
    storage: str | None,
    price: str | None,
    **options: Any,
) -> None:
    from btlm_data.recipe.load import load
    from btlm_data.recipe.options import overrides

    path = _find_recipe(recipe_name) if recipe_name is not None else None
    recipe = load(path, overrides(options, assignments), trust=trust)
    cluster = _cluster(plan, cores, nodes, storage, price)
    if plan:
        show_plan(recipe, as_json, cluster)
        return

    def run(events: Events) -> Prepared:
        from btlm_data import pipeline

        return pipeline.prepare(recipe, events)

    execute(recipe, as_json, run)


def _cluster(
    plan: bool, cores: int | None, nodes: int | None, storage: str | None, price: str | None
) -> Cluster | None:
    """The cluster to plan for; None where none is named. Raises ConfigError for options that do not go together."""
    if cores is None:
        given = [("--nodes", nodes), ("--storage", storage), ("--price", price)]
        if alone := [name for name, value in given if value is not None]:
            raise ConfigError(f"{alone[0]} describes a cluster to plan for. Add --plan --cores N.")
        return None
    if not plan:
        raise ConfigError("--cores describes a cluster to plan for. Add --plan, or use --workers for a run.")
    from btlm_data import cluster_plan

    if nodes is not None and nodes > cores:
        raise ConfigError(f"--nodes {nodes} with --cores {cores}: each node has one core at least.")
    speed = cluster_plan.parse_storage(storage) if storage is not None else cluster_plan.NVME
    node_hour, requests = cluster_plan.parse_price(price) if price is not None else (0.0, 0.0)
    return cluster_plan.Cluster(cores, nodes or 1, speed, node_hour, requests)


def show_plan(
    recipe: Recipe, as_json: bool, cluster: Cluster | None, *, index: IndexSize | None = None
) -> None:
    """Measure and print what a run takes. index: what is compared with, where documents are added to a dataset.
    Ends the program where the run would stop.
    """
    shared.load_kernels()
    from btlm_data import cluster_plan, planning

    plan = planning.measure(recipe)
    if cluster is not None and (recipe.run.engine != "local" or cluster.nodes == 1):
        cluster = msgspec.structs.replace(cluster, engine=recipe.run.engine)
    simulated = cluster_plan.simulate(plan.steps, cluster) if cluster is not None else None
    if as_json:
        described = msgspec.to_builtins(plan)
        if index is not None:
            described["index"] = msgspec.to_builtins(index)
        if simulated is not None:
            described["cluster"] = simulated.to_json()
        terminal.echo(terminal.to_json(described, indent=1))
    else:
        words = index.words() if index is not None else _index_words(plan.index_bytes, recipe.dedupe.index)
        planning.render(plan, words, terminal.console())
        if simulated is not None:
            terminal.console().print()
            cluster_plan.render(simulated, terminal.console())
    if plan.stops:
        sys.exit(plan.stops[0].exit_code)


def _index_words(num_bytes: int, location: str | None) -> str:
    """What an index of the run takes."""
    if not num_bytes:
        return "none: nothing is deduplicated"
    size = amount(num_bytes, "B")
    if location is not None:
        return f"up to {size} of this run in {location}"
    return f"up to {size} beside the dataset if something is added to it later"


def execute(recipe: Recipe, as_json: bool, prepare: Callable[[Events], Prepared]) -> None:
    """Prepare, with progress, and print what was done. prepare: does it, for a recipe that is `recipe`."""
    shared.load_kernels()
    from btlm_data.inspection import outcome
    from btlm_data.pages import publish
    from btlm_data.progress import Bars, Lines

    logger.debug("settings: %s", recipe.settings.model_dump_json(exclude_defaults=True))
    logger.debug("run: %s", recipe.run.model_dump_json(exclude_defaults=True))
    console = terminal.console(stderr=True)
    quiet = entry.is_quiet(click.get_current_context())
    start = perf_counter()
    try:
        with Bars(console) if console.is_terminal and not quiet else Lines() as events:
            prepared = prepare(events)
        if prepared.complete:
            prepared.warnings += publish.write_beside(
                prepared.out, report=recipe.run.report, card=recipe.run.card
            )
    except KeyboardInterrupt:
        raise Interrupted(
            "Interrupted. What was finished is kept in the work folder, and no file is half-written. "
            "Run the same command again; it continues from here."
        ) from None
    report = outcome.summarise(prepared, recipe, perf_counter() - start)
    if as_json:
        terminal.echo(terminal.to_json(msgspec.to_builtins(report), indent=1))
    elif not quiet:
        outcome.render(report, console)
