"""How a command ends: every exception becomes words and an exit code. Used by both command lines.

0     done                              4     the output cannot be written (errors.py has the tree)
1     data damaged, or verify failed    5     stopped for safety
2     wrong option or recipe            70    an unforeseen error: one sentence, and a report file
3     input cannot be read              130   interrupted; 141: standard output's reader closed it

A program that a library or the system kills ends with 128 + the signal; witness.py has its words said by another process.
"""

from __future__ import annotations

import atexit
import contextlib
import errno
import gc
import logging
import os
import platform
import signal
import sys
import tempfile
import threading
import traceback
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from time import monotonic
from types import FrameType
from typing import TYPE_CHECKING, Any, NoReturn

import click
from click.shell_completion import CompletionItem

from btlm_data import terminal, witness
from btlm_data.errors import BtlmError, InputError, Interrupted, OutputError
from btlm_data.redact import redact

if TYPE_CHECKING:
    _TextType = click.ParamType[str]
else:
    _TextType = click.ParamType  # no generic in older releases

INTERNAL_ERROR = 70  # EX_SOFTWARE of sysexits.h
_READER_GONE = 128 + signal.SIGPIPE if hasattr(signal, "SIGPIPE") else 1
_PATIENCE = 10.0  # seconds after a first Ctrl-C in which more of them change nothing
_AGAIN = 0.05  # seconds after which an interrupt that was lost is given again
_MORE_MEMORY = "Give the process more, or use fewer --workers or less --memory."
_OUT_OF_MEMORY = f"There is not enough memory. {_MORE_MEMORY}"
_CRASHES = {  # what faulthandler calls them
    "Segmentation fault": signal.SIGSEGV,
    "Aborted": signal.SIGABRT,
    "Bus error": signal.SIGBUS,
    "Illegal instruction": signal.SIGILL,
    "Floating point exception": signal.SIGFPE,
    "Floating-point exception": signal.SIGFPE,
}
# Objects made before cycles among them are looked for. Python's own 700 would have all that is imported (200,000) looked
# through dozens of times, a tenth of the start; nothing here makes cycles in numbers.
_COLLECT_AFTER = (500_000, 20, 50)
_DISK_FULL = (errno.ENOSPC, errno.EDQUOT)

logger = logging.getLogger(__name__)


def log_options() -> list[click.Option]:
    """-v, -q and --log-file; given before or after the command's name, or both."""
    return [
        click.Option(
            ["-v", "--verbose"],
            is_flag=True,
            expose_value=False,
            callback=_start_logging,
            help="Also show what the program does in detail.",
        ),
        click.Option(
            ["-q", "--quiet"],
            is_flag=True,
            expose_value=False,
            callback=_start_logging,
            help="Show errors only.",
        ),
        click.Option(
            ["--log-file"],
            type=click.Path(dir_okay=False, path_type=Path),
            metavar="FILE",
            expose_value=False,
            callback=_start_logging,
            help="Also append log lines with times to this file.",
        ),
    ]


def is_quiet(context: click.Context) -> bool:
    """Whether -q was given."""
    return bool(context.meta.get(f"{__name__}.quiet"))


def _start_logging(context: click.Context, option: click.Parameter, value: Any) -> None:
    meta = context.meta  # shared by the contexts of a program and its command
    meta[f"{__name__}.{option.name}"] = meta.get(f"{__name__}.{option.name}") or value
    level = logging.DEBUG if meta.get(f"{__name__}.verbose") else logging.ERROR if is_quiet(context) else None
    if context.resilient_parsing:
        return
    terminal.start_logging(level, meta.get(f"{__name__}.log_file"))


class _ReaderGone(Exception):
    """Standard output was closed by its reader; not an OSError, which click would turn into exit code 1."""


class GroupedOption(click.Option):
    """An option that is under a heading of its own in the help."""

    def __init__(self, *args: Any, group: str, **extra: Any) -> None:
        super().__init__(*args, **extra)
        self.group = group


class Completed(_TextType):
    """Text for which the shell may propose names; and files, where `files` is true and no name begins so."""

    name = "text"

    def __init__(self, names: Callable[[], Iterable[str]], *, files: bool = False) -> None:
        self._names = names
        self._files = files

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        """The known names that begin so, or else files."""
        items = [CompletionItem(name) for name in self._names() if name.startswith(incomplete)]
        return items or ([CompletionItem(incomplete, type="file")] if self._files else [])


