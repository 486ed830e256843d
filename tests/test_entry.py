"""How a command ends: words, an exit code, and a report for what nobody foresaw; whatever the streams are."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PROGRAM = """
import sys, time
import click
from btlm_data import entry, terminal
from btlm_data.errors import DataError, InputError

if sys.argv[1:] == ["end", "die memory"]:  # the system's counter is a file of the test
    from pathlib import Path
    from btlm_data import witness
    witness._EVENTS = Path("events")
    witness._EVENTS.write_text("nr_free_pages 5\\noom_kill 7\\n")

@click.group(cls=entry.Program)
def cli(): pass

@cli.command()
@click.argument("how")
@click.option("--json", "as_json", is_flag=True)
def end(how, as_json):
    if how == "lines":
        for i in range(100_000): terminal.echo(f"line {i}")
    elif how == "rich lines":
        for i in range(100_000): terminal.console().print(f"line {i}")
    elif how == "wait":
        try:
            print("waiting", flush=True); time.sleep(60)
        finally:
            time.sleep(0.7)
            print("cleaned", flush=True)
    elif how.startswith("interrupted in C, "):
        import ctypes, os, signal
        def called():
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0)  # where Python would raise it
        ctypes.CFUNCTYPE(None)(called)()
        if how.endswith("error"):
            raise RuntimeError("there is no code")
        time.sleep(60)
    elif how == "recursion":
        def again(): again()
        again()
    elif how == "memory":
        raise MemoryError
    elif how == "disk":
        raise OSError(28, "No space left on device", "some/file")
    elif how == "data":
        raise DataError("a \\x1b]0;title\\x07 in [bold]https://u:secret@host/x[/]")
    elif how == "one":
        sys.exit(1)
    elif how.startswith("die "):
        import ctypes, os
        from btlm_data import advance, witness
        print("alive", flush=True)
        advance.reading("some/file\\x1b[2J.parquet")
        {"crash": lambda: ctypes.string_at(0), "abort": os.abort, "kill": lambda: os.kill(os.getpid(), 9),
         "memory": lambda: (witness._EVENTS.write_text("oom_kill 8\\n"), os.kill(os.getpid(), 9))}[how[4:]]()
    elif how == "end of the interpreter":
        import atexit, os, threading
        class Late:
            def __del__(self): os.abort()
        sys.late = Late()
        atexit.register(print, "registered")
    else:
        raise RuntimeError(f"odd: {how}")

