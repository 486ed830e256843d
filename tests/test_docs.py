"""What the documentation prints is what the program does: commands exist, pages for beginners run as printed, links lead somewhere."""

from __future__ import annotations

import gzip
import json
import os
import random
import re
import shlex
import shutil
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click
import pytest

import btlm_data.cli
import btlm_train.cli

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")])
PROGRAMS = {"btlm-data": btlm_data.cli.cli, "btlm-train": btlm_train.cli.cli}
RUN = {
    "README.md": 4,
    "own-corpus.md": 11,
    "not-for.md": 3,
    "inspect.md": 8,
    "index.md": 3,
    "forget.md": 7,
}  # page -> least number of commands


def printed_commands(page: Path) -> list[list[str]]:
    """The commands of our programs in a page's blocks of shell and indented lines, in order, as words."""
    commands = []
    text = page.read_text().replace("\\\n", " ")
    for block in re.findall(r"^```(?:sh|bash|console)\n(.*?)^```|^    (btlm-[^\n]*)$", text, re.M | re.S):
        for line in "".join(block).splitlines():
            words = shlex.split(line, comments=True)
            if words[:1] and words[0] in PROGRAMS:
                commands.append(words)
    return commands


def mentioned_commands(page: Path) -> list[list[str]]:
    """The commands that stand in the text between backticks, where they are more than a name."""
    found = re.findall(r"`(btlm-(?:data|train) [a-z-]+ [^`\n]+)`", page.read_text())
    return [shlex.split(command) for command in found if "..." not in command]