class Command(click.Command):
    """A command that takes -v, -q and --log-file too, so that they may be after its name."""

    def __init__(self, *args: Any, **extra: Any) -> None:
        super().__init__(*args, **extra)
        self.params.extend(log_options())

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The options under the headings of their groups; the others last."""
        groups: dict[str, list[tuple[str, str]]] = {}
        others: list[tuple[str, str]] = []
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx) if isinstance(parameter, click.Option) else None
            if record is not None:
                group = getattr(parameter, "group", None)
                (groups.setdefault(group, []) if group else others).append(record)
        for heading, records in [*groups.items(), ("Other options" if groups else "Options", others)]:
            with formatter.section(heading):
                formatter.write_dl(records)


class Program(click.Group):
    """A group of commands with the one handler of everything that can end them."""

    command_class = Command

    def __init__(self, *args: Any, **extra: Any) -> None:
        super().__init__(*args, **extra)
        self.params.extend(log_options())

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The commands in the order in which they are defined."""
        return list(self.commands)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write every command with its whole first sentence: click cuts it where the terminal is narrow."""
        with formatter.section("Commands"):
            formatter.write_dl(
                [(name, command.get_short_help_str(limit=1000)) for name, command in self.commands.items()]
            )

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command. Raises _ReaderGone where standard output was closed, Interrupted for Ctrl-C."""
        try:
            result = super().invoke(ctx)
            terminal.finish()
        except BrokenPipeError as error:
            if error.filename is None:
                raise _ReaderGone from None
            raise
        except KeyboardInterrupt:
            raise Interrupted("Interrupted.") from None
        return result


def run(program: Program) -> NoReturn:
    """Run the command that sys.argv names, print what went wrong, and end the process."""
    gc.set_threshold(*_COLLECT_AFTER)
    terminal.start()
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:  # as under nohup
        interrupts = _Interrupts()
        signal.signal(signal.SIGINT, interrupts)
        sys.unraisablehook = interrupts.lost
    arguments = sys.argv[1:]
    witness.start(lambda death: _tell_of(death, arguments))
    try:
        code = _exit_code(program, arguments)
    except KeyboardInterrupt:
        code = Interrupted.exit_code
    try:
        terminal.finish()
    except BrokenPipeError:
        code = code or _READER_GONE
        terminal.abandon_stdout()
    except OutputError as error:
        terminal.error(str(error))
        code = code or error.exit_code
        terminal.abandon_stdout()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the interpreter's end would be killed by a further Ctrl-C
    witness.ended()
    _leave(code)


def _leave(code: int) -> NoReturn:
    """End the process once what was registered for its end is done.

    The interpreter is not taken apart, nor are the libraries: a thread of pyarrow that outlives it aborts the process (exit
    code 134), once in thousands of times, when all is done and said.
    """
    try:
        atexit._run_exitfuncs()
        with contextlib.suppress(OSError, ValueError):
            sys.stderr.flush()
    finally:
        os._exit(code)


def _exit_code(program: Program, arguments: list[str]) -> int:
    try:
        result = program.main(arguments, standalone_mode=False)
    except (click.exceptions.Abort, KeyboardInterrupt):
        return _report("Interrupted", "Interrupted.", Interrupted.exit_code, arguments)
    except click.exceptions.Exit as error:
        return error.exit_code
    except click.exceptions.NoArgsIsHelpError as error:
        terminal.note(error.format_message())
        return error.exit_code
    except click.ClickException as error:
        return _report("UsageError", _usage(error), error.exit_code, arguments)
    except BtlmError as error:
        return _report(type(error).__name__, str(error), error.exit_code, arguments)
    except _ReaderGone:
        terminal.abandon_stdout()
        return _READER_GONE
    except SystemExit as error:
        return error.code if isinstance(error.code, int) else int(error.code is not None)
    except MemoryError as error:
        logger.debug("%s", error, exc_info=True)
        return _report("OutOfMemory", _OUT_OF_MEMORY, INTERNAL_ERROR, arguments)
    except Exception as error:  # the outermost handler
        if isinstance(interrupts := signal.getsignal(signal.SIGINT), _Interrupts) and interrupts.was_lost:
            signal.signal(signal.SIGINT, signal.SIG_IGN)  # it is given again any moment now
            return _report("Interrupted", "Interrupted.", Interrupted.exit_code, arguments)
        return _unforeseen(error, arguments)
    return result if isinstance(result, int) else 0


class _Interrupts:
    """SIGINT: the first interrupts; while the command cleans up, more of them wait; after _PATIENCE seconds
    one ends at once.
    """

    def __init__(self) -> None:
        self._first: float | None = None
        self.was_lost = False

    def __call__(self, number: int, frame: FrameType | None) -> None:
        if self._first is None:
            self._first = monotonic()
            raise KeyboardInterrupt
        if monotonic() - self._first > _PATIENCE:
            os._exit(Interrupted.exit_code)

    def lost(self, unraisable: sys.UnraisableHookArgs) -> None:
        """Interrupt once more where the first came in a function that C has called (LLVM does, while it compiles kernels):
        there it ends in nothing, or in another error. `sys.unraisablehook`.
        """
        if not isinstance(unraisable.exc_value, KeyboardInterrupt):
            sys.__unraisablehook__(unraisable)
            return
        self._first, self.was_lost = None, True
        threading.Timer(_AGAIN, os.kill, (os.getpid(), signal.SIGINT)).start()


