"""The commands that ask a finished dataset where its documents went."""

from __future__ import annotations

import shlex
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

from btlm_data import entry, terminal
from btlm_data.commands import shared
from btlm_data.errors import ConfigError
from btlm_data.splits import SPLITS
from btlm_data.wording import amount, counted

if TYPE_CHECKING:
    from btlm_data.lineage.queries import Query

_SPLIT = entry.Completed(lambda: SPLITS)


@click.command(cls=entry.Command)
@click.argument("path", type=click.Path(path_type=Path))
@click.option(
    "--sample",
    "samples",
    type=click.IntRange(0),
    multiple=True,
    metavar="N",
    help="What is in sample N of a split.",
)
@click.option(
    "--row",
    "rows",
    multiple=True,
    metavar="SHARD:N",
    help="What is in a row of a shard, as data-00003.h5:12.",
)
@click.option(
    "--tokens",
    "ranges",
    multiple=True,
    metavar="A-B",
    help="The documents at tokens A to B of a split's stream.",
)
@click.option(
    "--id", "ids", multiple=True, metavar="ID", help="Where the document with this id is, or FILE#OFFSET."
)
@click.option("--url", "urls", multiple=True, metavar="URL", help="Where the documents with this URL are.")
@click.option(
    "--hash", "hashes", multiple=True, metavar="HEX", help="Where the documents with this text hash are."
)
@click.option(
    "--file", "file", metavar="FILE", help="Where the document of this file of the source is, at --line."
)
@click.option("--line", "line", type=click.IntRange(1), metavar="N", help="Line (or row) of --file, from 1.")
@click.option(
    "--text", "passages", multiple=True, metavar="PASSAGE", help="Where this exact passage of text is."
)
@click.option("--ngrams-of", "compared", type=click.Path(path_type=Path), multiple=True, metavar="FILE",
              help="Which documents have 13 words in a row in common with this file, as an evaluation set.")  # fmt: skip
@click.option("--list", "listed", type=click.Path(path_type=Path), metavar="FILE",
              help="A file of questions, one a line: an id, a URL or a hash, or JSON as {\"text\": \"...\"}.")  # fmt: skip
@click.option("--split", type=_SPLIT, help="Only this split; for samples, rows and tokens train by default.")
@click.option("--run", "run", type=click.Path(path_type=Path), metavar="RUNDIR",
              help="A training run: also show at which steps, on which ranks, samples were seen or will be.")  # fmt: skip
@click.option("--show-text/--no-show-text", "texts", default=None,
              help="Show the text at each position. Default: for samples, rows and tokens.")  # fmt: skip
@click.option(
    "--count", "counted_only", is_flag=True, help="Show only how many documents and places there are."
)
@click.option("--json", "as_json", is_flag=True, help="One JSON object for each question.")
def trace(
    path: Path, samples: tuple[int, ...], rows: tuple[str, ...], ranges: tuple[str, ...], ids: tuple[str, ...],
    urls: tuple[str, ...], hashes: tuple[str, ...], file: str | None, line: int | None, passages: tuple[str, ...],
    compared: tuple[Path, ...], listed: Path | None, split: str | None, run: Path | None, texts: bool | None,
    counted_only: bool, as_json: bool,
) -> None:  # fmt: skip
    """Show which documents a sample is made of, or which samples hold a document, from the dataset alone.

    For a document that is in no split, shows the stage that dropped it, and why. Every option may be
    repeated. Passages are found faster with a text index (btlm-data index), and --ngrams-of needs it.

    \b
    btlm-data trace shards/ --sample 17
    btlm-data trace shards/ --url https://example.org/page --run runs/stage1
    btlm-data trace shards/ --text "an exact passage"
    """
    shared.take_kernels()
    from btlm_data.lineage import queries, render

    asked: list[Query] = []
    for kind, values in (
        ("sample", [str(number) for number in samples]),
        ("row", rows),
        ("tokens", ranges),
        ("id", ids),
        ("url", urls),
        ("hash", hashes),
        ("text", passages),
        ("ngrams", [str(path) for path in compared]),
    ):
        asked += [queries.make(kind, value) for value in values]  # type: ignore[arg-type]  # one of its kinds
    if (file is None) != (line is None):
        raise ConfigError("--file and --line belong together: a line of a file of the source. Give both.")
    if file is not None:
        asked.append(queries.make("line", f"{file}:{line}"))
    if listed is not None:
        asked += queries.read_list(listed)
    if not asked:
        raise ConfigError(
            "Nothing is asked. Give for example --sample 17, --id, --url, --file and --line, or --text."
        )
    from msgspec import to_builtins

    from btlm_data.lineage.trace import trace as answers_of

    shown = texts if texts is not None else not any(query.is_of_documents for query in asked)
    for answer in answers_of(shared.dataset(path, or_split=True), asked, split=split, run=run, texts=shown):
        if counted_only:
            terminal.echo(render.count_line(answer))
        elif as_json:
            terminal.echo(terminal.to_json(to_builtins(answer)))
        else:
            for text in render.lines(answer):
                terminal.echo(text)


