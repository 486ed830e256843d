"""The command line as a user meets it: help, examples, messages, exit codes."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import click
import pytest

from btlm_data.cli import cli

ROOT = Path(__file__).resolve().parent.parent


def run(*arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "COLUMNS": "200"}
    command = [sys.executable, "-m", "btlm_data.cli", *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=environment, timeout=120)


@pytest.mark.parametrize("name", sorted(cli.commands))
def test_every_command_says_what_it_is_for_and_gives_an_example(name: str) -> None:
    command = cli.commands[name]
    assert command.help
    assert re.search(rf"btlm-data {name} ", command.help), f"{name} has no example"
    for parameter in command.get_params(click.Context(command)):
        if isinstance(parameter, click.Option):
            assert parameter.help, f"{name} {parameter.opts} has no help"


def test_the_written_docs_are_the_programs_own_words() -> None:
    done = subprocess.run(
        [sys.executable, "tools/write_docs.py", "--check"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "expected"),
    [
        (["prepare", "--sourc", "x"], 2, "--source"),
        (["prepare", "--source", "sample", "--seq-len", "abc"], 2, "'abc' is not a sequence length"),
        (
            ["prepare", "--source", "sample", "--seq-len", "2048:0.8", "--seq-len", "8192:0.4"],
            2,
            "the shares add up to 1.2",
        ),
        (["prepare", "--source", "sample", "--set", "clean.minchars=3"], 2, "Did you mean clean.min_chars?"),
        (["prepare", "--source", "sample", "--set", "nonsense"], 2, "is not KEY=VALUE"),
        (["prepare", "--source", "sample", "--memory", "lots"], 2, "'lots' is not a size"),
        (["prepare", "--source", "/nowhere/at/all"], 3, "does not exist"),
        (["prepare", "--source", "sample", "--tokenizer", "/nowhere/tokenizer.json"], 2, "tokenizer"),
        (["run", "nowhere.yaml"], 2, "cannot be read"),
        (["inspect", "/nowhere"], 3, "/nowhere"),
        (["verify", "/nowhere"], 3, "/nowhere"),
        (["export", "/nowhere", "--to", "npy", "--out", "x"], 3, "/nowhere"),
        (["prepare"], 2, "--source hf://datasets/ORG/NAME"),
        (["prepare", "--source", "sample", "--mix", "Books"], 2, "--mix 'Books' is not BOOKS=VALUE"),
        (["prepare", "--source", "sample", "--filter", "[a"], 2, "--filter '[a'"),
        (["prepare", "--source", "sample", "--split-rule", "dev=x/*"], 2, "--split-rule: source.splits"),
    ],
)
def test_mistakes_are_answered_in_plain_words(
    arguments: list[str], code: int, expected: str, tmp_path: Path
) -> None:
    done = run(*arguments, cwd=tmp_path)
    assert done.returncode == code, done.stderr
    assert expected in done.stderr + done.stdout
    assert "Traceback" not in done.stderr


def test_a_recipe_s_mistake_names_file_line_and_nearest_key(tmp_path: Path) -> None:
    recipe = tmp_path / "mine.yaml"
    recipe.write_text("source: sample\nseq_len: 2048\ndedupe:\n  metod: exact\n")
    done = run("run", "mine.yaml", cwd=tmp_path)
    assert done.returncode == 2
    assert "mine.yaml line 4" in done.stderr
    assert "Did you mean dedupe.method?" in done.stderr


@pytest.mark.parametrize("recipe", sorted(path.name for path in (ROOT / "pipelines").glob("*.yaml")))
def test_every_shipped_recipe_loads_and_states_every_line_s_meaning(recipe: str) -> None:
    from btlm_data.recipe.load import load

    path = ROOT / "pipelines" / recipe
    loaded = load(path, {})
    assert loaded.seq_len
    assert path.read_text().startswith("#"), f"{recipe} does not say what it is for"


def test_a_plan_writes_nothing(tmp_path: Path) -> None:
    done = run("run", "sample", "--plan", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    for word in ("peak disk", "memory", "time", "tokens before deduplication"):
        assert word in done.stdout
    assert not list(tmp_path.iterdir())


def test_prepare_twice_has_nothing_to_do_and_another_dataset_is_refused(tmp_path: Path) -> None:
    first = run("prepare", "--source", "sample", "--limit", "60", "--out", "d", cwd=tmp_path)
    assert first.returncode == 0, first.stderr
    again = run("prepare", "--source", "sample", "--limit", "60", "--out", "d", cwd=tmp_path)
    assert "Nothing to do" in again.stderr
    other = run("prepare", "--source", "sample", "--limit", "50", "--out", "d", cwd=tmp_path)
    assert other.returncode == 4
    assert "source.limit is 60 there, 50 now" in other.stderr
    replaced = run(
        "prepare", "--source", "sample", "--limit", "50", "--out", "d", "--overwrite", cwd=tmp_path
    )
    assert replaced.returncode == 0, replaced.stderr
    assert run("verify", "d", cwd=tmp_path).returncode == 0
