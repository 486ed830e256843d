"""The one way to the screen: standard output, standard error, JSON output and log lines.

Names, paths and texts come from outside. On a terminal, control characters in them would move the cursor, set
the title or the clipboard (OSC 52, https://invisible-island.net/xterm/ctlseqs/ctlseqs.html), and
bidirectional controls would show other words than are there (https://trojansource.codes). `visible` shows
such characters as escapes, and everything here uses it. Markup of rich is never read from text: `console` has
it off, and styles are given as `rich.text.Text`.
"""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
import sys
import textwrap
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from btlm_data.errors import OutputError
from btlm_data.redact import redact

if TYPE_CHECKING:
    from rich.console import Console

# C0 except tab and line feed, DEL, C1; bidirectional marks, embeddings, overrides and isolates; zero-width
# space (but not the joiners, which scripts need); line and paragraph separators; invisible operators;
# annotation marks; BOM; half characters; tags.
_HIDDEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb"
    "\ud800-\udfff\U000e0000-\U000e007f]"
)
_MOST_SHOWN = 2000  # characters at each end of a line of an error message


def visible(text: str) -> str:
    """`text` with every character that a terminal would obey or hide shown as an escape (U+202E)."""
    return _HIDDEN.sub(_escape, text)


def to_json(value: Any, indent: int | None = None) -> str:
    """JSON of `value`; the characters that `visible` escapes become JSON's own escapes."""
    text = json.dumps(value, ensure_ascii=not _is_unicode(sys.stdout), indent=indent)
    return _HIDDEN.sub(lambda match: json.dumps(match[0])[1:-1] if match[0] > "\x7f" else "\\u007f", text)


def start() -> None:
    """Prepare the standard streams: never missing, and characters they cannot show become escapes."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:  # closed by the caller, as by `2>&-`
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115
        elif hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def echo(text: str = "") -> None:
    """Print a line on standard output. Raises OSError when that is full or closed (see `finish`)."""
    sys.stdout.write(visible(text) + "\n")


def note(text: str, *, style: str | None = None) -> None:
    """Print a line on standard error; style: an SGR code such as "33" (yellow).

    A closed or full standard error is no reason to stop.
    """
    try:
        line = _wrapped(_shortened(visible(redact(text))))
        sys.stderr.write(f"\x1b[{style}m{line}\x1b[0m\n" if style and has_colour(sys.stderr) else line + "\n")
        sys.stderr.flush()
    except (OSError, ValueError):
        pass


def error(message: str) -> None:
    """Print an error on standard error, its first word in red."""
    label = "\x1b[1;31merror:\x1b[0m" if has_colour(sys.stderr) else "error:"
    try:
        sys.stderr.write(f"{_wrapped(f'{label} {_shortened(visible(redact(message)))}')}\n")
        sys.stderr.flush()
    except (OSError, ValueError):
        pass


def finish() -> None:
    """Flush standard output.

    Raises BrokenPipeError if the reader has closed it, OutputError if it cannot be written.
    """
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as problem:
        raise OutputError(
            f"Standard output cannot be written: {problem.strerror}. Free space there, or send it elsewhere."
        ) from None


def abandon_stdout() -> None:
    """Drop what is still buffered for standard output, so that the interpreter does not fail on it at exit."""
    try:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
    except (OSError, ValueError, AttributeError):
        pass


def has_colour(stream: TextIO) -> bool:
    """Whether colours may be written: to a terminal, unless TERM=dumb or NO_COLOR is set (no-color.org)."""
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def console(*, stderr: bool = False) -> Console:
    """A rich console that shows text as it is: no markup, no emoji codes, no guessed highlights, nothing a
    terminal would obey.
    """
    from rich.console import Console as RichConsole
    from rich.segment import Segment

    class SafeConsole(RichConsole):
        def render(self, renderable: Any, options: Any = None) -> Iterable[Segment]:
            for segment in super().render(renderable, options):
                if segment.control or _HIDDEN.search(segment.text) is None:
                    yield segment
                else:
                    yield Segment(visible(segment.text), segment.style)

        def on_broken_pipe(self) -> None:
            """Leave it to the command's end (entry.py): rich would exit with 1, which means damage."""
            raise BrokenPipeError

    return SafeConsole(stderr=stderr, markup=False, emoji=False, highlight=False)


def start_logging(level: int | None = None, file: Path | None = None) -> None:
    """Send log lines to standard error, and all of the project's own from INFO on to `file`.

    level: the least level of the project's own lines on standard error; None is WARNING on a terminal, where
    bars show the progress, and INFO elsewhere. Lines of libraries appear from WARNING on. Raises OutputError
    if the file cannot be written.
    """
    if level is None:
        level = logging.WARNING if sys.stderr.isatty() else logging.INFO
    handlers: list[logging.Handler] = [_ToStandardError(level)]
    if file is not None:
        try:
            handlers.append(logging.FileHandler(file, encoding="utf-8", errors="backslashreplace"))
        except OSError as problem:
            raise OutputError(
                f"The log file {file} cannot be written: {problem.strerror}. Name another with --log-file."
            ) from None
        handlers[1].setLevel(min(level, logging.INFO))
        handlers[1].setFormatter(_Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    handlers[0].setFormatter(_ScreenFormatter())
    lowest = min(handler.level for handler in handlers)
    logging.basicConfig(level=max(level, logging.WARNING), handlers=handlers, force=True)
    for package in ("btlm_data", "btlm_train"):
        logging.getLogger(package).setLevel(lowest)
    logging.raiseExceptions = False  # a full disk under a log is no reason to print tracebacks
    logging.captureWarnings(True)


class _ToStandardError(logging.Handler):
    """Log lines on whatever standard error is at the time."""

    def emit(self, record: logging.LogRecord) -> None:
        note(self.format(record))


class _ScreenFormatter(logging.Formatter):
    """The message alone where it is progress, with its level for warnings, with its origin for -v."""

    def format(self, record: logging.LogRecord) -> str:
        message = super().format(record)
        if record.levelno >= logging.WARNING:
            message = f"{record.levelname.lower()}: {message}"
        elif record.levelno < logging.INFO:
            message = f"{record.name}: {message}"
        return message.replace("\n", "\n    ")


class _Formatter(logging.Formatter):
    """Log lines without hidden characters; further lines of a message are indented, never like a record."""

    def format(self, record: logging.LogRecord) -> str:
        return _shortened(visible(redact(super().format(record)))).replace("\n", "\n    ")


def _shortened(text: str) -> str:
    """The middle of very long lines left out: a message may quote a value from outside that is a whole text."""
    return "\n".join(
        f"{line[:_MOST_SHOWN]} [... {len(line) - 2 * _MOST_SHOWN:,} characters ...] {line[-_MOST_SHOWN:]}"
        if len(line) > 3 * _MOST_SHOWN
        else line
        for line in text.split("\n")
    )


def _wrapped(text: str) -> str:
    """The lines of `text` broken between words at the width of the terminal; as they are where there is none."""
    if not sys.stderr.isatty():
        return text
    width = max(20, shutil.get_terminal_size().columns)
    lines = [
        textwrap.fill(
            line,
            width,
            break_long_words=False,
            break_on_hyphens=False,
            replace_whitespace=False,
            subsequent_indent=" " * (len(line) - len(line.lstrip())),
        )
        if len(line) > width
        else line
        for line in text.split("\n")
    ]
    return "\n".join(lines)


def _escape(match: re.Match[str]) -> str:
    code = ord(match[0])
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def _is_unicode(stream: TextIO) -> bool:
    return (stream.encoding or "").lower().replace("-", "").startswith("utf")
