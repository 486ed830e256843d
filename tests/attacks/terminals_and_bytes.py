"""Nothing from outside moves the terminal, whatever the terminal is; and the same corpus gives the same bytes anywhere."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time

from btlm_data import terminal
from tests.attacks.bench import EVIL, ROOT, Bench, probe

GROUP = "terminals"
NAME = EVIL.replace("/", "")


@probe(
    GROUP, "source", "out", "set", "config", "command", "tokenizer", "inspect", "verify", "export", "signers"
)
def hidden_characters_in_arguments(bench: Bench, place: str) -> None:
    bench.corpus()
    choices: dict[str, list[object]] = {
        "source": ["prepare", "--source", NAME, "--out", "x", "--seq-len", "64"],
        "out": ["prepare", "--source", "a.jsonl", "--out", NAME, "--seq-len", "64", "--workers", "1"],
        "set": ["prepare", "--source", "a.jsonl", "--out", "x", "--set", f"{NAME}=1"],
        "config": ["prepare", "--config", NAME],
        "command": [NAME],
        "tokenizer": ["prepare", "--source", "a.jsonl", "--out", "x", "--tokenizer", NAME],
        "inspect": ["inspect", NAME],
        "verify": ["verify", NAME],
        "export": ["export", NAME, "--to", NAME, "--out", NAME],
        "signers": ["verify", bench.dataset(), "--signers", NAME],
    }
    words = choices[place]
    bench.run(*words)  # which looks at every character printed
    if place not in ("command", "export", "signers"):
        bench.run(*words, "--json")


@probe(GROUP, "[red]x", "a[/b]", "[link=x]y", "[bold]", ":smile:", "%s%d", "{0}", "\\n")
def markup_in_names(bench: Bench, name: str) -> None:
    bench.corpus(f"{name}.d/z.jsonl")
    for more in ([], ["--plan"]):
        ended = bench.prepare(f"{name}.d", f"{name}-out", *more)
        assert "".join(name.split()) in "".join(ended.words.split()), ended.words  # long paths are wrapped
    bench.run("inspect", bench.root / f"{name}-out", "--full", code=0)
    bench.run("verify", bench.root / f"{name}-out", code=0)


@probe(GROUP, "text", "source", "file", "reject")
def hidden_characters_in_a_corpus(bench: Bench, place: str) -> None:
    file = f"src/{NAME if place == 'file' else 'a'}.jsonl"
    text = (EVIL if place == "text" else "word ") * 40
    record = {"text": text, "meta": {"redpajama_set_name": EVIL if place == "source" else "web"}}
    lines = [json.dumps(record)] + [json.dumps({"text": f"{text} {i} " * 9}) for i in range(8)]
    if place == "reject":
        lines += [f'{{"text": "{EVIL}', EVIL, json.dumps({"text": {EVIL: EVIL}})]
    bench.write(file, "\n".join(lines) + "\n")
    bench.prepare("src", "out", "--set", "source.max_rejected=1.0", "--set", "dedupe.max_removed=1.0")
    for arguments in (["inspect", bench.root / "out", "--full"], ["inspect", bench.root / "out", "--sample", "0"],
                      ["inspect", bench.root / "out", "--json", "--num-samples", "3"], ["verify", bench.root / "out", "--json"],
                      ["verify", bench.root / "out"]):  # fmt: skip
        bench.run(*arguments, code=0)


@probe(GROUP, {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}, {"PYTHONIOENCODING": "ascii"},
       {"PYTHONIOENCODING": "utf-16"}, {"TERM": "dumb"}, {"COLUMNS": "1"}, {"COLUMNS": "-5"}, slow=True)  # fmt: skip
def an_odd_environment(bench: Bench, environment: dict[str, str]) -> None:
    bench.corpus("é中/ü.jsonl")
    done = bench.process(
        "prepare", "--source", "é中", "--out", "öut", "--seq-len", "64", "--workers", "1", env=environment
    )
    if (
        done.returncode == 2 and environment.get("PYTHONUTF8") == "0"
    ):  # such names cannot be opened there: said in words
        assert b"not Unicode text" in done.stderr, done.stderr[-800:]
        return
    assert done.returncode == 0, done.stderr[-800:]
    for arguments in (
        ["inspect", "öut", "--full"],
        ["inspect", "öut", "--json"],
        ["verify", "öut"],
        ["prepare", "--help"],
    ):
        done = bench.process(*arguments, env=environment)
        assert done.returncode == 0, (arguments, done.stderr[-800:])
        assert b"Traceback" not in done.stderr


@probe(GROUP, ">&-", "2>&-", ">/dev/full", "2>/dev/full", "| head -c 1", "<&-", slow=True)
def standard_streams_that_are_closed_or_full(bench: Bench, streams: str) -> None:
    root = bench.dataset()
    command = f'"{sys.executable}" -m btlm_data "$@" {streams}; exit ${{PIPESTATUS[0]}}'
    for arguments in (
        ["inspect", root, "--full"],
        ["verify", root, "--json"],
        ["inspect", root, "--json"],
        ["--help"],
    ):
        done = subprocess.run(
            ["bash", "-c", command, "-", *map(str, arguments)], capture_output=True, timeout=120, check=False,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )  # fmt: skip
        assert done.returncode in (0, 4, 141), (arguments, done.returncode, done.stderr[-500:])
        assert b"Traceback" not in done.stderr, done.stderr[-800:]
        assert b"Exception ignored" not in done.stderr, done.stderr[-800:]


@probe(GROUP, 1, 5, slow=True)
def interrupts(bench: Bench, times: int) -> None:
    bench.corpus("src/a.jsonl", 20_000)
    words = [
        sys.executable,
        "-m",
        "btlm_data",
        "prepare",
        "--source",
        "src",
        "--out",
        "out",
        "--seq-len",
        "64",
        "--workers",
        "2",
    ]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    for delay in (0.3, 1.5, 2.5):
        run = subprocess.Popen(
            words, cwd=bench.root, env=environment, stderr=subprocess.PIPE, start_new_session=True
        )
        time.sleep(delay)
        for _ in range(times):
            if run.poll() is None:
                os.killpg(run.pid, signal.SIGINT)
            time.sleep(0.02)
        _, errors = run.communicate(timeout=60)
        assert run.returncode in (0, 130), (run.returncode, errors[-500:])
        assert b"Traceback" not in errors, errors[-800:]
    assert (
        subprocess.run(words, cwd=bench.root, env=environment, capture_output=True, check=False).returncode
        == 0
    )


@probe(GROUP)
def hidden_characters_are_what_terminals_obey(bench: Bench) -> None:
    import unicodedata

    shown = [
        chr(code) for code in range(0x110000)
        if unicodedata.category(chr(code)) == "Cc" and chr(code) not in "\t\n" and terminal.visible(chr(code)) == chr(code)
    ]  # fmt: skip
    assert not shown
    assert all(
        terminal.visible(c) != c
        for c in "\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069\u200e\u200f\u061c"
    )


# Same bytes --------------------------------------------------------------------------------------------------------

BYTES = "same bytes"


def _expected(bench: Bench) -> dict[str, str]:
    bench.corpus("src/train/a.jsonl", 50)
    bench.corpus("src/train/b.jsonl", 30, 2)
    bench.corpus("src/validation/c.jsonl", 20, 3)
    bench.prepare("src", "expected")
    return bench.hashes("expected")


@probe(BYTES)
def a_copy_elsewhere_with_other_times(bench: Bench) -> None:
    expected = _expected(bench)
    shutil.copytree(bench.root / "src", bench.root / "some where/else")
    for number, path in enumerate(sorted((bench.root / "some where/else").rglob("*"))):
        os.utime(path, (number * 1000, number * 1000))
    bench.prepare("some where/else", "out")
    assert bench.hashes("out") == expected


@probe(BYTES)
def files_made_in_another_order(bench: Bench) -> None:
    expected = _expected(bench)
    for path in sorted((bench.root / "src").rglob("*.jsonl"), reverse=True):
        target = bench.root / "again" / path.relative_to(bench.root / "src")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(path.read_bytes())
    bench.prepare("again", "out")
    assert bench.hashes("out") == expected


@probe(BYTES)
def a_source_of_links(bench: Bench) -> None:
    expected = _expected(bench)
    for path in (bench.root / "src").rglob("*.jsonl"):
        target = bench.root / "links" / path.relative_to(bench.root / "src")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.symlink_to(path)
    bench.prepare("links", "out")
    assert bench.hashes("out") == expected


@probe(BYTES, "40KB", "10KB", "3GB")
def another_memory(bench: Bench, memory: str) -> None:
    expected = _expected(bench)
    bench.prepare("src", "out", "--memory", memory)
    assert bench.hashes("out") == expected


@probe(BYTES, {"PYTHONHASHSEED": "1"}, {"TZ": "Asia/Tokyo"}, {"LC_ALL": "C"}, {"OMP_NUM_THREADS": "1"},
       {"NUMBA_DISABLE_JIT": "0", "PYTHONOPTIMIZE": "1"}, slow=True)  # fmt: skip
def another_environment(bench: Bench, environment: dict[str, str]) -> None:
    expected = _expected(bench)
    prefix = ["bash", "-c", 'umask 077; exec "$@"', "-"]
    done = bench.process("prepare", "--source", "src", "--out", "out", "--seq-len", "64", "--workers", "2", env=environment,
                         prefix=prefix)  # fmt: skip
    assert done.returncode == 0, done.stderr[-500:]
    assert bench.hashes("out") == expected


@probe(BYTES)
def each_stage_in_a_run_of_its_own(bench: Bench) -> None:
    expected = _expected(bench)
    for stage in ("acquire", "clean", "dedupe", "holdout", "tokenize", "shuffle", "pack"):
        bench.prepare("src", "out", "--stop-after", stage)
    bench.prepare("src", "out")
    assert bench.hashes("out") == expected