@click.command(cls=entry.Command)
@click.argument("path", type=click.Path(path_type=Path))
@click.option("--only", type=click.Choice(["keys", "text"]), help="Make this one only. Default: both.")
@click.option("--json", "as_json", is_flag=True, help="What was done, for programs.")
def index(path: Path, only: Literal["keys", "text"] | None, as_json: bool) -> None:
    """Make indexes of a prepared dataset, so that documents are found without reading whole tables, and passages
    without reading every shard.

    Written beside the shards of each set: .key-index, 10 to 17 bytes for each document, by which `trace` and `forget` look up
    ids, URLs, hashes, and places in the source; .text-index, about a byte for each token, for --text of 15 words or more and
    `trace --ngrams-of`. A dataset that changes (`forget`, `add`) leaves them stale or without any: run this again. Remove the
    folders to be rid of them.

    \b
    btlm-data index shards/
    btlm-data index shards/ --only keys
    btlm-data trace shards/ --ngrams-of evaluation.jsonl
    """
    shared.load_kernels()
    from msgspec import to_builtins

    from btlm_data.lineage import key_index, text_index

    root = shared.dataset(path)
    makers = {
        "keys": (key_index.make, "key index", "keys"),
        "text": (text_index.make, "text index", "n-grams"),
    }
    result = {}
    for kind, (make, name, unit) in makers.items():
        if only not in (None, kind):
            continue
        made = make(root)
        result[kind] = to_builtins(made)
        if not as_json:
            count = counted(made.made, name, f"{name}es") if made.made else f"No {name}"
            present = f" ({made.present:,} there already)" if made.present else ""
            terminal.echo(f"{count} made{present}: {made.entries:,} {unit}, {amount(made.bytes, 'B')}.")
    if as_json:
        terminal.echo(terminal.to_json(result))


@click.command(cls=entry.Command)
@click.argument("path", type=click.Path(path_type=Path))
@click.option("--list", "listed", type=click.Path(path_type=Path), metavar="FILE",
              help="The documents to remove, one a line: an id, a URL or a hash, or JSON as for `trace --list`.")  # fmt: skip
@click.option("--id", "ids", multiple=True, metavar="ID", help="The document with this id, or FILE#OFFSET.")
@click.option("--url", "urls", multiple=True, metavar="URL", help="The documents with this URL.")
@click.option("--hash", "hashes", multiple=True, metavar="HEX", help="The documents with this text hash.")
@click.option(
    "--text", "passages", multiple=True, metavar="PASSAGE", help="Every document with this exact passage."
)
@click.option("--where", "expressions", multiple=True, metavar="EXPRESSION",
              help="Every document that satisfies this expression in SQL, as \"source = 'Web' AND tokens < 50\".")  # fmt: skip
@click.option("--how", type=click.Choice(["mask", "remove"]), default="mask", show_default=True,
              help="mask: EOS without loss, every other sample stays. remove: the streams close up, and are packed again.")  # fmt: skip
@click.option("--reason", default="", metavar="WORDS", help="For the certificate: who requested it, and why.")
@click.option("--sign", "key", type=click.Path(path_type=Path), metavar="KEY",
              help="Sign the certificate and the dataset with this SSH key (as `btlm-data sign` does).")  # fmt: skip
@click.option("--run", "runs", type=click.Path(path_type=Path), multiple=True, metavar="RUNDIR",
              help="A training run: the certificate says at which steps it had seen the documents.")  # fmt: skip
@click.option(
    "--accept-most",
    is_flag=True,
    help="Continue where --where names more than half of the documents of a split.",
)
@click.option("--plan", "plan_only", is_flag=True,
              help="Only say which documents would be taken out; nothing is changed.")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="What was done, for programs.")
