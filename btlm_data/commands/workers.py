"""`worker` and `status`: runs on several machines."""

from __future__ import annotations

import click

from btlm_data import entry, terminal
from btlm_data.commands import shared


@click.command(cls=entry.Command)
@click.argument("work_dir", metavar="WORKDIR")
@click.option(
    "--rank",
    default=0,
    show_default=True,
    type=click.IntRange(0),
    metavar="R",
    help="The number of this worker, from 0; decides where in the list of tasks it begins.",
)
@click.option(
    "--world",
    default=1,
    show_default=True,
    type=click.IntRange(1),
    metavar="N",
    help="The approximate number of workers; any number may start and stop during the run.",
)
@click.option(
    "--idle",
    default=600.0,
    show_default=True,
    type=click.FloatRange(0),
    metavar="SECONDS",
    help="End after this time without a task.",
)
def worker(work_dir: str, rank: int, world: int, idle: float) -> None:
    """Process tasks of the run in a work folder, together with other workers, until the run ends.

    The run itself is `btlm-data prepare --engine workers`, anywhere. Use only work folders of people whose
    recipes you would run.

    \b
    btlm-data worker work/ --rank $SLURM_ARRAY_TASK_ID --world 64
    """
    shared.load_kernels()
    import numpy as np

    from btlm_data.engine import worker as working
    from btlm_data.stages import ready
    from btlm_data.storage import open_store
    from btlm_data.wording import counted

    store = open_store(work_dir)
    store.reach()
    ready.load_kernels(np.uint16)  # of most vocabularies: now, not in the first tasks
    done = working.work(store, working.Share(rank, world), idle)
    terminal.echo(f"This worker did {counted(done, 'task')}.")


@click.command(cls=entry.Command)
@click.argument("work_dir", metavar="WORKDIR")
@click.option("--watch", is_flag=True, help="Show it again every two seconds until the run is over.")
@click.option("--json", "as_json", is_flag=True, help="Everything, for programs.")
def status(work_dir: str, watch: bool, as_json: bool) -> None:
    """Show what the run in a work folder is doing: stages, tasks, speed, time left, slowest tasks, errors.

    \b
    btlm-data status shards/.work --watch
    """
    from btlm_data import run_status
    from btlm_data.storage import open_store

    store = open_store(work_dir)
    store.reach()
    run_status.show(store, terminal.console(), watch=watch, as_json=as_json)
