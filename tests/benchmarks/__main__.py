"""`make bench`: every budget of the design as a ratio measured in one run, and the table the README shows.

Each bench module has `run() -> list[dict]` with rows {name, ours, theirs, ratio, unit, budget}. BTLM_BENCH_CORPUS names the
corpus folder (SlimPajama's layout; tools/build_corpus.py makes one); without it the sample corpus is repeated to a few
hundred MB, which is too regular for quotable figures and says so.
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
from pathlib import Path

from rich.console import Console
from rich.table import Table

MODULES = sorted(path.stem for path in Path(__file__).parent.glob("bench_*.py"))
README = Path(__file__).resolve().parents[2] / "README.md"
BEGIN, END = "<!-- bench: begin -->", "<!-- bench: end -->"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "only", nargs="*", help="bench modules to run, for example bench_prepare; default: all"
    )
    parser.add_argument("--write", action="store_true", help="write the table into README.md")
    parser.add_argument("--json", type=Path, help="also write the rows to this file")
    arguments = parser.parse_args()
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
    rows = []
    for name in arguments.only or MODULES:
        print(f"{name} ...", file=sys.stderr, flush=True)
        for row in importlib.import_module(f"tests.benchmarks.{name}").run():
            rows.append({"bench": name.removeprefix("bench_"), **row})
            print("  " + json.dumps(row, default=str), file=sys.stderr, flush=True)
    table = Table(box=None)
    for column in ("what", "ours", "theirs", "ratio", "budget"):
        table.add_column(column)
    for row in rows:
        table.add_row(*cells(row))
    Console(width=140).print(table)
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=1, default=str) + "\n")
    if arguments.write:
        text = README.read_text()
        lines = [
            "| what | ours | theirs | ratio | budget |",
            "|---|---|---|---|---|",
            *("| " + " | ".join(cells(row)) + " |" for row in rows),
        ]
        before, _, rest = text.partition(BEGIN)
        README.write_text(f"{before}{BEGIN}\n" + "\n".join(lines) + f"\n{END}{rest.partition(END)[2]}")


def cells(row: dict[str, object]) -> list[str]:
    def shown(value: object) -> str:
        return (
            f"{value:,.3g}"
            if isinstance(value, float)
            else f"{value:,}"
            if isinstance(value, int)
            else str(value if value is not None else "")
        )

    unit = f" {row.get('unit')}" if row.get("unit") else ""
    theirs = shown(row.get("theirs"))
    return [
        str(row["name"]),
        shown(row.get("ours")) + unit,
        theirs + unit if theirs else "",
        shown(row.get("ratio")),
        str(row.get("budget") or ""),
    ]


if __name__ == "__main__":
    main()
