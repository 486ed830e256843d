"""`verify` and `sign`: whether a dataset is what its maker wrote."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import click
import msgspec

from btlm_data import entry, terminal
from btlm_data.commands import shared
from btlm_data.errors import ConfigError, InputError


@click.command(cls=entry.Command)
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

    PATH is a dataset, a part of one, or a folder that --emit-text wrote.

    \b
    btlm-data verify shards/
    btlm-data verify shards/ --source my_corpus/ --deep 100
    """
    if deep is not None and source is None:
        raise ConfigError("--deep reads documents from the source. Name its folder with --source.")
    for option, named in (("--source", source), ("--signers", signers)):
        if named is not None and "://" not in str(named) and not os.path.lexists(named.expanduser()):
            raise InputError(f"There is no {named}. Check the path given to {option}.")
    from time import perf_counter

    shared.load_kernels()
    from btlm_data.inspection import verify as verification
    from btlm_data.inspection.check import Check, show, summary

    console, start = terminal.console(), perf_counter()
    is_quiet = entry.is_quiet(click.get_current_context())

    def report(check: Check) -> None:
        if as_json:
            terminal.echo(terminal.to_json(msgspec.to_builtins(check)))
        elif not check.ok or not is_quiet:
            show(check, console)

    checks = verification.verify(
        shared.existing(path), report, source, signers, verification.Again(deep or 0, removals or 0)
    )
    if not as_json:
        report(summary(checks, perf_counter() - start))
    if not verification.passed(checks):
        sys.exit(1)


@click.command(cls=entry.Command)
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

    written = signature.sign_dataset(shared.dataset(path), key.expanduser())
    terminal.echo(f"Signed: {written}. Next: `btlm-data verify {path} --signers FILE`.")
