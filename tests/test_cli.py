"""The command line as a user meets it: help, examples, messages, exit codes."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import click
import pytest

from btlm_data.cli import cli
from btlm_train.cli import cli as train_cli
from tests import forked

ROOT = Path(__file__).resolve().parent.parent


def run(*arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "COLUMNS": "200"}
    return forked.run(["btlm-data", *arguments], cwd, environment)


COMMANDS = {
    f"{program} {name}": command
    for program, group in (("btlm-data", cli), ("btlm-train", train_cli))
    for name, command in group.commands.items()
}


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_every_command_and_option_says_what_it_is_for(name: str) -> None:
    command = COMMANDS[name]
    assert command.help
    assert re.search(rf"{name} ", command.help), f"{name} has no example"
    for parameter in command.get_params(click.Context(command)):
        if isinstance(parameter, click.Option):
            assert len((parameter.help or "").split()) > 2, f"{name} {parameter.opts} has no help"


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
        (
            ["prepare", "--source", "sample", "--memory", "100MB", "--workers", "2"],
            2,
            "Give --memory 1050MB or more, or --workers 1 and at least 600 MB",
        ),
        (["prepare", "--source", "/nowhere/at/all"], 3, "does not exist"),
        (["prepare", "--source", "sample", "--tokenizer", "/nowhere/tokenizer.json"], 2, "tokenizer"),
        (["run", "nowhere.yaml"], 2, "There is no recipe nowhere.yaml"),
        (["run", "stage9"], 2, "redpajama, sample, stage1, stage2"),
        (["run", "."], 2, "cannot be read: Is a directory"),
        (["run", ""], 2, "The name of the recipe is empty"),
        (["run", "a" * 5000], 2, "There is no recipe aaa"),
        (["prepare", "--source", "\udcff.jsonl"], 2, "must be renamed"),
        (["prepare", "--source", "s" * 100_000], 2, "longer than the 4,096 characters"),
        (["prepare", "--source", "sample", "--out", ""], 2, "must not be empty"),
        (["dedupe-curve", "--threshold", "nan"], 2, "not a similarity"),
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


def completed(words: str, position: int) -> list[str]:
    """What bash proposes for the word at `position` of the command line."""
    environment = {
        "PYTHONPATH": str(ROOT),
        "_BTLM_DATA_COMPLETE": "bash_complete",
        "COMP_WORDS": words,
        "COMP_CWORD": str(position),
    }
    code = "import sys; sys.argv = ['btlm-data']; from btlm_data.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=os.environ | environment, timeout=60
    )
    return [line.partition(",")[2] for line in done.stdout.splitlines()]


def test_the_shell_completes_sources_recipes_splits_and_options() -> None:
    assert completed("btlm-data prepare --source sl", 3) == ["slimpajama", "slimpajama-6b"]
    assert completed("btlm-data run st", 2) == ["stage1", "stage2"]
    assert completed("btlm-data inspect d --split v", 4) == ["validation"]
    assert completed("btlm-data prepare --split-rule t", 3) == ["train=", "test="]
    assert "--dedupe-index" in completed("btlm-data prepare --dedupe", 2)


def test_every_option_of_a_recipe_sets_an_existing_key_once() -> None:
    from btlm_data.recipe.options import GROUPS, field_of

    flags = [flag for group in GROUPS.values() for flag in group]
    assert len({flag.key for flag in flags}) == len(flags) == len({flag.name for flag in flags})
    for flag in flags:
        assert field_of(flag.key).description


@pytest.mark.parametrize(
    ("arguments", "key", "value"),
    [
        (["--filter", "gopher_quality", "--filter", "min_chars: 500"], "clean.filters", ("gopher_quality", {"min_chars": 500})),
        (["--mix", "A=B=2", "--mix", "C=0.5"], "mix.epochs", {"A=B": 2.0, "C": 0.5}),
        (["--split-rule", "validation=a/*", "--split-rule", "validation=b=*"], "source.splits", {"validation": ("a/*", "b=*")}),
        (["--chunks", "1, 2"], "source.chunks", (1, 2)),
        (["--holdout", "0.01", "--test-holdout", "1e-2"], "holdout.test_fraction", 0.01),
        (["--decontaminate", "a.jsonl", "--decontaminate", "b*.jsonl"], "holdout.decontaminate", ("a.jsonl", "b*.jsonl")),
        (["--bands", "20", "--rows", "6"], "dedupe.bands", 20),
        (["--exclude-source", "007", "--exclude-source", "NO"], "source.exclude_sources", ("007", "NO")),
        (["--seq-len", "2048:0.75", "--seq-len", "8192:0.25"], "seq_len.1.share", 0.25),
        (["--eos", "[SEP]"], "tokenizer.eos", "[SEP]"),
        (["--memory", "4GB"], "run.memory", 4 * 10**9),
        (["--dedupe-verify", "signature"], "dedupe.verify", "signature"),
        (["--set", "tokenizer.eos=0"], "tokenizer.eos", "0"),
    ],
)  # fmt: skip
def test_options_reach_their_keys(arguments: list[str], key: str, value: object) -> None:
    from btlm_data.recipe.load import load
    from btlm_data.recipe.options import overrides

    command = cli.commands["prepare"]
    given = command.make_context("prepare", ["--source", "x", *arguments]).params
    found: object = load(None, overrides(given, given["assignments"]))
    for part in key.split("."):
        found = found[int(part)] if part.isdigit() else getattr(found, part)  # type: ignore[index]
    assert found == value


def test_results_plans_and_errors_are_json_with_json(tmp_path: Path) -> None:
    plan = run("prepare", "--source", "sample", "--limit", "40", "--plan", "--json", cwd=tmp_path)
    assert json.loads(plan.stdout)["documents"] > 0
    options = ("prepare", "--source", "sample", "--limit", "40", "--out", "d", "--json", "-q")
    done = run(*options, cwd=tmp_path)
    assert done.returncode == 0
    assert done.stderr == ""
    report = json.loads(done.stdout)
    assert report["complete"]
    assert report["kept"]["documents"] == report["read"]["documents"] - sum(
        number for reasons in report["dropped"].values() for number in reasons.values()
    )
    assert {split["split"] for split in report["splits"]} == {"train", "validation", "test"}
    again = json.loads(run(*options, cwd=tmp_path).stdout)
    assert again["unchanged"]
    assert again["splits"] == report["splits"]
    other = run(*options, "--seed", "1", cwd=tmp_path)
    assert other.returncode == 4
    assert json.loads(other.stdout)["error"]["kind"] == "OutputError"


def test_verbose_quiet_and_log_file_stand_before_or_after_the_command(tmp_path: Path) -> None:
    options = ["prepare", "--source", "sample", "--limit", "40", "--out", "d"]
    loud = run(*options, "--log-file", "log.txt", cwd=tmp_path)
    assert "tokens/s" in loud.stderr
    log = (tmp_path / "log.txt").read_text()
    assert re.search(r"^\d{4}-\d\d-\d\d .* INFO btlm_data", log, re.M)
    for quiet in (["-q", *options], [*options, "-q"]):
        assert run(*quiet, "--seed", "2", "--overwrite", cwd=tmp_path).stderr == ""
    refused = run(*options, "--log-file", "no/such/folder/log.txt", cwd=tmp_path)
    assert refused.returncode == 4
    assert "--log-file" in refused.stderr


@pytest.mark.parametrize("program", [cli, train_cli], ids=["btlm-data", "btlm-train"])
def test_every_command_takes_the_options_of_logging(program: click.Group) -> None:
    for name, command in program.commands.items():
        options = {spelling for option in command.params for spelling in option.opts}
        assert {"-v", "-q", "--log-file"} <= options, f"{name} takes them only before its name"


@pytest.mark.skipif(sys.platform == "win32", reason="ulimit is a Unix shell's")
def test_a_memory_limit_that_would_crash_the_libraries_is_an_error_in_words(tmp_path: Path) -> None:
    command = f"ulimit -v 500000; exec {sys.executable} -m btlm_data.cli prepare --source sample --out d"
    done = subprocess.run(
        ["bash", "-c", command],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 2
    assert "ulimit -v" in done.stderr
    assert "Traceback" not in done.stderr


def test_nothing_is_written_without_a_source(tmp_path: Path) -> None:
    done = run("prepare", "--out", "shards", cwd=tmp_path)
    assert done.returncode == 2
    assert "no source is given" in done.stderr
    assert not list(tmp_path.iterdir())


def test_export_offers_what_can_be_exported_to() -> None:
    from btlm_data.export import TARGETS

    (option,) = [parameter for parameter in cli.commands["export"].params if parameter.name == "to"]
    assert isinstance(option.type, click.Choice)
    assert set(option.type.choices) == set(TARGETS)


@pytest.mark.skipif(sys.platform == "win32", reason="a folder in use cannot be removed there")
def test_a_current_folder_that_is_gone_is_said_in_words() -> None:
    code = (
        "import os, sys, tempfile; folder = tempfile.mkdtemp(); os.chdir(folder); os.rmdir(folder);"
        "sys.argv = ['btlm-data', 'prepare', '--source', 'sample', '--out', 'd'];"
        "from btlm_data.cli import main; main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 4
    assert "current folder does not exist" in done.stderr


def test_nothing_from_a_hostile_corpus_reaches_the_terminal(tmp_path: Path) -> None:
    evil = "\x1b]52;c;ZXZpbA==\x07\x1b[2J\u202eevil\u2066"
    (tmp_path / "c").mkdir()
    records = [{"text": f"{evil} word{i} " * 60, "meta": {"redpajama_set_name": evil}} for i in range(30)]
    lines = "".join(json.dumps(record) + "\n" for record in records) + f"{{bad {evil}\n"
    (tmp_path / "c" / f"{evil}.jsonl").write_text(lines)
    (tmp_path / "r.yaml").write_text('"sed\\e[2J": 1\n')
    for arguments, code in (
        (["prepare", "--source", "c", "--plan"], 0),
        (["prepare", "--source", "c", "--out", "out", "-v"], 0),
        (["prepare", "--source", "c", "--out", "out", "--json"], 0),
        (["prepare", "--source", "c", "--out", "strict", "--strict"], 3),
        (["inspect", "out", "--sample", "1"], 0),
        (["inspect", "out", "--json"], 0),
        (["verify", "out"], 0),
        (["export", "out", "--to", "npy", "--out", f"e{evil}"], 0),
        (["run", "r.yaml"], 2),
        (["prepare", "--source", evil, "--json"], 3),
        (["prepare", "--format", evil], 2),
        ([evil], 2),
    ):
        done = run(*arguments, cwd=tmp_path)
        assert done.returncode == code, done.stderr
        shown = done.stdout + done.stderr
        assert not re.search("[\x07\x1b\x9b\u202a-\u202e\u2066-\u2069]", shown), arguments


def test_memory_below_any_process_cuts_work_into_the_smallest_pieces(tmp_path: Path) -> None:
    source = tmp_path / "a.jsonl"
    source.write_text(
        "".join(json.dumps({"text": f"Document {n} says {n * n}. " * 12}) + "\n" for n in range(40))
    )
    options = ["--source", source, "--seq-len", "16", "--workers", "1"]
    little = run("prepare", *map(str, options), "--memory", "40KB", "--out", str(tmp_path / "little"))
    assert little.returncode == 0, little.stderr
    assert "40,000 bytes, less than any process takes" in little.stderr
    plenty = run("prepare", *map(str, options), "--out", str(tmp_path / "plenty"))
    assert "less than any process" not in plenty.stderr
    shards = [(tmp_path / name / "train/data-00000.h5").read_bytes() for name in ("little", "plenty")]
    assert shards[0] == shards[1]
