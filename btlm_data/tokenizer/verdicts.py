"""The self-check of a tokenizer, run in a process of its own with limits, and remembered.

A verdict holds for a tokenizer's content, the versions of the libraries, the probes and the processor; a copy
is kept in the user's cache folder ($XDG_CACHE_HOME or ~/.cache, below btlm-data/tokenizers), so that later
runs start at once. Without such a folder, or where it cannot be written, the check runs at every start.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import logging
import os
import platform
import signal
import subprocess
import sys
import unicodedata
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from btlm_data.errors import ConfigError
from btlm_data.tokenizer import probes
from btlm_data.tokenizer.configuration import to_json
from btlm_data.tokenizer.self_check import Checked, Verdict, check

TRIAL = "btlm_data.tokenizer.trial"

logger = logging.getLogger(__name__)

# CPU seconds of the check: a constant, and more for each MB of tokenizer.json; 87 MB with 3 million tokens
# take 9.
_SECONDS = 8
_SECONDS_PER_MB = 0.25
_BYTES = 2**30  # of address space; GPT-2 takes 0.4 GB
_BYTES_PER_BYTE = 150
_MAX_VERDICT_BYTES = 2**16


def verdict_on(name: str, config: Mapping[str, Any], fingerprint: str, *, trusted: bool) -> Checked:
    """What the self-check finds, or found earlier. trusted: the tokenizer is the package's own and needs no
    limits.

    Raises ConfigError if the tokenizer cannot be used.
    """
    path = _path(fingerprint)
    if (remembered := _remembered(path)) is not None:
        return Checked(remembered)
    checked = check(config) if trusted else _check_in_limits(config)
    if checked.verdict.backend is None:
        raise ConfigError(
            f"The tokenizer {name} cannot be used: {checked.verdict.reason}. "
            "Check that the file is complete and made for this version, or use another."
        )
    _remember(path, checked.verdict)
    return checked


def _check_in_limits(config: Mapping[str, Any]) -> Checked:
    text = to_json(config).encode()
    seconds = round(_SECONDS + _SECONDS_PER_MB * len(text) / 10**6)
    # -P and the parent's own path: the child imports what the parent imports, not from the current folder.
    command = [
        sys.executable,
        "-P",
        "-m",
        TRIAL,
        str(seconds),
        str(_BYTES + _BYTES_PER_BYTE * len(text)),
    ]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(str(Path(p).absolute()) for p in sys.path)}
    try:
        done = subprocess.run(
            command, input=text, env=environment, capture_output=True, timeout=10 * seconds, check=False
        )
    except subprocess.TimeoutExpired:
        return Checked(
            Verdict(None, f"loading it and encoding short texts took more than {10 * seconds} seconds")
        )
    except OSError as error:
        logger.warning(
            "The tokenizer is checked without limits of time and memory: no process started (%s).", error
        )
        return check(config)
    try:
        return Checked(msgspec.json.decode(done.stdout, type=Verdict))
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return Checked(Verdict(None, _why_it_died(done, seconds)))


def _why_it_died(done: subprocess.CompletedProcess[bytes], seconds: int) -> str:
    if done.returncode in (-signal.SIGXCPU, -signal.SIGKILL):
        return f"loading it and encoding short texts took more than {seconds} seconds"
    logger.debug(
        "The process that tried the tokenizer wrote: %s", done.stderr[-2000:].decode("utf-8", "replace")
    )
    return (
        f"loading it and encoding short texts ended the process that tried it (exit code {done.returncode}), "
        "most likely because it needs too much memory"
    )


# What is remembered -----------------------------------------------------------------------------------------


def _path(fingerprint: str) -> Path | None:
    """Where the verdict is kept; None without a cache folder."""
    home = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    if not os.path.isabs(home):
        return None
    described = [
        fingerprint,
        probes.VERSION,
        importlib.metadata.version("tokenizers"),
        importlib.metadata.version("fastokens"),
        unicodedata.unidata_version,
        platform.machine(),
        _processor(),
    ]
    key = hashlib.sha256(json.dumps(described).encode()).hexdigest()[:32]
    return Path(home, "btlm-data", "tokenizers", f"{key}.json")


def _processor() -> str:
    """What tells one kind of processor from another: its instructions may take other paths through a
    library.
    """
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:
            for line in file:
                if line.startswith(("flags", "Features")):
                    return line
    except OSError:
        pass
    return platform.processor()


def _remembered(path: Path | None) -> Verdict | None:
    if path is None:
        return None
    try:
        with path.open("rb") as file:
            verdict = msgspec.json.decode(file.read(_MAX_VERDICT_BYTES), type=Verdict)
    except (OSError, msgspec.MsgspecError, ValueError, RecursionError):
        return None
    return verdict if verdict.backend is not None else None


def _remember(path: Path | None, verdict: Verdict) -> None:
    if path is None:
        return
    temporary = path.with_name(f"{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_bytes(msgspec.json.encode(verdict))
        temporary.replace(path)
    except OSError as error:
        logger.debug("The verdict on the tokenizer is not kept: %s", error)
