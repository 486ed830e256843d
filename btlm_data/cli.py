"""The `btlm-data` command: the program and its commands, which are in btlm_data/commands."""

from __future__ import annotations

import click

from btlm_data import entry
from btlm_data.commands import add, dedupe, hand_on, lineage, look, prepare, verify, workers


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


for command in (
    prepare.prepare,
    prepare.run_recipe,
    add.add,
    look.inspect,
    verify.verify,
    workers.worker,
    workers.status,
    verify.sign,
    dedupe.dedupe_curve,
    dedupe.dedupe_report,
    hand_on.export,
    look.serve,
    hand_on.push,
    look.diff,
    lineage.trace,
    lineage.index,
    lineage.forget,
    lineage.reselect,
):
    cli.add_command(command)


def main() -> None:
    """Entry point: every exception becomes words and an exit code."""
    entry.run(cli)


if __name__ == "__main__":
    main()
