"""Print the lowest version of each dependency that pyproject.toml allows, as pip's constraints.

    python tools/lowest_versions.py > build/lowest.txt
    pip install -c constraints.txt -c build/lowest.txt -e '.[test]' && pip freeze --exclude-editable

The second line takes minutes to resolve, so what it chose is kept in constraints-oldest.txt, which `make oldest` installs; a
test compares the two. A bound that is not the lowest that works is found by `make oldest`.
"""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

# Extras with what only tests, the documentation and engines need, and what is large or compiled when it is installed. Engines,
# models of perplexity and Presidio are tested with what constraints.txt names.
_EXTRAS_LEFT_OUT = {"test", "dev", "docs", "cluster", "ray", "perplexity", "presidio"}


def lowest(project: Path) -> dict[str, str]:
    """The lower bound of every dependency of the file `project`, extras included, by name."""
    tree = tomllib.loads(project.read_text(encoding="utf-8"))["project"]
    extras = tree["optional-dependencies"].items()
    requirements = [
        *tree["dependencies"],
        *(requirement for extra, them in extras if extra not in _EXTRAS_LEFT_OUT for requirement in them),
    ]
    bounds = {}
    for requirement in requirements:
        match = re.match(r"([A-Za-z0-9_.-]+)(?:\[[^]]*\])?\s*[>=]=\s*([0-9][0-9.]*)", requirement)
        if match:
            bounds[match[1]] = match[2]
    return bounds


if __name__ == "__main__":
    for name, version in sorted(lowest(Path(__file__).resolve().parents[1] / "pyproject.toml").items()):
        print(f"{name}=={version}")
