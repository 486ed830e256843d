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
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import click
import pytest

import btlm_data.cli
import btlm_train.cli
from btlm_data import entry
from tests import forked
from tests.cases.model import byte_tokenizer

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


def shell_lines(text: str) -> Iterator[str]:
    """The lines of a page's blocks of shell or plain text, and its indented lines."""
    language = None  # of the block that a line is in
    for line in text.splitlines():
        if line.startswith("```"):
            language = line.removeprefix("```").strip() if language is None else None
        elif language in ("", "sh", "bash", "console", "text"):
            yield line.strip().removeprefix("$ ")
        elif language is None and line.startswith("    "):
            yield line.strip()


def printed_commands(page: Path) -> list[list[str]]:
    """The commands of our programs in a page's blocks and indented lines, in order, as words."""
    lines = shell_lines(page.read_text().replace("\\\n", " "))
    return [shlex.split(line, comments=True) for line in lines if re.match("btlm-(data|train) ", line)]


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


def run_words(words: list[str], folder: Path, *, real: bool = False) -> None:
    """Run a printed command in `folder`; of training, one step. real: in an interpreter of its own."""
    if words[:2] == ["btlm-train", "run"]:
        words = [*words, "--set", "runconfig.max_steps=1"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "COLUMNS": "100"}
    command = [sys.executable, "-m", "btlm_data", *words[1:]]
    if words[:2] == ["btlm-data", "serve"]:
        run_server([*command, "--port", "0"], folder, environment)
        return
    if words[0] == "btlm-data" and real:
        done = subprocess.run(
            command, cwd=folder, env=environment, capture_output=True, text=True, check=False, timeout=600
        )
    else:
        done = forked.run(words, folder, environment, 600)
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
        run_words(words, tmp_path, real=name == "README.md")


# Pages about a finished dataset, whose commands run in this process, one after the other, on a copy of one dataset.
ON_A_DATASET = (
    "add.md",
    "cli.md",
    "cluster.md",
    "dedupe.md",
    "export.md",
    "large-runs.md",
    "mixing.md",
    "reselect.md",
    "trace.md",
    "training.md",
)
_NEEDS_TRAINING = (
    "needs minutes of training; tests/train runs the command on models of a few thousand parameters"
)
# Beginning of a command of a page that is not run -> why; its options are checked all the same.
NOT_RUN = {
    "cli.md": {
        "btlm-data forget shards/ --list ids.txt --run": _NEEDS_TRAINING,
        "btlm-data trace shards/ --url https://example.org/page --run": _NEEDS_TRAINING,
        "btlm-data push": "needs the hub; tests/pages/test_cards.py pushes to one on loopback",
        "btlm-data serve": "runs until it is interrupted; inspect.md starts it in these ways",
        "btlm-data sign": "needs a person's key; tests/inspection/test_signature.py signs with one",
        "btlm-data worker": "needs a run beside it; tests/engine/test_engines.py has both",
        "btlm-train": _NEEDS_TRAINING,
    },
    "cluster.md": {
        "btlm-data prepare --source sample --seq-len 512 --out shared/shards --engine": "needs workers, Ray or a batch "
        "system beside it; tests/engine/test_engines.py runs each engine",
        "btlm-data worker": "needs a run beside it; tests/engine/test_engines.py has both",
    },
    "export.md": {"btlm-data push": "needs the hub; tests/pages/test_cards.py pushes to one on loopback"},
    "trace.md": {
        "btlm-data trace shards/ --id doc-17 --run": _NEEDS_TRAINING,
        "btlm-train batch": _NEEDS_TRAINING,
    },
    "training.md": {"btlm-train": _NEEDS_TRAINING},
}
_WORDS = re.findall(
    r"\w+",
    "the river town people small water story old house time light paper morning garden road winter summer teacher letter "
    "music window market children mountain answer question between because through without against every other first "
    "second great little found wrote walked carried opened remembered followed another night country never again",
)


def reason_not_to_run(page: str, words: list[str]) -> str | None:
    """Why a command of a page is not run, if it is not."""
    command = " ".join(words)
    return next((why for start, why in NOT_RUN.get(page, {}).items() if command.startswith(start)), None)


