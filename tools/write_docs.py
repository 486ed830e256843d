"""Write the documentation that the program itself knows: docs/cli.md, docs/recipes.md, docs/reference.md and
docs/performance.md with its pictures.

python tools/write_docs.py            write them
python tools/write_docs.py --check    exit 1 if either is stale (tests do this)
"""

from __future__ import annotations

import inspect
import sys
from pathlib import Path
from typing import Any, get_args

import click
from pydantic import BaseModel

from btlm_data.cli import cli
from btlm_data.recipe.models import Recipe, Settings
from btlm_train.cli import cli as train_cli

sys.path.insert(0, str(Path(__file__).resolve().parent))
import write_performance
from write_reference import reference

DOCS = Path(__file__).resolve().parent.parent / "docs"
WIDTH = 80  # characters of a line of help: as many as a page of the site has room for
_RECIPES_INTRO = """# Recipes

A recipe is a YAML file with any of the settings below; what it leaves out has the default. `btlm-data run
RECIPE.yaml` prepares what it describes, options on the command line win over it, and `--set KEY=VALUE`
reaches every setting by its dotted key. The settings under `run` say how the work is done and never change a
byte; all others decide the data and enter the fingerprint.

`btlm-data run shards/dataset.json --out again/` repeats a run from what the dataset records (with
`provenance.json` beside it). Only what decides the data is repeated, never a `run` section; a filter's
function or a deduplication index named there needs `--trust`.

```yaml
source: {name: my_corpus/, text_field: content, splits: {validation: ["heldout/*"]}}
clean: {normalize: nfc, filters: [{name: gopher_quality}]}
dedupe: {method: minhash, verify: true}
holdout: {fraction: 0.0017, decontaminate: [evals/*.jsonl]}
seq_len: [2048:0.75, 8192:0.25]
mix: {Books: 2.0, WebText: 0.5}          # epochs per source
run: {out: shards, workers: 8, memory: 16GB}
```

`source: NAME`, `tokenizer: NAME` and `dedupe: METHOD` are short for their first field. Sizes are written 4GB,
512MiB or as a number of bytes. Files follow YAML 1.2: `6e-4` is a number, `no` is text, and text in brackets
needs quotes: `eos: '[SEP]'`. Tags, anchors and a key given twice are errors. An unknown key or a wrong value
is an error that names the key, the line and the nearest valid name. The recipes that ship: `sample`,
`stage1`, `stage2`, `redpajama`.
"""


def recipes() -> str:
    """docs/recipes.md."""
    lines = [_RECIPES_INTRO]
    for name, field in Recipe.model_fields.items():
        model = _model(field.annotation)
        if model is None:
            continue
        lines += [
            f"\n## `{name}`\n",
            inspect.cleandoc(model.__doc__ or "") + "\n",
            "| key | default | meaning |",
            "|---|---|---|",
        ]
        lines += [
            f"| `{key}` | {_default(inner)} | {_meaning(inner)} |"
            for key, inner in model.model_fields.items()
        ]
    plain = {key: inner for key, inner in Settings.model_fields.items() if _model(inner.annotation) is None}
    lines += ["\n## Top level\n", "| key | default | meaning |", "|---|---|---|"]
    lines += [f"| `{key}` | {_default(inner)} | {_meaning(inner)} |" for key, inner in plain.items()]
    return "\n".join(lines) + "\n"


def _model(annotation: Any) -> type[BaseModel] | None:
    return annotation if isinstance(annotation, type) and issubclass(annotation, BaseModel) else None


def _default(field: Any) -> str:
    """The default as it is written in a recipe; empty where there is none, or the meaning says it."""
    value = field.default
    if field.is_required():
        return "required"
    if field.default_factory is not None or value in (None, ()) or "Default:" in (field.description or ""):
        return ""
    if isinstance(value, tuple):
        return "`2048`"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if isinstance(value, int) and value >= 2**20:
        for unit, size in (("GB", 10**9), ("MiB", 2**20)):
            if value % size == 0:
                return f"`{value // size}{unit}`"
    return f"`{value}`"


def _meaning(field: Any) -> str:
    choices = [str(choice) for choice in get_args(field.annotation) if isinstance(choice, str)]
    text = (field.description or "").replace("|", "\\|")
    return " · ".join(part for part in (text, ", ".join(f"`{c}`" for c in choices)) if part)


def commands() -> str:
    """docs/cli.md."""
    lines = ["# The btlm-data command\n\nWritten from `--help` by `tools/write_docs.py`.\n"]
    lines += _help_of(cli, "btlm-data", "")
    lines.append("# The btlm-train command\n")
    lines += _help_of(train_cli, "btlm-train", "btlm-train ")
    return "\n".join(lines)


def _help_of(program: click.Group, program_name: str, prefix: str) -> list[str]:
    """The help of a program and of each of its commands, whose headings begin with `prefix`."""
    root = click.Context(program, info_name=program_name, max_content_width=WIDTH, terminal_width=WIDTH)
    lines = [f"```text\n{program.get_help(root)}\n```\n"]
    for name in sorted(program.commands):
        command = program.commands[name]
        context = click.Context(
            command, info_name=name, parent=root, max_content_width=WIDTH, terminal_width=WIDTH
        )
        lines.append(f"## {prefix}{name}\n\n```text\n{command.get_help(context)}\n```\n")
    return lines


def main() -> None:
    """Write or check."""
    stale = []
    pages = {
        "cli.md": commands(),
        "recipes.md": recipes(),
        "reference.md": reference(),
        "performance.md": write_performance.page(),
    }
    pages |= {f"figures/{name}": text for name, text in write_performance.figures().items()}
    for name, text in pages.items():
        path = DOCS / name
        if "--check" in sys.argv:
            if not path.exists() or path.read_text() != text:
                stale.append(name)
        else:
            path.write_text(text)
    if stale:
        sys.exit(f"docs/{' and docs/'.join(stale)} are stale. Run: python tools/write_docs.py")


if __name__ == "__main__":
    main()
