"""Make every probe, print what did not hold, and a table: group, tried, held.

python -m tests.attacks [--group WORD] [--quick] [--seconds]
"""

from __future__ import annotations

import argparse
import collections
import sys
import tempfile
import time
from pathlib import Path

from tests.attacks.bench import PROBES, try_one
from tests.attacks.probes import GROUPS


def table(tried: collections.Counter[str], held: collections.Counter[str]) -> str:
    """The probes by group, and in all."""
    rows = [(name, tried[name], held[name]) for name in GROUPS if tried[name]]
    rows.append(("all", sum(tried.values()), sum(held.values())))
    return "\n".join([f"{'group':<42} tried  held", *(f"{name:<42} {a:5} {b:5}" for name, a, b in rows)])


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--group", default="", help="only groups and probes whose name holds this")
    parser.add_argument("--quick", action="store_true", help="only those that are tests too")
    parser.add_argument("--seconds", action="store_true", help="tell of each how long it took")
    given = parser.parse_args()
    tried: collections.Counter[str] = collections.Counter()
    held: collections.Counter[str] = collections.Counter()
    with tempfile.TemporaryDirectory(prefix="btlm-attacks-") as cache:
        for one in PROBES:
            if given.group not in f"{one.group}: {one.name}" or (given.quick and not one.is_quick):
                continue
            begun = time.monotonic()
            wrong = try_one(one, Path(cache))
            if given.seconds:
                print(f"{time.monotonic() - begun:6.1f} s  {one.group}: {one.name}", flush=True)
            tried[one.group] += 1
            held[one.group] += wrong is None
            if wrong is not None:
                print(f"NOT HELD  {one.group}: {one.name}\n{wrong}", flush=True)
    print(table(tried, held))
    sys.exit(tried != held)


if __name__ == "__main__":
    main()
