"""The `btlm-train` command: parse, call, print. torch is imported only inside commands, so that --help is
quick.
"""

from __future__ import annotations

import importlib.util
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import click

from btlm_data import entry, terminal
from btlm_data.errors import ConfigError, install_command

logger = logging.getLogger(__name__)


@click.group(
    cls=entry.Program, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100}
)
@click.version_option(package_name="btlm-data", prog_name="btlm-train")
def cli() -> None:
    """Train BTLM from prepared shards, evaluate it, convert its checkpoints, and generate text.

    \b
    btlm-train run --params params_btlm_tiny_2k.yaml --mode train --model-dir runs/tiny \\
        --set train_input.data_dir=shards/train
    btlm-train generate --model-dir runs/tiny --prompt "The package"

    Exit codes: 0 done; 1 data or checkpoint unusable; 2 wrong option or parameter; 3 no data; 4 output cannot
    be written; 5 loss not finite; 70 internal error; 130 stopped by Ctrl-C or SIGTERM, with a checkpoint.
    """


class _Progress(logging.Handler):
    """The trainer's progress lines on a terminal, where the programs otherwise show warnings only (they have
    bars).
    """

    def emit(self, record: logging.LogRecord) -> None:
        terminal.note(record.getMessage())


def _show_progress() -> None:
    """Have log lines of level INFO appear on a terminal too, unless -q or -v says otherwise."""
    package = logging.getLogger("btlm_train")
    for handler in [handler for handler in package.handlers if isinstance(handler, _Progress)]:
        package.removeHandler(handler)
    shown = min((handler.level for handler in logging.getLogger().handlers), default=logging.WARNING)
    if shown > logging.INFO and not entry.is_quiet(click.get_current_context()):
        handler = _Progress(logging.INFO)
        handler.addFilter(lambda record: record.levelno == logging.INFO)
        package.addHandler(handler)
        package.setLevel(min(package.level or logging.INFO, logging.INFO))


