"""The programs' commands as processes of their own that begin with everything imported and compiled.

A fresh interpreter takes a second before a command does anything. Here one process imports what commands need, and a fork of it
becomes each command: with its own folder, environment, arguments and streams, from `main` on the program itself. What is decided
while modules are imported is tried with real processes (test_entry.py, test_imports.py, README.md's commands in test_docs.py).
"""

from __future__ import annotations

import atexit
import functools
import importlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NoReturn

ROOT = Path(__file__).resolve().parents[1]
_MODULES = (
    *("cli", "finish", "planning", "progress", "recipe.options", "formats.shard_formats.sample"),
    *("inspection.outcome", "inspection.summary", "inspection.verify", "pages.publish", "pages.report_page"),
    *("pages.card", "pages.croissant"),
)


def run(
    words: Sequence[str], cwd: Path | None = None, env: Mapping[str, str] | None = None, timeout: float = 240
) -> subprocess.CompletedProcess[str]:
    """Run a command to its end. words: as a user types them, `btlm-data` or `btlm-train` first. Raises TimeoutExpired."""
    server = _server()
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        request = {"words": list(words), "cwd": str(cwd or Path.cwd()), "env": dict(env or os.environ)}
        socket.send_fds(server, [json.dumps(request).encode()], [out.fileno(), err.fileno()])
        server.settimeout(None)
        child = int(server.recv(64))
        server.settimeout(timeout)
        try:
            code = int(server.recv(64))
        except TimeoutError:
            os.kill(child, signal.SIGKILL)
            server.settimeout(None)
            server.recv(64)
            raise subprocess.TimeoutExpired(list(words), timeout) from None
        out.seek(0)
        err.seek(0)
        return subprocess.CompletedProcess(list(words), code, out.read(), err.read())


@functools.cache
def _server() -> socket.socket:
    """Start the process that forks, which ends with this one."""
    ours, theirs = socket.socketpair(type=socket.SOCK_SEQPACKET)
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST")}
    with theirs:
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.forked", str(theirs.fileno())],
            cwd=ROOT,
            env=kept,
            pass_fds=[theirs.fileno()],
        )

    def end() -> None:
        ours.close()
        process.wait()

    atexit.register(end)
    return ours


def _serve(requests: socket.socket) -> None:
    _load("btlm-data")
    while True:
        message, descriptors, _, _ = socket.recv_fds(requests, 1 << 20, 2)
        if not message:
            return
        request = json.loads(message)
        _load(request["words"][0])
        child = os.fork()
        if child == 0:
            requests.close()
            _become(request, descriptors)
        for descriptor in descriptors:
            os.close(descriptor)
        requests.send(str(child).encode())
        requests.send(str(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])).encode())


@functools.cache
def _load(program: str) -> None:
    """Import and compile what a program's commands need."""
    if program == "btlm-train":
        os.environ["OMP_NUM_THREADS"] = "1"
        importlib.import_module("btlm_train.sessions")
        importlib.import_module("torch").set_num_threads(1)
        return
    from btlm_data import process

    process.set_defaults()
    from btlm_data.commands.shared import load_kernels

    load_kernels()
    from btlm_data.stages import ready
    from btlm_data.tokenizer import load_tokenizer

    ready.warm_up(load_tokenizer("gpt2"))
    for name in _MODULES:
        importlib.import_module(f"btlm_data.{name}")


def _become(request: dict[str, list[str] | str | dict[str, str]], descriptors: Sequence[int]) -> NoReturn:
    try:
        words, folder, environment = request["words"], request["cwd"], request["env"]
        assert isinstance(words, list)
        assert isinstance(folder, str)
        assert isinstance(environment, dict)
        os.chdir(folder)
        os.environ.clear()
        os.environ.update(environment)
        for number, descriptor in enumerate(descriptors, 1):
            os.dup2(descriptor, number)
            os.close(descriptor)
        sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", closefd=False)  # noqa: SIM115
        sys.path[0] = folder
        sys.argv = list(words)
        vars(sys.modules["__main__"])["__package__"] = None  # the name in usage lines is that of sys.argv
        atexit._clear()
        module = "btlm_data.__main__" if words[0] == "btlm-data" else "btlm_train.cli"
        importlib.import_module(module).main()
    except SystemExit as error:
        os._exit(error.code if isinstance(error.code, int) else 1)
    finally:
        os._exit(70)


if __name__ == "__main__":
    _serve(socket.socket(fileno=int(sys.argv[1])))
