"""Print a constraints file with the lowest version of each dependency that pyproject.toml allows.

    python tools/lowest_versions.py > lowest.txt && pip install -c lowest.txt -e '.[dev]'

`make oldest` runs the tests so; `make newest` runs them with whatever the registry has today. Tools of development (pytest,
ruff, mypy and the like) are not pinned: users do not have them. A bound that is not the lowest that works is found here.
"""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

TOOLS = {
    "btlm-data",
    "hypothesis",
    "moto",
    "mypy",
    "psutil",
    "pytest",
    "pytest-timeout",
    "pytest-xdist",
    "ruff",
}
# The CPU build of torch that constraints.txt names: a lower one is not needed to try the bounds of all others.
LEFT_OUT = TOOLS | {"torch", "transformers", "types-pyyaml"}


def lowest(project: Path) -> list[str]:
    """Lines `name==version` for every dependency with a lower bound, extras included."""
    tree = tomllib.loads(project.read_text(encoding="utf-8"))["project"]
    requirements = [
        *tree["dependencies"],
        *(one for extra in tree["optional-dependencies"].values() for one in extra),
    ]
    lines = []
    for requirement in requirements:
        match = re.match(r"([A-Za-z0-9_.-]+)(?:\[[^]]*\])?\s*>=\s*([0-9][0-9.]*)", requirement)
        if match and match[1].lower().replace("_", "-") not in LEFT_OUT:
            lines.append(f"{match[1]}=={match[2]}")
    return sorted(set(lines))


if __name__ == "__main__":
    print("\n".join(lowest(Path(__file__).resolve().parents[1] / "pyproject.toml")))