def _report(kind: str, message: str, code: int, arguments: Sequence[str]) -> int:
    """Print an error: as JSON on standard output where --json is among the arguments, else in words on
    standard error.
    """
    if "--json" in arguments:
        try:
            terminal.echo(terminal.to_json({"error": {"kind": kind, "message": message, "exit_code": code}}))
        except OSError:
            terminal.error(message)
    elif code == Interrupted.exit_code:
        terminal.note(message)
    else:
        terminal.error(message)
    return code


def _usage(error: click.ClickException) -> str:
    """The message of a wrong option, and which command's help to read."""
    context = getattr(error, "ctx", None)
    message = error.format_message()
    if "unexpected extra argument" in message:
        message += ". A pattern must be in quotes ('data/*.jsonl'), or the shell puts the files in its place."
    if context is None:
        return message
    return f"{message}\nSee `{context.command_path} --help`."


def _unforeseen(error: Exception, arguments: Sequence[str]) -> int:
    """Say in one sentence what happened; the details go to a file."""
    if isinstance(error, OSError) and error.errno in (*_DISK_FULL, errno.EACCES, errno.EPERM, errno.EROFS):
        name = f"{error.filename}: " if error.filename else ""
        message = (
            f"{name}{error.strerror}. Free space or choose another folder, and run the same command again."
        )
        return _report("OutputError", message, OutputError.exit_code, arguments)
    if _is_loop(error):
        message = f"A link leads to itself ({error}). Remove it, or name another file."
        return _report("InputError", message, InputError.exit_code, arguments)
    if isinstance(error, FileNotFoundError) and error.filename is None and not _has_current_folder():
        message = "The current folder does not exist any more. Change to another folder."
        return _report("OutputError", message, OutputError.exit_code, arguments)
    if isinstance(error, OSError) and error.errno == errno.ENOMEM:
        return _report("OutOfMemory", _OUT_OF_MEMORY, INTERNAL_ERROR, arguments)
    summary = redact(f"{type(error).__name__}: {error}".split("\n", 1)[0])[:300]
    details = _written("".join(traceback.format_exception(error)), arguments) or "Run with -v for details."
    message = f"Something failed that should not ({summary}). {details}"
    logger.debug("unforeseen error", exc_info=error)
    return _report("InternalError", message, INTERNAL_ERROR, arguments)


def _tell_of(death: witness.Death, arguments: Sequence[str]) -> None:
    """In the witness: say how the program died."""
    place = f" while it read {death.reading}" if death.reading else ""
    if not death.stacks:
        message = f"The system ran out of memory and killed the program{place}. What was finished is kept. {_MORE_MEMORY}"
        _report("OutOfMemory", message, 128 + signal.SIGKILL, arguments)
    else:
        how = death.stacks.partition("\n")[0].removeprefix("Fatal Python error: ")
        message = f"The program crashed{place} ({how}): a library could not bear what it was given. What was finished is kept."
        if {"prepare", "run"} & set(arguments):
            message += " With --workers 2 or more a run names the file that does this, and --skip-failed leaves it out."
        code = 128 + _CRASHES.get(how, signal.SIGABRT)
        _report("Crash", f"{message} {_written(death.stacks, arguments)}", code, arguments)
    terminal.finish()


def _is_loop(error: Exception) -> bool:
    """Of links; Path.resolve has its own error for it."""
    by_the_system = isinstance(error, OSError) and error.errno == errno.ELOOP
    return by_the_system or (isinstance(error, RuntimeError) and str(error).startswith("Symlink loop"))


def _has_current_folder() -> bool:
    try:
        os.getcwd()
    except FileNotFoundError:
        return False
    return True


def _written(details: str, arguments: Sequence[str]) -> str:
    """Write command, versions and details to a file in the temporary folder; a sentence that names it, or "" where none can
    be written.
    """
    from importlib.metadata import PackageNotFoundError, version

    try:
        release = version("btlm-data")
    except PackageNotFoundError:
        release = "unknown"
    lines = [
        f"btlm-data {release}, Python {platform.python_version()}, {platform.platform()}",
        f"arguments: {list(arguments)}",
        details,
    ]
    try:
        handle, path = tempfile.mkstemp(prefix="btlm-error-", suffix=".txt")
        with os.fdopen(handle, "w", encoding="utf-8", errors="backslashreplace") as file:
            file.write(redact("\n".join(lines)))
    except OSError:
        return ""
    return f"The details are in {path}; please report it with that file."
