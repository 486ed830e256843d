"""The site file of --cluster: which batch system pilot jobs are started in, and how many. YAML;
docs/cluster.md has examples.
"""

from __future__ import annotations

import importlib
import os
import shlex
import sys
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from btlm_data.errors import ConfigError
from btlm_data.recipe import yaml_file
from btlm_data.recipe.validation import explain

# Provider -> class of Parsl, and the names of its arguments for what every batch system has.
_PROVIDERS: dict[str, tuple[str, dict[str, str]]] = {
    "local": ("parsl.providers:LocalProvider", {}),
    "slurm": (
        "parsl.providers:SlurmProvider",
        {
            "partition": "partition",
            "account": "account",
            "walltime": "walltime",
            "options": "scheduler_options",
        },
    ),
    "pbs": (
        "parsl.providers:PBSProProvider",
        {"partition": "queue", "account": "account", "walltime": "walltime", "options": "scheduler_options"},
    ),
    "lsf": (
        "parsl.providers:LSFProvider",
        {"partition": "queue", "account": "project", "walltime": "walltime", "options": "bsub_redirection"},
    ),
    "kubernetes": ("parsl.providers:KubernetesProvider", {"partition": "namespace"}),
}


class Site(BaseModel):
    """A site file."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    provider: Literal["local", "slurm", "pbs", "lsf", "kubernetes"] = Field(
        "local", description="the batch system"
    )
    nodes: int = Field(1, ge=1, le=10_000, description="pilot jobs at once, one node each")
    workers_per_node: int = Field(1, ge=1, le=4096, description="processes on a node: its cores")
    partition: str | None = Field(None, description="partition, queue or namespace")
    account: str | None = Field(None, description="account or project that is charged")
    walltime: str = Field(
        "04:00:00", pattern=r"^\d{1,4}:\d\d:\d\d$", description="of one pilot job; a new one follows"
    )
    worker_init: str = Field("", description="shell lines before the workers start: modules, environment")
    scratch: str | None = Field(None, description="folder on each node for temporary files and downloads")
    address: str | None = Field(
        None, description="name or address by which nodes reach the machine of the run"
    )
    run_folder: str | None = Field(
        None, description="folder that all nodes see, for scripts and logs of pilot jobs"
    )
    provider_options: dict[str, Any] = Field(
        default_factory=dict, description="more arguments of Parsl's provider"
    )

    def make_provider(self) -> Any:
        """Parsl's provider. Raises ConfigError for options that it does not have."""
        target, names = _PROVIDERS[self.provider]
        module, _, name = target.partition(":")
        arguments: dict[str, Any] = {
            "init_blocks": self.nodes,
            "max_blocks": self.nodes,
            "min_blocks": 0,
            "worker_init": self._init(),
        }
        for field_name, argument in names.items():
            value = getattr(self, field_name, None)
            if value is not None:
                arguments[argument] = value
        arguments |= self.provider_options
        try:
            return getattr(importlib.import_module(module), name)(**arguments)
        except TypeError as error:
            raise ConfigError(
                f"The site file has an option that {name} of Parsl does not take: {error}."
            ) from error

    def _init(self) -> str:
        """Shell lines that put this interpreter's programs first, and temporary files where they belong."""
        lines = [f"export PATH={shlex.quote(str(Path(sys.executable).parent))}:$PATH"]
        if self.scratch:
            lines.append(
                f"export TMPDIR={shlex.quote(self.scratch)} XDG_CACHE_HOME={shlex.quote(self.scratch)}"
            )
        if "NUMBA_CACHE_DIR" in os.environ:
            lines.append(f"export NUMBA_CACHE_DIR={shlex.quote(os.environ['NUMBA_CACHE_DIR'])}")
        return "\n".join([*lines, self.worker_init])


def read_site(path: str) -> Site:
    """Read a site file. Raises ConfigError naming file, line and setting."""
    file = yaml_file.read(Path(path).expanduser(), "site file")
    try:
        return Site.model_validate(file.tree)
    except ValidationError as error:
        raise ConfigError(explain(error, Site, file.where)) from None
