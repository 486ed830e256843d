"""Nothing that comes from outside moves a terminal, and no stream's fault loses the work or the message."""

from __future__ import annotations

import io
import json
import logging
import sys
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.table import Table

from btlm_data import terminal

HOSTILE = [
    "\x1b]52;c;ZXZpbA==\x07",
    "\x1b[2J\x1b[H",
    "\x9b31m",
    "a\rb",
    "\u202egpj.exe",
    "\u2066x\u2069",
    "\x7f",
    "\u2028",
    "\ud800",
    "\U000e0041",
]


def obeyed(text: str) -> list[str]:
    """The characters of `text` that a terminal would obey, or that hide or reorder what is shown."""
    return [
        c
        for c in text
        if (unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp") and c not in "\n\t")
        or c in "\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
    ]


@given(st.text() | st.sampled_from(HOSTILE))
def test_what_is_shown_moves_no_terminal(text: str) -> None:
    shown = terminal.visible(text)
    assert not obeyed(shown)
    assert terminal.visible(shown) == shown
    if not obeyed(text) and not any(unicodedata.category(c) in ("Cf", "Cn") for c in text):
        assert shown == text


@given(
    st.recursive(
        st.none() | st.integers() | st.text() | st.sampled_from(HOSTILE),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
        max_leaves=5,
    )
)
def test_json_shows_the_same_values_and_moves_no_terminal(value: object) -> None:
    text = terminal.to_json(value, indent=1)
    assert not obeyed(text)
    assert json.loads(text) == value


@pytest.mark.parametrize(
    "text", ["[red]x", "o[/b]", "[link=http://x]y[/link]", ":smile:", "[bold", "\\[", *HOSTILE]
)
def test_a_console_shows_text_as_it_is(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.TextIOWrapper(io.BytesIO(), encoding="utf-8", errors="backslashreplace")
    monkeypatch.setattr(sys, "stdout", stream)
    console = terminal.console()
    table = Table()
    table.add_column(text)
    table.add_row(text)
    console.print(text)
    console.print(table)
    stream.flush()
    shown = stream.buffer.getvalue().decode()
    assert not obeyed(shown)
    if text not in HOSTILE:
        assert shown.count(text) == 3


@pytest.mark.parametrize(
    "secret", ["s3://me:pass@host/x", "https://h/x?X-Amz-Signature=abc", "hf_abcdefghijklmnop0123"]
)
def test_keys_and_passwords_are_not_shown(secret: str, capsys: pytest.CaptureFixture[str]) -> None:
    terminal.error(f"cannot read {secret}")
    terminal.note(f"reading {secret}")
    shown = capsys.readouterr().err
    assert shown.count("read") == 2
    for part in ("me:pass", "abc"):
        assert part not in shown


def test_errors_on_a_terminal_are_broken_between_words(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    stream = Terminal()
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setenv("COLUMNS", "40")
    monkeypatch.setenv("NO_COLOR", "1")
    message = (
        "the key 'a' is given twice, in /a/rather/long/path/that/has/no/blank/in/it/recipe.yaml\n  a detail "
        + "word " * 20
    )
    terminal.error(message)
    lines = stream.getvalue().splitlines()
    assert all(len(line) <= 40 or " " not in line.strip() for line in lines)
    assert stream.getvalue().split() == f"error: {message}".split()
    assert all(
        line.startswith("  ") for line in lines[lines.index(next(x for x in lines if "detail" in x)) :]
    )


def test_a_whole_text_in_a_message_is_shortened(capsys: pytest.CaptureFixture[str]) -> None:
    terminal.error(f"The name {'x' * 100_000} is too long.\nChoose another.")
    shown = capsys.readouterr().err
    assert len(shown) < 5000
    assert shown.startswith("error: The name xxx")
    assert shown.endswith("is too long.\nChoose another.\n")


def test_a_value_of_a_hundred_thousand_characters_is_shortened_in_every_note_and_log_line(
    capsys: pytest.CaptureFixture[str],
) -> None:
    terminal.note("y" * 100_000 + " end")
    terminal.error("z" * 100_000 + " end")
    shown = capsys.readouterr().err
    record = logging.makeLogRecord({"msg": "a value: %s end", "args": ("x" * 100_000,)})
    shown += terminal._Formatter("%(message)s").format(record) + "\n"
    assert max(map(len, shown.splitlines())) < 7_000
    assert shown.count(" end\n") == 3
