"""What a user can meet, and the exit code of each.

    BtlmError                       1   anything below; never raised itself
    ├── ConfigError                 2   an option, a recipe or a parameter file is wrong: fix it and run again
    ├── InputError                  3   the corpus cannot be read as asked (missing, empty, or bad under --strict)
    │   └── SourceUnavailable       3   a hub or object store refused, or cannot be reached
    ├── OutputError                 4   the output or work folder cannot be used (in use, foreign, full, read-only)
    ├── DataError                   1   what is on disk is not what its manifest says: torn, flipped, foreign
    ├── SafetyStop                  5   the run would do something suspicious (remove too much); says how to insist
    └── Interrupted               130   Ctrl-C; says how to go on

Each message has three sentences: what was found, where (file, line or record, and the value), what to do.
Library code raises these and never imports click; `cli.py` turns them into a message and the exit code.
"""

from __future__ import annotations


class BtlmError(Exception):
    """Base of every error meant for the user."""

    exit_code = 1


class ConfigError(BtlmError):
    """An option, a recipe or a parameter file is wrong."""

    exit_code = 2


class InputError(BtlmError):
    """The corpus cannot be read as asked."""

    exit_code = 3


class SourceUnavailable(InputError):
    """A hub or an object store refused or cannot be reached."""


class OutputError(BtlmError):
    """The output or work folder cannot be used."""

    exit_code = 4


class DataError(BtlmError):
    """What is on disk is not what its manifest says."""


class SafetyStop(BtlmError):
    """The run would do something that is more likely a mistake than a wish."""

    exit_code = 5


class Interrupted(BtlmError):
    """The user pressed Ctrl-C."""

    exit_code = 130
