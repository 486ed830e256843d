"""Commands run in this process, with everything checked that may never happen whatever they are given."""

from __future__ import annotations

import contextlib
import functools
import importlib
import io
import json
import os
from pathlib import Path
from typing import NamedTuple

from btlm_data import entry, terminal
from btlm_data.tokenizer import load_tokenizer

ENDINGS = {0, 1, 2, 3, 4, 5}  # exit codes of errors that have words


class Ended(NamedTuple):
    """A command's exit code, and what it wrote to standard output and standard error."""

    code: int
    output: str
    errors: str

    @property
    def words(self) -> str:
        """All that a user sees."""
        return self.output + self.errors


@functools.cache
def spare_work() -> None:
    """Load GPT-2 for commands of this process and its forks, and let them wait for no disk: nothing here cuts the power, which
    is all that fsync is for.
    """
    setattr(os, "fsync", lambda fd: None)  # noqa: B010
    tokenizer = load_tokenizer("gpt2")
    tokenizer.token_text(0)
    assert tokenizer.token_bytes is not None


def command(*arguments: object, program: str = "btlm_data") -> Ended:
    """A command in this process; how it ended. Raises AssertionError for what may never happen."""
    out, err = io.StringIO(), io.StringIO()
    cli = importlib.import_module(f"{program}.cli").cli
    words = [str(argument) for argument in arguments]
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = entry._exit_code(cli, words)
    output, errors = out.getvalue(), err.getvalue()
    if code not in ENDINGS:
        reports = sorted(Path(os.environ.get("TMPDIR", "/nowhere")).glob("btlm-error-*"))
        report = reports[-1].read_text() if reports else ""
        raise AssertionError(f"{words}: exit code {code}: {errors[-1500:]}{output[-500:]}\n{report[-2500:]}")
    planned = "--plan" in words and "The run would stop" in output
    has_words = bool(errors.strip()) or planned or "--json" in words or words[0] == "verify"
    assert code == 0 or has_words, f"{words}: {code}, no words"
    hidden = terminal._HIDDEN.search(output + errors)
    assert hidden is None, (
        f"{words} prints {hidden[0]!r}: {(output + errors)[max(0, hidden.start() - 60) :][:200]!r}"
    )
    assert "Traceback (most" not in errors, f"{words}: {errors[-2000:]}"
    assert max(map(len, errors.splitlines()), default=0) < 20_000, (
        f"{words}: a line of {len(errors)} characters"
    )
    if "--json" in words and output.strip():
        for text in output.splitlines() if words[0] == "verify" else [output]:
            json.loads(text, parse_constant=_no_number)
    return Ended(code, output, errors)


def _no_number(text: str) -> float:
    raise AssertionError(f"{text} is no JSON")