def commands_to_run(name: str) -> list[list[str]]:
    """The commands of a page about a dataset that are run; of the reference, where each stands by itself, those that no
    other page has, and last those that change the dataset.
    """
    commands = [
        words for words in printed_commands(ROOT / "docs" / name) if not reason_not_to_run(name, words)
    ]
    if name == "cli.md":
        others = [page for page in PAGES if page.name in {*RUN, *ON_A_DATASET} - {name}]
        known = [
            words
            for page in others
            for words in printed_commands(page)
            if not reason_not_to_run(page.name, words)
        ]
        commands = [words for words in commands if words not in known]
        commands.sort(key=lambda words: words[1] in ("add", "forget", "prepare", "run"))
    return commands


def test_each_printed_command_is_run_or_has_a_reason() -> None:
    for page in PAGES:
        if page.name not in {*RUN, *ON_A_DATASET}:
            for words in printed_commands(page):
                assert reason_not_to_run(page.name, words), f"{page.name}: {' '.join(words)}"
    for name, starts in NOT_RUN.items():
        commands = [" ".join(words) for words in printed_commands(ROOT / "docs" / name)]
        for start in starts:
            assert any(command.startswith(start) for command in commands), f"{name} no longer has {start}"


def run_here(command: str) -> int:
    """The exit code of a command, run in this process."""
    words = shlex.split(command)
    return entry._exit_code(PROGRAMS[words[0]], words[1:])


@pytest.fixture(scope="module")
def folder_with_a_dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `my_corpus` and `shards`: documents with ids and URLs, short ones, and near-duplicates."""
    folder = tmp_path_factory.mktemp("pages")
    rng = random.Random(1)
    (folder / "my_corpus/corpus").mkdir(parents=True)
    for name, first, count in (("corpus/a.jsonl", 0, 60), ("corpus/validation.jsonl", 60, 20)):
        lines = []
        for number in range(first, first + count):
            text = " ".join(rng.choice(_WORDS) for _ in range(5 if number % 10 == 2 else 120)) + "."
            if number % 10 == 4:
                text = text.replace("the", "an exact passage of the text", 1)
            record = {
                "text": text,
                "id": f"doc-{number}",
                "url": f"https://example.org/{'page' if number == 17 else number}",
                "meta": {"redpajama_set_name": ("Web", "NAME")[number % 2]},
            }
            lines.append(json.dumps(record) + "\n")
            if number % 10 == 5:
                lines.append(json.dumps(record | {"text": f"{text} Again.", "id": f"copy-{number}"}) + "\n")
        (folder / "my_corpus" / name).write_text("".join(lines))
    new = [{"text": " ".join(rng.choice(_WORDS) for _ in range(120)), "id": f"new-{k}"} for k in range(8)]
    (folder / "evaluation.jsonl").write_text(json.dumps({"question": " ".join(_WORDS * 13)}) + "\n")
    (folder / "new_crawl").mkdir()
    (folder / "new_crawl/a.jsonl").write_text("".join(json.dumps(record) + "\n" for record in new))
    (folder / "mix.yaml").write_text("sources: {Web: 60%}\n")
    (folder / "questions.txt").write_text('doc-3\nhttps://example.org/page\n{"text": "an exact passage"}\n')
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        tokenizer = byte_tokenizer(folder / "tokenizer.json")
        annotated = (
            "--annotate gopher --annotate language --id-field id --keep-field url --set clean.min_chars=1"
        )
        command = f"btlm-data prepare --source my_corpus/ --out shards/ --seq-len 512 --workers 1 {annotated}"
        assert run_here(f"{command} --tokenizer {tokenizer}") == 0
    return folder


@pytest.mark.parametrize("name", ON_A_DATASET)
def test_pages_about_a_dataset_run_as_printed(
    name: str,
    folder_with_a_dataset: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = tmp_path / "here"
    shutil.copytree(folder_with_a_dataset, folder)
    shutil.copytree(ROOT / "pipelines", folder / "pipelines")
    monkeypatch.chdir(folder)
    monkeypatch.setenv("COLUMNS", "100")
    commands = commands_to_run(name)
    assert len(commands) >= 2
    for words in commands:
        if words[1] in ("prepare", "run") and not Path("other").exists():  # where nothing is yet
            Path("shards").rename("other")
        code = run_here(shlex.join(words))
        if words[1] in ("prepare", "run") and not Path("shards").exists():
            Path("other").rename("shards")
        said = capsys.readouterr()
        assert code == STOPS.get(" ".join(words), 0), f"{' '.join(words)}\n{said.out}{said.err}"


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
