"""What every signal is: parameters, the columns that it makes, and how they are measured."""

from __future__ import annotations

import importlib.metadata
from typing import Any, Literal

import numpy.typing as npt
from pydantic import BaseModel, ConfigDict

from btlm_data.cleaning.document import Documents
from btlm_data.errors import ConfigError, install_command

Kind = Literal["bool", "float64", "text", "uint32"]
Values = npt.NDArray[Any] | list[str | None]


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