entry.run(cli)
"""


def run(*arguments: str, **extra: object) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(ROOT)} | extra.pop("env", {})  # type: ignore[operator]
    options = {"capture_output": True, "text": True, "timeout": 60, "env": environment} | extra
    return subprocess.run([sys.executable, "-c", PROGRAM, *arguments], **options)


def test_an_error_nobody_foresaw_is_one_sentence_and_a_report(tmp_path: Path) -> None:
    done = run("end", "https://me:pass@host/x?sig=abc", env={"TMPDIR": str(tmp_path)})
    assert done.returncode == 70
    assert "Traceback" not in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    (report,) = tmp_path.glob("btlm-error-*.txt")
    assert str(report) in done.stderr
    text = report.read_text()
    assert "RuntimeError" in text
    assert "Traceback" in text
    for secret in ("me:pass", "abc"):
        assert secret not in text + done.stderr


def test_without_a_temporary_folder_there_are_still_words(tmp_path: Path) -> None:
    done = run("end", "recursion", env={"TMPDIR": str(tmp_path / "none")}, cwd=tmp_path)
    assert done.returncode == 70
    assert "RecursionError" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("how", "code", "words"),
    [
        ("memory", 70, "not enough memory"),
        ("disk", 4, "some/file: No space left on device"),
        ("data", 1, r"a \x1b]0;title\x07 in [bold]https://host/x[/]"),
        ("one", 1, ""),
    ],
)
def test_each_end_has_its_code_and_words(how: str, code: int, words: str) -> None:
    done = run("end", how)
    assert done.returncode == code
    assert words in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("arguments", "kind", "code"),
    [
        (["end", "data", "--json"], "DataError", 1),
        (["end", "--json"], "UsageError", 2),
        (["end", "odd", "--json"], "InternalError", 70),
        (["nothing", "--json"], "UsageError", 2),
    ],
)
def test_with_json_errors_are_json(arguments: list[str], kind: str, code: int) -> None:
    done = run(*arguments)
    answer = json.loads(done.stdout)["error"]
    assert (answer["kind"], answer["exit_code"], done.returncode) == (kind, code, code)
    assert done.stderr == ""


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_standard_output_is_said_and_a_full_standard_error_changes_nothing() -> None:
    with open("/dev/full", "w") as full:
        done = run("end", "lines", stdout=full, stderr=subprocess.PIPE, capture_output=False)
        assert done.returncode == 4
        assert "No space left" in done.stderr
        assert "Traceback" not in done.stderr
        assert run("end", "data", stderr=full, stdout=subprocess.PIPE, capture_output=False).returncode == 1


@pytest.mark.parametrize("how", ["lines", "rich lines"])
def test_a_reader_that_leaves_ends_the_command_quietly(how: str) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, "end", how],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    assert process.stdout is not None
    assert process.stderr is not None
    with process:
        process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 141


@pytest.mark.parametrize("pause", [0.0, 0.05, 0.18])
def test_five_interrupts_are_one(pause: float) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, "end", "wait"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "waiting\n"
    for _ in range(5):
        process.send_signal(signal.SIGINT)
        time.sleep(pause)
    output, errors = process.communicate(timeout=30)
    assert process.returncode == 130
    assert output == "cleaned\n"
    assert errors == "Interrupted.\n"


@pytest.mark.parametrize("then", ["error", "wait"])
def test_an_interrupt_that_c_swallows_still_interrupts(then: str) -> None:
    begun = time.monotonic()
    done = run("end", f"interrupted in C, {then}")
    assert (done.returncode, done.stderr) == (130, "Interrupted.\n")
    assert time.monotonic() - begun < 30


@pytest.mark.parametrize(
    ("how", "number", "words"),
    [
        (
            "crash",
            signal.SIGSEGV,
            "The program crashed while it read some/file\\x1b[2J.parquet (Segmentation fault)",
        ),
        ("abort", signal.SIGABRT, "The program crashed while it read some/file\\x1b[2J.parquet (Aborted)"),
        (
            "memory",
            signal.SIGKILL,
            "The system ran out of memory and killed the program while it read some/file",
        ),
        ("kill", signal.SIGKILL, ""),
    ],
)
@pytest.mark.skipif(sys.platform != "linux", reason="needs Linux' counter of killed processes")
def test_what_a_library_or_the_system_kills_has_its_words_said(
    how: str, number: signal.Signals, words: str, tmp_path: Path
) -> None:
    """By another process; a program that a user kills says nothing."""
    done = run("end", f"die {how}", cwd=tmp_path, env={"TMPDIR": str(tmp_path)})
    assert (done.returncode, done.stdout) == (-number, "alive\n")
    assert done.stderr.startswith(f"error: {words}") if words else done.stderr == ""
    reports = list(tmp_path.glob("btlm-error-*.txt"))
    assert len(reports) == (how in ("crash", "abort"))
    for report in reports:
        assert str(report) in done.stderr
        assert "in end" in report.read_text(), "the stacks"


def test_nothing_that_fails_when_the_interpreter_ends_can_abort_the_program() -> None:
    done = run("end", "end of the interpreter")
    assert (done.returncode, done.stdout, done.stderr) == (0, "registered\n", "")


def test_an_ascii_terminal_shows_escapes() -> None:
    done = run("end", "späße", env={"PYTHONIOENCODING": "ascii", "LC_ALL": "C"})
    assert done.returncode == 70
    assert r"sp\xe4\xdfe" in done.stderr


def test_an_interrupt_during_the_imports_is_quiet(tmp_path: Path) -> None:
    (tmp_path / "click.py").write_text("import time\nprint('importing', flush=True)\ntime.sleep(60)\n")
    process = subprocess.Popen(
        [sys.executable, "-m", "btlm_data", "--help"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"},
        cwd=tmp_path,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "importing\n"
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    assert (process.returncode, errors) == (130, "")
