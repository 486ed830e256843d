"""`add`: documents of a new source, as the next generation of a dataset."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import click

from btlm_data import entry
from btlm_data.commands import shared
from btlm_data.commands.prepare import MOST_USED, RecipeCommand, execute, set_option, show_plan

# Settings that are those of the dataset: their options are understood, and refused in words where they differ.
_OF_THE_DATASET = (
    "run.out",
    "seq_len",
    "tokenizer.name",
    "tokenizer.eos",
    "format",
    "tail",
    "shards.samples_per_file",
    "dedupe.method",
    "dedupe.preset",
    "dedupe.bands",
    "dedupe.rows",
    "dedupe.num_perm",
    "dedupe.verify",
    "dedupe.similarity",
    "dedupe.threshold",
    "dedupe.keep",
    "dedupe.source_priority",
    "dedupe.index",
)


class _AddCommand(RecipeCommand):
    """The options of `prepare` that can differ from one generation to the next."""

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        """All parameters."""
        from btlm_data.recipe.options import parameter_name

        names = {parameter_name(key) for key in _OF_THE_DATASET}
        params = super().get_params(ctx)
        for param in params:
            if param.name in names and isinstance(param, click.Option):
                param.hidden = True
        return params


@click.command(cls=_AddCommand)
@click.argument("path", type=click.Path(path_type=Path))
@click.option(
    "--trust",
    is_flag=True,
    cls=entry.GroupedOption,
    group=MOST_USED,
    help="Let the dataset's settings name code to run (filter functions).",
)
@click.option(
    "--json",
    "as_json",
    is_flag=True,
    cls=entry.GroupedOption,
    group=MOST_USED,
    help="Print the result (or the plan) as JSON.",
)
@click.option(
    "--plan",
    "only_plan",
    is_flag=True,
    cls=entry.GroupedOption,
    group=MOST_USED,
    help="Print the plan, and the size of the index that documents are compared with; write nothing.",
)
@set_option
def add(
    path: Path, trust: bool, as_json: bool, only_plan: bool, assignments: tuple[str, ...], **options: Any
) -> None:
    """Add the documents of a new source to a prepared dataset, as its next generation.

    The source is prepared as the dataset was, and deduplicated against all that is there. Shards that are
    there stay as they are; the new ones are in a folder of their own, with a shuffle of their own. Run again,
    it continues where an earlier run stopped.

    \b
    btlm-data add shards/ --source new_crawl/
    """
    from btlm_data.recipe.options import overrides

    shared.load_kernels()
    from btlm_data.generations import add as adding

    planned = adding.plan(shared.dataset(path), overrides(options, assignments), trust=trust)
    if only_plan:
        show_plan(adding.to_measure(planned), as_json, None, index=planned.index_size)
        return
    execute(planned.recipe, as_json, partial(adding.add, planned))