def check_options(words: list[str]) -> None:
    """Fail if there is no such command, or it has no such option."""
    program = PROGRAMS[words[0]]
    name = next((word for word in words[1:] if not word.startswith("-")), None)
    if name is None:
        return
    assert name in program.commands, f"there is no command {' '.join(words)}"
    context = click.Context(program, info_name=words[0])
    try:
        program.commands[name].make_context(name, words[words.index(name) + 1 :], parent=context)
    except click.BadParameter:
        pass  # a file of the example that is not here
    except click.exceptions.Exit:
        pass  # --help


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_printed_commands_and_options_exist(page: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words in [*printed_commands(page), *mentioned_commands(page)]:
        check_options(words)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_files(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page.read_text()):
        if "://" not in target:
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def write_corpora(folder: Path) -> None:
    """The corpora that the pages speak of."""
    rng = random.Random(0)
    vocabulary = [
        "".join(rng.choice("abcdefghijklmnop") for _ in range(rng.randint(2, 9))) for _ in range(2000)
    ]

    def text(words: int = 150) -> str:
        return " ".join(rng.choice(vocabulary) for _ in range(words))

    shutil.copytree(ROOT / "examples/optout", folder / "examples/optout")
    mine = folder / "my_corpus"
    for name in ("web", "books", "heldout"):
        (mine / name).mkdir(parents=True)
    with gzip.open(mine / "web/part-0.jsonl.gz", "wt") as file:
        for i in range(200):
            record = {"body": {"content": text()}, "meta": {"redpajama_set_name": ("Forum", "Web")[i % 2]}}
            file.write(json.dumps(record) + "\n")
    for i in range(3):
        (mine / f"books/book{i}.txt").write_text(text(800))
    (mine / "heldout/dev.jsonl").write_text(
        "".join(json.dumps({"body": {"content": text()}}) + "\n" for _ in range(20))
    )
    (mine / "README.md").write_text("What this corpus is.")
    others: list[tuple[str, dict[str, Any]]] = [
        ("datatrove_output", {"metadata": {"dataset": "cc"}}),
        ("dolma/documents", {"source": "cc"}),
        ("curator_output", {}),
    ]
    for name, record in others:
        (folder / name).mkdir(parents=True)
        field = "raw_content" if name == "curator_output" else "text"
        lines = [json.dumps({field: text(), "id": str(i)} | record) + "\n" for i in range(40)]
        (folder / name / "00000.jsonl").write_text("".join(lines))


# What a page shows as stopping: command -> exit code.
STOPS = {"btlm-data prepare --source my_corpus/ --plan": 5}


def run_words(words: list[str], folder: Path) -> None:
    """Run a printed command in `folder`; of training, one step."""
    if words[:2] == ["btlm-train", "run"]:
        words = [*words, "--set", "runconfig.max_steps=1"]
    module = words[0].replace("-", "_")
    code = f"from {module}.cli import main; main()"
    environment = os.environ | {"PYTHONPATH": str(ROOT), "COLUMNS": "100"}
    if words[:2] == ["btlm-data", "serve"]:
        run_server([sys.executable, "-c", code, *words[1:], "--port", "0"], folder, environment)
        return
    done = subprocess.run(
        [sys.executable, "-c", code, *words[1:]],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == STOPS.get(" ".join(words), 0), f"{' '.join(words)}\n{done.stdout}{done.stderr}"


def run_server(command: list[str], folder: Path, environment: Mapping[str, str]) -> None:
    """Start a server, ask it for its first page, and end it as Ctrl-C does."""
    with subprocess.Popen(command, cwd=folder, env=environment, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        try:
            with urllib.request.urlopen(line.split()[1], timeout=60) as answer:
                assert answer.status == 200
        finally:
            process.send_signal(signal.SIGINT)
        assert process.wait(60) in (0, 130)


@pytest.mark.parametrize("name", RUN)
@pytest.mark.timeout(900)
def test_pages_for_beginners_run_as_printed(name: str, tmp_path: Path) -> None:
    write_corpora(tmp_path)
    page = ROOT / name if name == "README.md" else ROOT / "docs" / name
    for block in re.findall(r"^```yaml\n(.*?)^```", page.read_text(), re.M | re.S):
        (tmp_path / "mine.yaml").write_text(block)
    if name == "README.md":  # its corpus has its text where it is looked for
        path = tmp_path / "my_corpus/heldout/dev.jsonl"
        lines = [
            json.dumps({"text": json.loads(line)["body"]["content"]})
            for line in path.read_text().splitlines()
        ]
        path.write_text("\n".join(lines))
        (tmp_path / "my_corpus/web/part-0.jsonl.gz").unlink()
    if name == "inspect.md":
        run_words(shlex.split("btlm-data prepare --source sample --limit 60 --out shards/"), tmp_path)
        run_words(shlex.split("btlm-data prepare --source sample --limit 60 --seed 1 --out other/"), tmp_path)
        train = "btlm-train run --params params_btlm_tiny_2k.yaml --mode train --model-dir runs/stage1 --max-steps 2"
        run_words(shlex.split(f"{train} --set train_input.data_dir=shards/train"), tmp_path)
    commands = printed_commands(page)
    assert len(commands) >= RUN[name]
    for words in commands:
        run_words(words, tmp_path)


def test_the_messages_explained_are_those_of_the_program() -> None:
    """Each fixed part of a message in docs/faq.md stands in the code (where literals are cut, at the seams too)."""
    code = "".join(path.read_text() for path in sorted((ROOT / "btlm_data").rglob("*.py")))
    code = re.sub(r'"\s*\n\s*f?"', "", code)
    messages = re.findall(r"^\*\*([^?*]+)\*\*", (ROOT / "docs/faq.md").read_text(), re.M)
    assert len(messages) > 8
    for message in messages:
        parts = re.split(r"\.\.\.|SOURCE|FILE|'dedupe.metod'|\(exit code \d\)|[().]", message)
        for part in (part.strip(" ,;:") for part in parts):
            if len(part) > 8:
                assert part in code, f"{message!r}: no message of the program says {part!r}"


def test_the_corpus_builder_says_what_it_needs() -> None:
    code = (
        "import runpy, sys; sys.modules['zstandard'] = None; sys.argv = ['build_corpus.py', 'out'];"
        f"runpy.run_path({str(ROOT / 'tools/build_corpus.py')!r}, run_name='__main__')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert ".venv/bin/python tools/build_corpus.py" in done.stderr
    assert "Traceback" not in done.stderr
    helped = subprocess.run(
        [sys.executable, str(ROOT / "tools/build_corpus.py"), "--help"],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert helped.returncode == 0
