"""The errors that a user can meet, and the exit code of each.

    BtlmError                   1   base of all below; never raised itself
    ├── ConfigError             2   an option, a recipe or a parameter file is wrong
    ├── InputError              3   the corpus cannot be read (missing, empty, bad under --strict)
    │   └── SourceUnavailable   3   a hub or object store refused, or cannot be reached
    ├── OutputError             4   the output or work folder cannot be used (in use, full, read-only)
    ├── DataError               1   a file is not what its manifest or format says: cut, flipped, foreign
    ├── SafetyStop              5   the run would do something suspicious; the message says how to allow it
    └── Interrupted           130   Ctrl-C; the message says how to continue

A message says what happened, where (file, line or record, value), and what to do:

    ConfigError("recipe.yaml line 4: there is no setting 'dedupe.metod'. Did you mean dedupe.method?")
    InputError("The source my_corpus/ does not exist. Check the path given to --source.")
    OutputError("The output folder shards holds another dataset. Choose another --out, or pass --overwrite.")
    DataError("train/00003.h5: sha256 is 1f0c..., dataset.json says 9a2e.... Restore the file.")

Library code raises these and never imports click; `entry.py` prints them and ends the program with their
exit code.
"""

from __future__ import annotations


def install_command(extra: str) -> str:
    """The command that installs the packages of an extra of this project ("train", "s3"), for messages."""
    return f"pip install '.[{extra}]'"


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


class NothingNew(InputError):
    """Every document of the source is in the index that it was compared with."""


class OutputError(BtlmError):
    """The output or work folder cannot be used."""

    exit_code = 4


class DataError(BtlmError):
    """A file is not what its manifest or its format says."""


class SafetyStop(BtlmError):
    """The run would do something that is more likely a mistake than a wish."""

    exit_code = 5


class Interrupted(BtlmError):
    """The user pressed Ctrl-C."""

    exit_code = 130
