"""What every signal is: parameters, the columns that it makes, and how they are measured."""

from __future__ import annotations

import hashlib
import importlib.metadata
import re
import stat
from pathlib import Path
from typing import Any, Literal

import numpy.typing as npt
from pydantic import BaseModel, ConfigDict

from btlm_data.cleaning.document import Documents
from btlm_data.errors import ConfigError, DataError, install_command

Kind = Literal["bool", "float64", "text", "uint32"]
Values = npt.NDArray[Any] | list[str | None]
_NAME = re.compile(r"[a-z][a-z0-9_]{0,62}\Z")
_TAKEN = {
    *(
        "id",
        "source",
        "file",
        "line",
        "offset",
        "tokens",
        "chars",
        "bytes",
        "copies",
        "hash",
        "stream_offset",
    ),
    *("forgotten", "split", "stage", "reason"),
}


class SignalParameters(BaseModel):
    """The parameters of one signal, checked."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    @property
    def columns(self) -> dict[str, Kind]:
        """The columns it makes, in order."""
        raise NotImplementedError

    @property
    def needs_metadata(self) -> bool:
        """Whether it reads whole records."""
        return False

    def resource(self) -> Any:
        """What is outside of the recipe, as JSON values (a package's version, a model's SHA-256). Raises ConfigError if it is
        missing.
        """
        return ""

    def deciding(self) -> Any:
        """The parameters that decide the values, as JSON values."""
        return self.model_dump(mode="json")

    def identity(self, resource: Any) -> Any:
        """What of the resource decides the values."""
        return resource

    def measure(self, documents: Documents, resource: Any) -> list[Values]:
        """The values of each column, (n,) of its dtype, or n texts. resource: what `resource()` gave when the run was
        planned.
        """
        raise NotImplementedError


def package_version(package: str, signal: str, extra: str) -> str:
    """A package's name and version. Raises ConfigError if it is not installed. signal: what needs it."""
    try:
        return f"{package} {importlib.metadata.version(package)}"
    except importlib.metadata.PackageNotFoundError:
        raise ConfigError(
            f"annotate: {signal} needs the package {package}, which is not installed. "
            f"Install it with: {install_command(extra)}, or leave the signal out."
        ) from None


def column_name(name: str) -> str:
    """A column's name, checked. Raises ValueError."""
    if not _NAME.match(name):
        raise ValueError(
            f"{name[:80]!r} is no name of a column: write small letters, digits and _, a letter first"
        )
    if name in _TAKEN:
        raise ValueError(f"documents.parquet has a column {name!r} already; name it otherwise")
    return name


def sha256_of_model(path: Path) -> str:
    """The SHA-256 of a file that a signal names. Raises ConfigError if it cannot be read."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise ConfigError(f"annotate: the model {path} is not a regular file. Name the model's file.")
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise ConfigError(
            f"annotate: the model {path} cannot be read ({error.strerror or error}). Correct the path, which is relative to "
            "the current folder."
        ) from None


def require_unchanged(path: Path, sha256: str) -> None:
    """Raises DataError if a model's file is another than when the run was planned."""
    if sha256_of_model(path) != sha256:
        raise DataError(
            f"annotate: the model {path} has changed since the run was planned, or is another file. Every worker must see the "
            "same file; run the same command again."
        )
