"""The `btlm-data` command: options, calls, printing, exit codes. No logic; heavy modules are imported when a command runs."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from btlm_data import entry, terminal
from btlm_data.errors import Interrupted

if TYPE_CHECKING:
    from btlm_data.recipe.models import Recipe

# Option -> (recipe key, what click should know). One entry gives flag, recipe key and help.
_PREPARE: list[tuple[str, str, dict[str, Any]]] = [
    ("--source", "source.name", {"help": "Registered name, file, folder, glob or URL (hf://, s3://, https://).  [default: sample]"}),
    ("--seq-len", "seq_len", {"multiple": True, "metavar": "N[:SHARE]", "help": "Sequence length; repeat for several from one pass over the text; with shares each document belongs to one.  [default: 2048]"}),
    ("--out", "run.out", {"help": "Dataset folder, or a URL to upload to.  [default: shards]"}),
    ("--format", "format", {"type": click.Choice(["sample", "corpus", "vsl"]), "help": "Layout of the shards.  [default: sample]"}),
    ("--tokenizer", "tokenizer.name", {"help": "gpt2 (inside the package), a tokenizer.json, a folder or a hub id.  [default: gpt2]"}),
    ("--dedupe", "dedupe.method", {"type": click.Choice(["minhash", "exact", "none"]), "help": "How duplicates are found.  [default: minhash]"}),
    ("--shuffle", "shuffle", {"type": click.Choice(["samples", "documents", "none"]), "help": "What is shuffled, globally.  [default: samples]"}),
    ("--tail", "tail", {"type": click.Choice(["pad", "drop"]), "help": "The last, short sample of a split.  [default: pad]"}),
    ("--samples-per-file", "shards.samples_per_file", {"type": int, "help": "Samples per shard.  [default: 16,777,216 tokens' worth]"}),
    ("--text-field", "source.text_field", {"help": "Record field that holds the text; dots descend.  [default: text]"}),
    ("--seed", "seed", {"type": int, "help": "Seed of every random choice.  [default: 0]"}),
    ("--limit", "source.limit", {"type": int, "metavar": "N", "help": "Read only the first N records of each split."}),
    ("--chunks", "source.chunks", {"metavar": "1,2", "help": "SlimPajama's numbered chunks to read."}),
    ("--files", "source.files", {"type": int, "metavar": "N", "help": "Read only the first N files of each split."}),
    ("--exclude-source", "source.exclude_sources", {"multiple": True, "metavar": "NAME", "help": "Leave out documents of a source, for example RedPajamaBook; repeatable."}),
    ("--dedupe-index", "dedupe.index", {"metavar": "DIR", "help": "Drop what matches an index of earlier runs, and add this run to it."}),
    ("--emit-text", "run.emit_text", {"metavar": "DIR", "help": "Also write the kept text as .jsonl.zst, 10,000 documents a file."}),
    ("--workers", "run.workers", {"type": int, "help": "Processes; changes no byte.  [default: all cores]"}),
    ("--memory", "run.memory", {"metavar": "SIZE", "help": "Memory for the whole run, for example 16GB; changes no byte.  [default: 1GB a worker]"}),
    ("--engine", "run.engine", {"type": click.Choice(["local"]), "help": "Where tasks run.  [default: local]"}),
    ("--work-dir", "run.work_dir", {"metavar": "DIR", "help": "Intermediate files and receipts.  [default: OUT/.work]"}),
    ("--cache-dir", "run.cache_dir", {"metavar": "DIR", "help": "Where remote files are held while they are read."}),
    ("--cache-size", "run.cache_size", {"metavar": "SIZE", "help": "Most bytes of remote files on disk at once.  [default: 50GB]"}),
    ("--sources-file", "run.sources_file", {"metavar": "FILE", "help": "More registered sources (YAML)."}),
    ("--stop-after", "run.stop_after", {"type": click.Choice(["acquire", "clean", "dedupe", "holdout", "tokenize", "shuffle", "pack", "shard"]), "help": "End after this stage; a later run goes on."}),
]  # fmt: skip
_FLAGS = [
    ("--strict", "run.strict", "The first bad record ends the run with an error."),
    (
        "--accept-removal",
        "run.accept_removal",
        "Go on although deduplication removes more than dedupe.max_removed.",
    ),
    ("--overwrite", "run.overwrite", "Replace another dataset in the output folder."),
    ("--keep-downloads", "run.keep_downloads", "Do not evict remote files after they are read."),
]


def _recipe_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """All options of `prepare` and `run`."""
    command = click.option(
        "--plan",
        is_flag=True,
        help="Print stages, tasks, bytes, disk and an estimate of the time; run nothing.",
    )(command)
    command = click.option(
        "--set",
        "assignments",
        multiple=True,
        metavar="KEY=VALUE",
        help="Any setting of a recipe by its dotted key; repeatable.",
    )(command)
    for flag, key, text in reversed(_FLAGS):
        command = click.option(flag, _parameter(key), is_flag=True, default=None, help=text)(command)
    for flag, key, details in reversed(_PREPARE):
        command = click.option(flag, _parameter(key), **details)(command)
    return command


def _parameter(key: str) -> str:
    return "opt_" + key.replace(".", "__")


@click.group(
    cls=entry.Program, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120}
)
@click.version_option(package_name="btlm-data", prog_name="btlm-data")
def cli() -> None:
    """Turn raw text corpora into verified, training-ready HDF5 shards.

    \b
    btlm-data prepare --source sample --seq-len 2048 --out shards/
    btlm-data inspect shards/
    btlm-data verify shards/

    Exit codes: 0 done; 1 verification failed or data damaged; 2 wrong option or recipe; 3 input cannot be read; 4 output
    cannot be written; 5 stopped for safety; 130 interrupted.
    """


@cli.command()
@click.option("--config", type=click.Path(dir_okay=False), help="A recipe; options given here win over it.")
@_recipe_options
def prepare(config: str | None, plan: bool, assignments: tuple[str, ...], **options: Any) -> None:
    """Prepare a corpus: source to verified shards, resuming whatever an earlier run finished.

    Reads the source, writes --out (shards, dataset.json, tables) and the work folder.

    \b
    btlm-data prepare --source my_corpus/ --seq-len 2048 --out shards/
    """
    _prepare(config, plan, assignments, options)


@cli.command("run")
@click.argument("recipe")
@_recipe_options
def run_recipe(recipe: str, plan: bool, assignments: tuple[str, ...], **options: Any) -> None:
    """Prepare what a recipe describes: a pipeline file, the name of a shipped one, or a dataset.json to repeat.

    \b
    btlm-data run pipelines/sample.yaml
    """
    _prepare(_find_recipe(recipe), plan, assignments, options)


def _find_recipe(name: str) -> str:
    """A path, or the name of a pipeline inside the package (stage1)."""
    if Path(name).exists():
        return name
    package = Path(__file__).resolve().parent
    for folder in (package / "pipelines", package.parent / "pipelines"):
        candidate = folder / (Path(name).name if name.endswith(".yaml") else f"{name}.yaml")
        if candidate.exists():
            return str(candidate)
    return name


def _prepare(config: str | None, plan: bool, assignments: tuple[str, ...], options: dict[str, Any]) -> None:
    from btlm_data.kernels import load_numba_without_scipy

    load_numba_without_scipy()
    from btlm_data import pipeline, plan_report
    from btlm_data.inspection import outcome
    from btlm_data.progress import Bars, Lines

    recipe = _recipe(config, assignments, options)
    console = terminal.console(stderr=True)
    if plan:
        plan_report.render(plan_report.measure(recipe), terminal.console())
        return
    try:
        with Bars(console) if console.is_terminal else Lines() as events:
            prepared = pipeline.prepare(recipe, events)
    except KeyboardInterrupt:
        raise Interrupted(
            "Interrupted. All that was finished is kept in the work folder and nothing half-written has its final name. "
            "Run the same command again: it goes on from here."
        ) from None
    outcome.render(prepared, recipe, console)


def _recipe(config: str | None, assignments: tuple[str, ...], options: dict[str, Any]) -> Recipe:
    from btlm_data.recipe.load import Override, load, parse_assignment

    overrides: dict[str, Override] = {}
    for flag, key, details in _PREPARE:
        value = options[_parameter(key)]
        if value is None or value == ():
            continue
        if key == "source.chunks":
            value = [part.strip() for part in value.split(",") if part.strip()]
        elif details.get("multiple"):
            value = list(value)
        overrides[key] = Override(value, flag)
    for flag, key, _ in _FLAGS:
        if options[_parameter(key)]:
            overrides[key] = Override(True, flag)
    for assignment in assignments:
        key, override = parse_assignment(assignment)
        overrides[key] = override
    return load(Path(config) if config else None, overrides)


@cli.command()
@click.argument("path", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Everything, for programs.")
@click.option("--split", help="Show samples of this split.  [default: train, or the first]")
@click.option(
    "--sample",
    "samples",
    multiple=True,
    type=int,
    metavar="N",
    help="Show sample N and which documents it is made of; repeatable.",
)
@click.option(
    "--num-samples", default=2, show_default=True, help="How many samples to show when none is named."
)
def inspect(path: Path, as_json: bool, split: str | None, samples: tuple[int, ...], num_samples: int) -> None:
    """Show what is in a dataset, a folder of shards or one .h5 file, whoever wrote it.

    \b
    btlm-data inspect shards/ --sample 17
    """
    from btlm_data.kernels import load_numba_without_scipy

    load_numba_without_scipy()
    from btlm_data.inspection import render, summary

    report = summary.inspect(path, sample=samples, split=split, num_samples=num_samples)
    if as_json:
        terminal.echo(terminal.to_json(report, indent=1))
    else:
        render.render(report, terminal.console())


@cli.command()
@click.argument("path", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="One JSON object a check.")
def verify(path: Path, as_json: bool) -> None:
    """Re-read everything: checksums, shapes, masks, label shift, token ids, ledger. Exit code 1 if anything is off.

    \b
    btlm-data verify shards/
    """
    import dataclasses

    from btlm_data.kernels import load_numba_without_scipy

    load_numba_without_scipy()
    from btlm_data.inspection import verify as verification
    from btlm_data.inspection.check import Check

    def report(check: Check) -> None:
        if as_json:
            terminal.echo(terminal.to_json(dataclasses.asdict(check)))
        else:
            terminal.echo(verification.line(check))

    checks = verification.verify(path, report)
    if any(check.ok is False for check in checks):
        sys.exit(1)


@cli.command("dedupe-curve")
@click.option("--bands", default=9, show_default=True, type=click.IntRange(1), help="Bands of the sketch.")
@click.option("--rows", default=13, show_default=True, type=click.IntRange(1), help="Values in a band.")
@click.option(
    "--threshold",
    type=click.FloatRange(0, 1, min_open=True),
    help="Propose bands and rows for this similarity.",
)
@click.option(
    "--num-perm",
    default=128,
    show_default=True,
    type=click.IntRange(1),
    help="Permutations to propose within.",
)
def dedupe_curve(bands: int, rows: int, threshold: float | None, num_perm: int) -> None:
    """Print the probability that a pair of documents of each similarity is caught.

    \b
    btlm-data dedupe-curve --bands 9 --rows 13
    """
    from btlm_data import dedupe_curve as curve

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
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder to write.")
@click.option("--split", "splits", multiple=True, help="Only this split; repeatable.  [default: all]")
@click.option("--overwrite", is_flag=True, help="Replace an earlier export.")
def export(path: Path, to: str, out: Path, splits: tuple[str, ...], overwrite: bool) -> None:
    """Write a prepared dataset in another trainer's format.

    \b
    btlm-data export shards/ --to megatron --out megatron/
    """
    from btlm_data import export as exporting

    done = exporting.export(path, to, out, splits=splits, overwrite=overwrite)  # type: ignore[arg-type]
    for name, written in done.items():
        for split, what in written.items():
            left = "".join(f"; {n:,} tokens left out: {reason}" for reason, n in what.left_out_tokens.items())
            unit = (
                f"{what.documents:,} documents"
                if what.documents is not None
                else f"{what.samples or 0:,} samples"
            )
            terminal.echo(
                f"{name + '/' if name else ''}{split}: {unit}, {what.tokens:,} tokens in {len(what.files)} files{left}"
            )


def main() -> None:
    """Entry point: every exception becomes words and an exit code."""
    entry.run(cli)


if __name__ == "__main__":
    main()
