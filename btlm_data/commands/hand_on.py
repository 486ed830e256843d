"""`export` and `push`: a dataset for other trainers and other people."""

from __future__ import annotations

from pathlib import Path

import click

from btlm_data import entry, terminal
from btlm_data.commands import shared


@click.command(cls=entry.Command)
@click.argument("path", type=click.Path(path_type=Path))
@click.option(
    "--to",
    type=click.Choice(["megatron", "mds", "npy"]),
    required=True,
    help="Megatron-LM .bin/.idx, MosaicML MDS, or flat .bin.",
)
@click.option("--out", type=click.Path(path_type=Path), required=True, metavar="DIR", help="Folder to write.")
@click.option(
    "--split", "splits", multiple=True, type=shared.SPLIT, help="Only this split; repeatable.  [default: all]"
)
@click.option("--overwrite", is_flag=True, help="Replace an earlier export.")
def export(path: Path, to: str, out: Path, splits: tuple[str, ...], overwrite: bool) -> None:
    """Write a prepared dataset in another trainer's format.

    \b
    btlm-data export shards/ --to megatron --out megatron/
    """
    from btlm_data import export as exporting
    from btlm_data.wording import counted

    done = exporting.export(shared.dataset(path), to, out, splits=splits, overwrite=overwrite)
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


@click.command(cls=entry.Command)
@click.argument("path", type=click.Path(path_type=Path))
@click.argument("target", metavar="hf://datasets/ORG/NAME")
@click.option("--private", is_flag=True, help="Make the repository private, if it does not exist yet.")
def push(path: Path, target: str, private: bool) -> None:
    """Upload a prepared dataset to a Hugging Face hub; the same command continues an interrupted upload.

    \b
    btlm-data push shards/ hf://datasets/ORG/NAME
    """
    import sys

    from huggingface_hub.utils.tqdm import disable_progress_bars

    from btlm_data import hub_upload
    from btlm_data.pages import publish

    if not sys.stderr.isatty() or entry.is_quiet(click.get_current_context()):
        disable_progress_bars()  # they are for somebody who watches, not for a log
    root = shared.dataset(path)
    pages = publish.pages_of_generations(root)
    sent, present = hub_upload.push(root, target, private=private, report=terminal.note, instead=pages)
    terminal.echo(f"Uploaded {sent:,} files to {target}; {present:,} were already there.")
