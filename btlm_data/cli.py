"""The `btlm-data` command: options, calls, printing.

No logic; heavy modules are imported when a command runs.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import sys
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

import click

from btlm_data import entry, lineage_commands, terminal
from btlm_data.errors import ConfigError, InputError, Interrupted, install_command
from btlm_data.splits import SPLITS

if TYPE_CHECKING:
    from btlm_data.recipe.models import Recipe, Run


logger = logging.getLogger(__name__)
_LEAST_ADDRESS_SPACE = 1_000_000_000  # below it, numba and OpenBLAS end the process without an exception
_MOST_USED = "Most used"  # the first group of recipe.options.GROUPS


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
_SPLIT = entry.Completed(lambda: SPLITS)


@click.group(
    cls=entry.Program, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100}
)
@click.version_option(package_name="btlm-data", prog_name="btlm-data")
def cli() -> None:
    """Turn raw text corpora into verified, training-ready HDF5 shards.

    \b
    btlm-data prepare --source my_corpus/ --seq-len 2048 --out shards/
    btlm-data inspect shards/
    btlm-data verify shards/

    Exit codes: 0 done; 1 data damaged, or verification failed; 2 wrong option or recipe; 3 input cannot be
    read; 4 output cannot be written; 5 stopped for safety; 70 internal error; 130 interrupted.
    """


def _common_options(command: Any) -> Any:
    """The options of `prepare` and `run` that set no recipe key."""
    for option in (
        click.option(
            "--json",
            "as_json",
            is_flag=True,
            cls=entry.GroupedOption,
            group=_MOST_USED,
            help="Print the result (or the plan) as JSON.",
        ),
        click.option(
            "--plan",
            is_flag=True,
            cls=entry.GroupedOption,
            group=_MOST_USED,
            help="Print files, stages, disk, memory and an estimate of the time; run nothing.",
        ),
        click.option(
            "--set",
            "assignments",
            multiple=True,
            metavar="KEY=VALUE",
            cls=entry.GroupedOption,
            group=_MOST_USED,
            help="Any setting of a recipe by its dotted key (docs/recipes.md); repeatable.",
        ),
    ):
        command = option(command)
    return command


@cli.command(cls=RecipeCommand)
@click.option(
    "--config",
    cls=entry.GroupedOption,
    group=_MOST_USED,
    type=_RECIPE,
    metavar="RECIPE",
    help="A recipe file; options given here win over it.",
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


@cli.command("run", cls=RecipeCommand)
@click.argument("recipe", type=_RECIPE)
@click.option(
    "--trust",
    is_flag=True,
    cls=entry.GroupedOption,
    group=_MOST_USED,
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
    package = Path(__file__).resolve().parent
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
    **options: Any,
) -> None:
    from btlm_data.recipe.load import load
    from btlm_data.recipe.options import overrides

    path = _find_recipe(recipe_name) if recipe_name is not None else None
    recipe = load(path, overrides(options, assignments), trust=trust)
    _check_memory(recipe.run)
    if plan:
        _plan(recipe, as_json)
    else:
        _execute(recipe, as_json)


def _check_memory(run: Run) -> None:
    """Raise ConfigError where --memory is less than the processes of the run take."""
    if run.engine != "local" or run.memory is None or run.memory >= run.least_memory:
        return
    fewer = run.model_copy(update={"workers": 1}).least_memory
    or_fewer = f", or --workers 1 and at least {fewer // 10**6:,} MB" if run.workers > 1 else ""
    raise ConfigError(
        f"--memory (run.memory): {run.memory:,} bytes are less than a run with {run.workers} "
        f"worker{'s' * (run.workers > 1)} takes. Give --memory {run.least_memory // 10**6}MB or more{or_fewer}."
    )


def _load_kernels() -> None:
    """Import what is compiled.

    Raises ConfigError where the shell's memory limit would make it crash instead of fail.
    """
    limit = _address_space()
    if limit is not None and limit < _LEAST_ADDRESS_SPACE:
        raise ConfigError(
            f"The shell allows each process {limit // 10**6:,} MB of memory (ulimit -v), and this program "
            f"needs {_LEAST_ADDRESS_SPACE // 10**6:,} MB at least. Raise the limit, for example with "
            "ulimit -v unlimited."
        )
    from btlm_data.kernels import load_numba_without_scipy

    load_numba_without_scipy()


def _address_space() -> int | None:
    """Bytes of address space that this process may use; None without a limit."""
    try:
        import resource
    except ImportError:  # not on every system
        return None
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    return None if limit == resource.RLIM_INFINITY else limit


def _plan(recipe: Recipe, as_json: bool) -> None:
    _load_kernels()
    from btlm_data import planning

    plan = planning.measure(recipe)
    if as_json:
        terminal.echo(terminal.to_json(dataclasses.asdict(plan), indent=1))
    else:
        planning.render(plan, terminal.console())


def _execute(recipe: Recipe, as_json: bool) -> None:
    _load_kernels()
    from btlm_data import pipeline
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
            prepared = pipeline.prepare(recipe, events)
        if prepared.complete:
            prepared.warnings += publish.write_beside(
                recipe.run.out, report=recipe.run.report, card=recipe.run.card
            )
    except KeyboardInterrupt:
        raise Interrupted(
            "Interrupted. What was finished is kept in the work folder, and no file is half-written. "
            "Run the same command again; it continues from here."
        ) from None
    report = outcome.summarise(prepared, recipe, perf_counter() - start)
    if as_json:
        terminal.echo(terminal.to_json(dataclasses.asdict(report), indent=1))
    elif not quiet:
        outcome.render(report, console)


def _existing(path: Path) -> Path:
    """The path, if it exists. Raises InputError: a path that does not exist is a typo, not damage."""
    if "://" not in str(path) and not os.path.lexists(path):
        raise InputError(f"There is no {path}. Name a dataset folder, a split folder or a shard (.h5).")
    return path


def _dataset(path: Path) -> Path:
    """The path, unless it is a folder in which nothing was prepared. Raises InputError."""
    names = ("dataset.json", "preparing.json")
    if os.path.isdir(_existing(path)) and not any(os.path.lexists(path / name) for name in names):
        raise InputError(f"There is no {path / names[0]}. Name a dataset folder made by `btlm-data prepare`.")
    return path


@cli.command()
@click.argument("path", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Everything, for programs.")
@click.option("--split", type=_SPLIT, help="Show samples of this split.  [default: train, or the first]")
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
@click.option("--similarity", metavar="A-B", help="With --duplicates: pairs so similar, such as 0.80-0.85.")
@click.option("--cluster", type=click.IntRange(0), metavar="N", help="With --duplicates: of component N.")
@click.option("--largest", is_flag=True, help="With --duplicates: of the largest component.")
@click.option(
    "--from",
    "source_folder",
    type=click.Path(path_type=Path),
    metavar="FOLDER",
    help="With --duplicates: where the source's files are.  [default: where the run read them]",
)
@click.option("--full", is_flag=True, help="Show every figure, not only the first screen.")
@click.option(
    "--html",
    is_flag=False,
    flag_value="",
    metavar="[FILE]",
    help="Write everything to a page that needs nothing else.  [default: report.html in the dataset]",
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
    **conditions: Any,
) -> None:
    """Show what is in a dataset, a folder of shards or one .h5 file, made by this program or another.

    \b
    btlm-data inspect shards/
    btlm-data inspect shards/ --sample 17
    btlm-data inspect shards/ --html
    btlm-data inspect shards/ --duplicates --similarity 0.80-0.85
    """
    if not duplicates and any(value is not None and value is not False for value in conditions.values()):
        raise ConfigError(
            "--source, --reason, --similarity, --cluster, --largest and --from choose removed documents. Add --duplicates."
        )
    if duplicates:
        _inspect_duplicates(path, as_json, num_samples, **conditions)
        return
    _load_kernels()
    if html is not None:
        from btlm_data.pages import publish

        terminal.echo(f"Written: {publish.write_report(_existing(path), html)}. Open it with a browser.")
        return
    from msgspec import to_builtins

    from btlm_data.inspection import render, summary

    drawn = num_samples if num_samples is not None else 2 if full or as_json else 0
    report = summary.inspect(_existing(path), sample=samples, split=split, num_samples=drawn)
    if as_json:
        terminal.echo(terminal.to_json(to_builtins(report), indent=1))
    else:
        render.render(report, terminal.console(), full=full, samples=bool(samples or num_samples))


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
    found = duplicates.pairs(_existing(path), wanted, source_folder)
    if as_json:
        terminal.echo(terminal.to_json(duplicates.to_builtins(found), indent=1))
    else:
        duplicates.render(found, terminal.console())


@cli.command()
@click.argument("path", type=click.Path(path_type=Path))
@click.option(
    "--source",
    type=click.Path(path_type=Path),
    metavar="FOLDER",
    help="Also compare the source's files, which are in this folder, byte for byte.",
)
@click.option(
    "--deep",
    type=click.IntRange(1, 10**7),
    metavar="N",
    help="Also read N documents from the --source, tokenize them, and find them in the shards.",
)
@click.option(
    "--removals",
    type=click.IntRange(1, 10**7),
    metavar="N",
    help="Also read N removed documents and those kept for them from the source, and compare their texts again.",
)
@click.option(
    "--signers",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Require a signature by one of these keys (a file of allowed_signers, as ssh-keygen reads it).",
)
@click.option("--json", "as_json", is_flag=True, help="One JSON object for each check.")
def verify(
    path: Path,
    source: Path | None,
    deep: int | None,
    removals: int | None,
    signers: Path | None,
    as_json: bool,
) -> None:
    """Read everything again: checksums, shapes, masks, labels, token ids, ledger. Exit code 1 if it is wrong.

    \b
    btlm-data verify shards/
    btlm-data verify shards/ --source corpus/ --deep 100
    """
    if deep is not None and source is None:
        raise ConfigError("--deep reads documents from the source. Name its folder with --source.")
    for option, named in (("--source", source), ("--signers", signers)):
        if named is not None and "://" not in str(named) and not os.path.lexists(named.expanduser()):
            raise InputError(f"There is no {named}. Check the path given to {option}.")
    from time import perf_counter

    _load_kernels()
    from btlm_data.inspection import verify as verification
    from btlm_data.inspection.check import Check, show, summary

    console, start = terminal.console(), perf_counter()

    def report(check: Check) -> None:
        if as_json:
            terminal.echo(terminal.to_json(dataclasses.asdict(check)))
        else:
            show(check, console)

    checks = verification.verify(
        _existing(path), report, source, signers, verification.Again(deep or 0, removals or 0)
    )
    if not as_json:
        show(summary(checks, perf_counter() - start), console)
    if not verification.passed(checks):
        sys.exit(1)


@cli.command()
@click.argument("work_dir", metavar="WORKDIR")
@click.option(
    "--rank",
    default=0,
    show_default=True,
    type=click.IntRange(0),
    metavar="R",
    help="Which of several workers this is: where in the list of tasks it begins to look.",
)
@click.option(
    "--world",
    default=1,
    show_default=True,
    type=click.IntRange(1),
    metavar="N",
    help="How many workers there are, about; any number may come and go.",
)
@click.option(
    "--idle",
    default=600.0,
    show_default=True,
    type=click.FloatRange(0),
    metavar="SECONDS",
    help="End after so long without anything to do.",
)
def worker(work_dir: str, rank: int, world: int, idle: float) -> None:
    """Do tasks of the run in a work folder, beside other workers, until the run is over.

    The run itself is `btlm-data prepare --engine workers`, anywhere. Point a worker only at work folders of
    people whose recipes you would run.

    
    btlm-data worker work/ --rank $SLURM_ARRAY_TASK_ID --world 64
    """
    _load_kernels()
    from btlm_data.engine import worker as working
    from btlm_data.storage import open_store
    from btlm_data.wording import counted

    done = working.work(open_store(work_dir), working.Share(rank, world), idle)
    terminal.echo(f"This worker did {counted(done, 'task')}.")


@cli.command()
@click.argument("work_dir", metavar="WORKDIR")
@click.option("--watch", is_flag=True, help="Show it again every two seconds until the run is over.")
@click.option("--json", "as_json", is_flag=True, help="Everything, for programs.")
def status(work_dir: str, watch: bool, as_json: bool) -> None:
    """Show what the run in a work folder is doing: stages, tasks, speed, time left, slowest tasks, errors.

    
    btlm-data status shards/.work --watch
    """
    from btlm_data import run_status
    from btlm_data.storage import open_store

    run_status.show(open_store(work_dir), terminal.console(), watch=watch, as_json=as_json)


@cli.command()
@click.argument("path", type=click.Path(path_type=Path))
@click.option(
    "--key",
    type=click.Path(path_type=Path),
    required=True,
    metavar="FILE",
    help="An SSH key: a private one, or a public one whose private part an agent holds.",
)
def sign(path: Path, key: Path) -> None:
    """Sign a prepared dataset with an SSH key: writes dataset.json.sig, which `verify` checks.

    \b
    btlm-data sign shards/ --key ~/.ssh/id_ed25519
    """
    from btlm_data.inspection import signature

    written = signature.sign(_dataset(path), key.expanduser())
    terminal.echo(f"Signed: {written}. Next: `btlm-data verify {path} --signers FILE`.")


@cli.command("dedupe-curve")
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


@cli.command()
@click.argument("path", type=click.Path(path_type=Path))
@click.option(
    "--to",
    type=click.Choice(["megatron", "mds", "npy"]),
    required=True,
    help="Megatron-LM .bin/.idx, MosaicML MDS, or flat .bin.",
)
@click.option("--out", type=click.Path(path_type=Path), required=True, metavar="DIR", help="Folder to write.")
@click.option(
    "--split", "splits", multiple=True, type=_SPLIT, help="Only this split; repeatable.  [default: all]"
)
@click.option("--overwrite", is_flag=True, help="Replace an earlier export.")
def export(path: Path, to: str, out: Path, splits: tuple[str, ...], overwrite: bool) -> None:
    """Write a prepared dataset in another trainer's format.

    \b
    btlm-data export shards/ --to megatron --out megatron/
    """
    from btlm_data import export as exporting
    from btlm_data.wording import counted

    done = exporting.export(_dataset(path), to, out, splits=splits, overwrite=overwrite)
    for name, written in done.items():
        for split, part in written.items():
            unit = (
                counted(part.documents, "document")
                if part.documents is not None
                else counted(part.samples or 0, "sample")
            )
            left_out = "".join(
                f"; {counted(n, 'token')} left out: {why}" for why, n in part.left_out_tokens.items()
            )
            terminal.echo(
                f"{name + '/' if name else ''}{split}: {unit}, {counted(part.tokens, 'token')} "
                f"in {counted(len(part.files), 'file')}{left_out}"
            )


@cli.command()
@click.argument("paths", type=click.Path(path_type=Path), nargs=-1, required=True)
@click.option("--host", default="127.0.0.1", show_default=True, metavar="ADDRESS", help="Where to listen.")
@click.option(
    "--port", default=8765, show_default=True, type=click.IntRange(0, 65535), help="0 takes any that is free."
)
def serve(paths: tuple[Path, ...], host: str, port: int) -> None:
    """Look at datasets, and at runs in progress, in a browser: samples, documents, duplicates, search.

    PATHS are dataset folders, or work folders of runs. Other machines can connect only if --host says so, and
    then only with the token in the printed address.

    \b
    btlm-data serve shards/
    btlm-data serve shards/ other/ --port 9000
    """
    for path in paths:
        _existing(path)
    _load_kernels()
    try:
        from btlm_data.serve import app
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"`btlm-data serve` needs the package {error.name}. Install it with {install_command('serve')}."
        ) from None

    def ready(address: str) -> None:
        terminal.echo(f"Open {address} (Ctrl-C ends it).")
        terminal.finish()

    app.listen(paths, host, port, ready)


@cli.command()
@click.argument("path", type=click.Path(path_type=Path))
@click.argument("target", metavar="hf://datasets/ORG/NAME")
@click.option("--private", is_flag=True, help="Make the repository private, if it is made now.")
def push(path: Path, target: str, private: bool) -> None:
    """Upload a prepared dataset to a Hugging Face hub; the same command continues an interrupted upload.

    \b
    btlm-data push shards/ hf://datasets/ORG/NAME
    """
    from btlm_data import hub_upload

    sent, there = hub_upload.push(_existing(path), target, private=private, said=terminal.note)
    terminal.echo(f"Uploaded {sent:,} files to {target}; {there:,} were there.")


@cli.command()
@click.argument("left", type=click.Path(path_type=Path))
@click.argument("right", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Everything, for programs.")
def diff(left: Path, right: Path, as_json: bool) -> None:
    """Compare two datasets: settings, input files, counts, shares, documents in common, order.

    Exit code 0 whether they differ or not; with --json, `equal` says it.

    \b
    btlm-data diff shards/ other/
    """
    from msgspec import to_builtins

    from btlm_data.inspection import difference, difference_text

    found = difference.compare(_existing(left), _existing(right))
    if as_json:
        terminal.echo(terminal.to_json(to_builtins(found), indent=1))
    else:
        difference_text.show(found, terminal.console())


cli.add_command(lineage_commands.trace)
cli.add_command(lineage_commands.forget)


def main() -> None:
    """Entry point: every exception becomes words and an exit code."""
    entry.run(cli)


if __name__ == "__main__":
    main()
