"""The pages of reference name everything that the code has: commands, options, recipe keys, files, errors, exit codes."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from pydantic import BaseModel

import btlm_data.cli
import btlm_train.cli
from btlm_data import errors
from btlm_data.blocks import Block
from btlm_data.recipe.models import Recipe
from btlm_data.work_folder import FOLDERS

ROOT = Path(__file__).resolve().parent.parent
OF_OTHERS = {"data_params.json"}  # read where another program has written it


def page(name: str) -> str:
    return (ROOT / "docs" / name).read_text()


def section(text: str, heading: str) -> str:
    """What is below a heading, to the next of its level."""
    found = re.search(rf"^## {re.escape(heading)}\n(.*?)(?=^##? |\Z)", text, re.M | re.S)
    assert found, f"no heading {heading}"
    return found[1]


COMMANDS = [
    *((name, command) for name, command in btlm_data.cli.cli.commands.items()),
    *((f"btlm-train {name}", command) for name, command in btlm_train.cli.cli.commands.items()),
]


@pytest.mark.parametrize(("heading", "command"), COMMANDS, ids=[name for name, _ in COMMANDS])
def test_every_option_is_on_the_page_of_commands(heading: str, command: click.Command) -> None:
    text = section(page("cli.md"), heading)
    for parameter in command.get_params(click.Context(command)):
        if isinstance(parameter, click.Option) and not parameter.hidden:
            long = [name for name in (*parameter.opts, *parameter.secondary_opts) if name.startswith("--")]
            assert long
            for name in long:
                assert re.search(rf"(?<![\w-]){re.escape(name)}(?![\w-])", text), f"{heading} {name}"


def recipe_keys() -> Iterator[tuple[str, str]]:
    """(section, key) of every setting."""
    for name, field in Recipe.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            yield from ((f"`{name}`", key) for key in kind.model_fields)
        else:
            yield "Top level", name


def test_every_recipe_key_is_on_the_page_of_recipes() -> None:
    text = page("recipes.md")
    found = list(recipe_keys())
    assert len(found) > 40
    for heading, key in found:
        assert f"\n| `{key}` |" in section(text, heading), f"{heading} {key}"


def file_names() -> Iterator[str]:
    """Names of files that modules of the package keep as constants."""
    for path in sorted((ROOT / "btlm_data").rglob("*.py")):
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.Assign | ast.AnnAssign) and isinstance(node.value, ast.Constant):
                value = node.value.value
                if isinstance(value, str) and re.fullmatch(
                    r"[\w./-]+\.(json|jsonl|parquet|html|md|lease)", value
                ):
                    yield value


def test_every_file_is_on_the_page_of_formats() -> None:
    text = page("format.md")
    names = set(file_names())
    assert {"dataset.json", "run.lease", "README.md"} <= names
    for name in names - OF_OTHERS:
        assert name.rpartition("/")[2] in text, name
    for folder in FOLDERS:
        assert f"`{folder}/" in text, folder
    endings = {
        name
        for name, kind in Block.__annotations__.items()
        if "Artifact" in str(kind) and name != "artifacts"
    }
    assert len(endings) >= 7
    for ending in endings:
        assert f".{ending}`" in text, ending


def test_every_error_and_exit_code_is_on_its_page() -> None:
    kinds = [
        kind
        for kind in vars(errors).values()
        if isinstance(kind, type) and issubclass(kind, errors.BtlmError) and kind is not errors.BtlmError
    ]
    assert len(kinds) >= 7
    for kind in kinds:
        assert f"\n| {kind.exit_code} | `{kind.__name__}` |" in page("reference.md"), kind
        assert f"\n| {kind.exit_code} |" in page("faq.md"), kind
        assert re.search(rf"\b{kind.exit_code} [a-z]", str(btlm_data.cli.cli.help)), kind