def forget(
    path: Path, listed: Path | None, ids: tuple[str, ...], urls: tuple[str, ...], hashes: tuple[str, ...],
    passages: tuple[str, ...], expressions: tuple[str, ...], how: Literal["mask", "remove"], reason: str,
    key: Path | None, runs: tuple[Path, ...], accept_most: bool, plan_only: bool, as_json: bool,
) -> None:  # fmt: skip
    """Take documents out of a prepared dataset, and write a certificate of it (forgotten.json).

    By default their tokens become EOS and their loss mask 0; every other sample keeps its bytes and its
    position, so a training run can continue. With --how remove the shards are what `prepare` makes without
    these documents. A kill at any moment leaves the old dataset or the new one. The work folder inside the
    dataset is removed; other locations that still hold the text are listed.

    \b
    btlm-data forget shards/ --url https://example.org/page --plan
    btlm-data forget shards/ --url https://example.org/page --reason "mail of 3 May"
    btlm-data forget shards/ --list ids.txt --run runs/stage1
    """
    shared.take_kernels()
    from btlm_data.lineage import queries

    asked: list[Query] = []
    for kind, values in (
        ("id", ids),
        ("url", urls),
        ("hash", hashes),
        ("text", passages),
        ("where", expressions),
    ):
        asked += [queries.make(kind, value) for value in values]  # type: ignore[arg-type]  # one of its kinds
    if listed is not None:
        asked += queries.read_list(listed)
    if not asked or not all(query.is_of_documents for query in asked):
        raise ConfigError(
            "Which documents are to be forgotten? Give --id, --url, --hash, --text, --where, or --list with such lines."
        )
    from msgspec import to_builtins

    from btlm_data.lineage import render
    from btlm_data.lineage.forget import forget as take_out
    from btlm_data.lineage.forget import plan

    if plan_only:
        planned = plan(shared.dataset(path), asked, how=how, runs=runs, accept_most=accept_most)
        if as_json:
            terminal.echo(terminal.to_json(to_builtins(planned, enc_hook=str)))
            return
        for text in render.planned_lines(planned):
            terminal.echo(text)
        return
    shared.load_kernels()
    sign = None
    if key is not None:
        from btlm_data.inspection.signature import sign_forgotten

        sign = partial(sign_forgotten, key=key.expanduser())
    outcome = take_out(
        shared.dataset(path), asked, how=how, reason=reason, runs=runs, sign=sign, accept_most=accept_most
    )
    for folder in dict.fromkeys((path / page).parent for page in outcome.pages):
        from btlm_data.pages import publish  # made again, about the dataset as it is now

        present = {(path / page).name for page in outcome.pages if (path / page).parent == folder}
        report, card = "report.html" in present, None if "README.md" in present else "none"
        for warning in publish.write_beside(str(folder), report=report, card=card):
            terminal.note(warning)
    if as_json:
        terminal.echo(terminal.to_json(to_builtins(outcome, enc_hook=str)))
        return
    for text in render.forgotten_lines(outcome, path):
        terminal.echo(text)


@click.command(cls=entry.Command)
@click.argument("path", type=click.Path(path_type=Path))
@click.option("--where", "where", metavar="EXPRESSION",
              help="The documents to take: an expression in SQL over documents.parquet (docs/reselect.md).")  # fmt: skip
@click.option("--mix", "mix_file", type=click.Path(path_type=Path), metavar="FILE",
              help="A YAML file with the mix of the train split, as under `mix:` in a recipe (docs/mixing.md).")  # fmt: skip
@click.option("--out", required=True, type=click.Path(path_type=Path), metavar="DIR",
              help="Folder of the new dataset; it must not exist.")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="What was done, for programs.")
def reselect(path: Path, where: str | None, mix_file: Path | None, out: Path, as_json: bool) -> None:
    """Make another dataset of those documents of a prepared one that satisfy an expression, or mix it anew.

    No text is read: tokens are taken out of the shards, packed and shuffled as the first time. The shards are
    those that `prepare` makes where a filter leaves the same documents. The old dataset stays as it is.

    \b
    btlm-data reselect shards/ --where "language = 'en' AND gopher_words >= 50" --out english/
    btlm-data reselect shards/ --mix mix.yaml --out mixed/
    """
    shared.load_kernels()
    from btlm_data.lineage.reselect import reselect as select
    from btlm_data.recipe.mix_weights import read_mix

    mix = None if mix_file is None else read_mix(mix_file)
    outcome = select(shared.dataset(path), where, out, mix)
    if as_json:
        terminal.echo(
            terminal.to_json(
                {"out": str(outcome.out), "documents": outcome.documents, "left_out": outcome.left_out}
            )
        )
        return
    terminal.echo(
        f"Taken: {counted(outcome.documents, 'document')}; left out: {outcome.left_out:,}. Dataset: {out}."
    )
    folder = shlex.quote(str(out))
    terminal.echo(f"Next: btlm-data inspect {folder}; btlm-data verify {folder}")