def _need_torch() -> None:
    """Say what to install where torch is missing; and before it is imported, let its idle threads sleep.

    By default they spin, and on a machine that others use too a step then takes ten times as long. No effect
    on results.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    missing = [name for name in ("torch", "safetensors") if importlib.util.find_spec(name) is None]
    if missing:
        raise ConfigError(
            f"Training needs {' and '.join(missing)}, not installed here. Install it with: "
            f"{install_command('train')}."
        )
    _show_progress()


def _device_option(command: Callable[..., Any]) -> Callable[..., Any]:
    return click.option(
        "--device",
        type=click.Choice(["auto", "cpu", "gpu"], case_sensitive=False),
        default="auto",
        show_default=True,
        help="Where to compute; auto takes a GPU if there is one.",
    )(command)


@cli.command()
@click.argument("target", required=False, type=click.Choice(["CPU", "GPU"], case_sensitive=False))
@click.option(
    "-p",
    "--params",
    "params_file",
    required=True,
    help="Parameter file: a path, or a name in btlm_train/configs.",
)
@click.option(
    "-m",
    "--mode",
    type=click.Choice(["train", "eval", "train_and_eval", "eval_all"]),
    required=True,
    help="What to do; eval takes the newest checkpoint, eval_all every one.",
)
@click.option(
    "-o",
    "--model-dir",
    "--model_dir",
    type=click.Path(path_type=Path, file_okay=False),
    help="The run's folder: checkpoints, metrics, events. Default: runconfig.model_dir, else model_dir.",
)
@_device_option
@click.option(
    "--checkpoint",
    "--checkpoint_path",
    "checkpoint_from",
    help="Begin from another run's folder (its newest checkpoint; step counter and schedule continue), "
    "one checkpoint, or another program's weights. A checkpoint of the run in --model-dir comes first.",
)
@click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="KEY=VALUE",
    help="Override a parameter, in either form's name: --set train_input.data_dir=shards/train. Repeatable.",
)
@click.option("--max-steps", "--max_steps", type=int, help="Last step, counted across stages.")
@click.option("--eval-steps", "--eval_steps", type=int, help="Batches per evaluation; default: all.")
@click.option(
    "--load-checkpoint-states",
    "--load_checkpoint_states",
    help="`model` takes over weights alone and starts at step 0. Default: all.",
)
@click.option(
    "--parallel",
    type=click.Choice(["ddp", "fsdp"]),
    default="ddp",
    show_default=True,
    help="Under torchrun: whole copies of the model, or its parameters cut in pieces (FSDP2).",
)
@click.option("--json", "as_json", is_flag=True, help="Print the figures as JSON.")
def run(
    target: str | None, params_file: str, mode: Literal["train", "eval", "train_and_eval", "eval_all"],
    model_dir: Path | None, device: str, checkpoint_from: str | None, overrides: tuple[str, ...],
    max_steps: int | None, eval_steps: int | None, load_checkpoint_states: str | None,
    parallel: Literal["ddp", "fsdp"], as_json: bool,
) -> None:  # fmt: skip
    """Train or evaluate as a Model Zoo parameter file says; a rerun continues from the newest checkpoint.

    Reads shards and, to resume, MODEL_DIR/checkpoints. Writes checkpoints, metrics.jsonl, params.json and
    TensorBoard events below MODEL_DIR. Several processes: torchrun --nproc-per-node 8 -m btlm_train.cli run
    ...

    Example: btlm-train run --params params_btlm_tiny_2k.yaml --mode train --model-dir runs/tiny
    --set train_input.data_dir=shards/train
    """
    from btlm_train.parameters import load_params

    chosen = list(overrides)
    for key, value in (
        ("max_steps", max_steps),
        ("eval_steps", eval_steps),
        ("load_checkpoint_states", load_checkpoint_states),
    ):
        if value is not None:
            chosen.append(f"runconfig.{key}={value}")
    validation: Literal["fit", "eval", "eval_all"] = (
        "fit" if mode.startswith("train") else "eval_all" if mode == "eval_all" else "eval"
    )
    params = load_params(
        params_file, chosen, validation
    )  # what is wrong there is said before torch is imported
    _need_torch()
    from btlm_train import sessions

    if params.unused:
        logger.info(
            "Not used here (they concern Cerebras hardware, or happen anyway): %s.", ", ".join(params.unused)
        )
    if params.assumed:
        logger.info("Not in %s, so BTLM's defaults were taken: %s.", params_file, "; ".join(params.assumed))
    folder = model_dir or Path(params.model_dir or "model_dir")
    wanted = target.lower() if target else device if device != "auto" else params.device
    report = sessions.run(
        params, folder, mode, device=wanted, parallel=parallel, checkpoint_from=checkpoint_from
    )
    if report is not None:
        _print_figures(report, as_json)


def _print_figures(report: dict[str, Any] | list[dict[str, Any]], as_json: bool) -> None:
    """The figures of a run: JSON, or a line for each."""
    if as_json:
        terminal.echo(terminal.to_json(report))
        return
    for figures in report if isinstance(report, list) else [report]:
        loss = figures.get("loss") if isinstance(report, list) else figures.get("cross_entropy")
        parts = [f"step {figures['step']:,}"]
        if isinstance(report, list) and len(report) > 1:
            parts.append(f"validation {figures['validation']}")
        if loss is not None:
            parts.append(f"loss {loss:.4f} nats per token")
        if "perplexity" in figures:
            parts.append(f"perplexity {figures['perplexity']:,.2f}, accuracy {figures['accuracy']:.2%}")
            parts.append(f"{figures['tokens']:,} tokens")
        terminal.echo("  ".join(parts))


@cli.command()
@click.argument("source", type=click.Path(path_type=Path, exists=True))
@click.option(
    "--to",
    type=click.Choice(["hf", "jais", "gguf", "modelzoo"]),
    required=True,
    help="hf: a transformers folder with its own code (trust_remote_code). jais: the same as "
    "JAISLMHeadModel, for servers that know it. gguf: one file for llama.cpp. modelzoo: params.yaml and a "
    "checkpoint for the Model Zoo's trainer.",
)
@click.option(
    "--out", type=click.Path(path_type=Path, file_okay=False), required=True, help="Folder to write to."
)
@click.option(
    "--dtype",
    type=click.Choice(["float32", "bfloat16", "float16", "q8_0"]),
    default="float32",
    show_default=True,
    help="float32 converts back exactly; bfloat16 and float16 are half the size, q8_0 (gguf) a quarter.",
)
@click.option(
    "--tokenizer",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="A tokenizer.json that travels with the model. Default: GPT-2's, where the vocabulary is GPT-2's.",
)
def export(
    source: Path,
    to: Literal["hf", "jais", "gguf", "modelzoo"],
    out: Path,
    dtype: Literal["float32", "bfloat16", "float16", "q8_0"],
    tokenizer: Path | None,
) -> None:
    """Convert a run's newest checkpoint (or one checkpoint) for other programs. Writes config, weights and
    tokenizer files to --out.

    Example: btlm-train export runs/tiny --to hf --out exported/
    """
    _need_torch()
    from btlm_train import sessions

    for path in sessions.export(source, to, out, dtype, tokenizer):
        terminal.echo(str(path))
    if to == "hf" and not entry.is_quiet(click.get_current_context()):
        terminal.note(
            "Load it with transformers 4.57 or 5, offline too: "
            f"AutoModelForCausalLM.from_pretrained({str(out)!r}, trust_remote_code=True)."
        )


@cli.command("import")
@click.argument("source", type=click.Path(path_type=Path, exists=True))
@click.option(
    "-o",
    "--model-dir",
    "--model_dir",
    type=click.Path(path_type=Path, file_okay=False),
    required=True,
    help="A new run's folder.",
)
def import_(source: Path, model_dir: Path) -> None:
    """Take over weights in Hugging Face's or the Model Zoo's layout as step 0 of a new run.

    Reads safetensors, pytorch_model.bin (tensors only, never code), their sharded forms, and .mdl files;
    everything is checked against config.json or params.yaml beside them before anything is written.

    Example: btlm-train import exported/ --model-dir runs/imported
    """
    _need_torch()
    from btlm_train import sessions

    terminal.echo(str(sessions.import_(source, model_dir)))


@cli.command()
@click.option(
    "-o",
    "--model-dir",
    "--model_dir",
    type=click.Path(path_type=Path, exists=True),
    required=True,
    help="A run, a checkpoint, or an exported folder.",
)
@click.option("--prompt", default="", help="Text to continue; empty begins a new document.")
@click.option(
    "--max-new-tokens",
    type=click.IntRange(1),
    default=100,
    show_default=True,
    help="Tokens to add at most; fewer where the model ends the document.",
)
@click.option(
    "--temperature",
    type=click.FloatRange(0),
    default=0.8,
    show_default=True,
    help="0 takes the likeliest token each time.",
)
@click.option(
    "--top-p",
    type=click.FloatRange(0, 1, min_open=True),
    default=0.95,
    show_default=True,
    help="Draw from the likeliest tokens with so much probability together.",
)
@click.option(
    "--seed",
    type=int,
    default=0,
    show_default=True,
    help="Number of the draw: the same seed gives the same text, another seed another text.",
)
@click.option("--tokenizer", default="gpt2", show_default=True, help="gpt2, or a tokenizer.json.")
@_device_option
def generate(
    model_dir: Path,
    prompt: str,
    max_new_tokens: int,
    temperature: float,
    top_p: float,
    seed: int,
    tokenizer: str,
    device: str,
) -> None:
    """Generate text. Prints the prompt and what the model adds to it.

    Example: btlm-train generate --model-dir runs/tiny --prompt "The package" --seed 1
    """
    _need_torch()
    from btlm_train import sessions

    terminal.echo(
        sessions.generate(model_dir, prompt, max_new_tokens, temperature, top_p, seed, tokenizer, device)
    )


@cli.command("eval-lengths")
@click.option(
    "-o",
    "--model-dir",
    "--model_dir",
    type=click.Path(path_type=Path, exists=True),
    required=True,
    help="A run, a checkpoint, or an exported folder.",
)
@click.option(
    "--data",
    required=True,
    type=click.Path(path_type=Path, exists=True),
    help="Folder of shards with samples at least as long as the longest length.",
)
@click.option(
    "--lengths",
    default="256,512,1024,2048,4096,8192",
    show_default=True,
    help="Sequence lengths in tokens; each must divide the longest.",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    required=True,
    help="Folder for lengths.csv, positions.csv and lengths.png.",
)
@click.option("--samples", type=click.IntRange(1), help="Use only the first N samples.")
@click.option(
    "--trained-length",
    type=click.IntRange(1),
    help="Scale ALiBi dynamically beyond this length (position interpolation).",
)
@_device_option
def eval_lengths(
    model_dir: Path,
    data: Path,
    lengths: str,
    out: Path,
    samples: int | None,
    trained_length: int | None,
    device: str,
) -> None:
    """How loss changes with sequence length and position, on the same tokens: BTLM's extrapolation plot, as a
    table and a PNG.

    Example: btlm-train eval-lengths --model-dir runs/tiny --data shards --lengths 512,2048 --out lengths/
    """
    _need_torch()
    from btlm_train import sessions

    parts = lengths.split(",")
    if not all(part.strip().isdecimal() and 1 <= int(part[:20]) <= 2**24 for part in parts):
        raise ConfigError(
            f"--lengths {lengths[:200]!r} is not a list of sequence lengths. Write for example --lengths "
            "512,1024,2048."
        )
    wanted = [int(part) for part in parts]
    for row in sessions.evaluate_lengths(model_dir, data, wanted, out, samples, trained_length, device):
        terminal.echo(
            f"{row['length']:>8} tokens  loss {row['loss']:.4f}  perplexity {row['perplexity']:.2f}  "
            f"accuracy {row['accuracy']:.2%}"
        )


@cli.command()
@click.argument("run", type=click.Path(path_type=Path, exists=True))
@click.option("--step", type=click.IntRange(0), required=True, help="The step: 0 is the run's first batch.")
@click.option("--no-text", is_flag=True, help="Name the documents only.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object for each document.")
def batch(run: Path, step: int, no_text: bool, as_json: bool) -> None:
    """Show what a step of a run saw: each sample's documents, where they came from, and their text.

    Reads the run's data.json and the shards, which must be where the run read them. `btlm-data trace`
    with --run asks the other way.

    Example: btlm-train batch runs/tiny --step 12
    """
    _need_torch()
    from msgspec import structs, to_builtins

    from btlm_data.lineage import render, trace

    last = None
    for rank, batch_index, document in trace.batch(run, step, texts=not no_text):
        if as_json:
            values = {"step": step, "rank": rank, "place": batch_index, **to_builtins(document)}
            terminal.echo(terminal.to_json(values))
            continue
        if (rank, batch_index) != last:
            terminal.echo(f"step {step}, rank {rank}, place {batch_index} of the batch")
            last = rank, batch_index
        for text in render.document_lines(structs.replace(document, hash=None)):
            terminal.echo(text)


def main() -> None:
    """Entry point: every exception becomes words and an exit code."""
    entry.run(cli)


if __name__ == "__main__":
    main()
