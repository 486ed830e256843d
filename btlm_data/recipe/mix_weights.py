"""Weights of sources from a file, as tools that look for the best mix write them: `mix: {weights: FILE}`.

CSV   domain,weight                     a line a source
CSV   run,code,books,web                a line a mix (Olmix' ratios.csv; `run_id`, `index` and `name` are no sources)
JSON  [{"domain": "code", "weight": 0.2}, ...]    (Olmix' *_optimal.json)
"""

from __future__ import annotations

import csv
import json
import math
import stat
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from btlm_data.errors import ConfigError
from btlm_data.recipe import yaml_file

_MAX_BYTES = 1 << 24
_RUNS = ("run", "run_id")
_NO_SOURCES = (*_RUNS, "name", "index", "")
_TOLERANCE = 0.01  # of weights that add up to 1


def imported(mix: Mapping[str, Any]) -> dict[str, Any]:
    """A mix whose `weights` are read into its `sources`. Raises ConfigError for what is no such file."""
    given = mix["weights"]
    entry = given if isinstance(given, dict) else {"file": given}
    unknown = entry.keys() - {"file", "run"}
    if unknown or not isinstance(entry.get("file"), str):
        raise ConfigError(
            "mix.weights: expected a file, such as weights.csv, or {file: ratios.csv, run: run_001}."
        )
    if mix.get("sources"):
        raise ConfigError(
            "mix.weights and mix.sources both say the shares of sources; leave one of them out."
        )
    run = entry.get("run")
    rest = {key: value for key, value in mix.items() if key != "weights"}
    return rest | {"sources": read(Path(entry["file"]), None if run is None else str(run))}


def read_mix(path: Path) -> dict[str, Any]:
    """A mix from a file of its own: what stands under `mix:` in a recipe, with or without that key. Raises
    ConfigError for what is none.
    """
    tree = yaml_file.read(path).tree
    mix = tree["mix"] if tree.keys() == {"mix"} else tree
    if not isinstance(mix, dict) or not mix:
        raise ConfigError(
            f"{path} holds no mix. Write for example `tokens: 600B` and `sources: {{code: 12%}}`."
        )
    return imported(mix) if isinstance(mix.get("weights"), str | dict) else dict(mix)


def read(path: Path, run: str | None = None) -> dict[str, float]:
    """The share of each source; they add up to 1. run: of the line, where there are several mixes. Raises
    ConfigError, saying where, for what is no such file.
    """
    text = _text(path)
    if path.suffix == ".json":
        weights = _from_list(path, text)
    else:
        rows = list(csv.reader(text.splitlines()))
        if len(rows) < 2:
            raise ConfigError(
                f"{path} has no line of weights. The first line names columns, others hold them."
            )
        header = [name.strip() for name in rows[0]]
        lines = [(number, row) for number, row in enumerate(rows[1:], 2) if any(cell.strip() for cell in row)]
        for number, row in lines:
            if len(row) != len(header):
                raise ConfigError(
                    f"{path} line {number}: {len(row)} values, the first line names {len(header)} columns."
                )
        if {"domain", "weight"} <= set(header):
            columns = header.index("domain"), header.index("weight")
            weights = _collected(
                path, ((f"line {n}", row[columns[0]].strip(), row[columns[1]]) for n, row in lines)
            )
        else:
            number, row = _chosen(path, header, lines, run)
            named = zip(header, row, strict=True)
            weights = _collected(
                path, ((f"line {number}", name, cell) for name, cell in named if name not in _NO_SOURCES)
            )
    total = math.fsum(weights.values())
    if abs(total - 1) > _TOLERANCE:
        raise ConfigError(f"{path}: the weights add up to {total:.6g}, not to 1.")
    return {name: weight / total for name, weight in weights.items()}


def _text(path: Path) -> str:
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # a pipe would be waited for without an end
            raise ConfigError(f"{path} (mix.weights) is no regular file. Name a CSV or JSON file of weights.")
        with path.open("rb") as file:
            data = file.read(_MAX_BYTES + 1)
        if len(data) > _MAX_BYTES:
            raise ConfigError(
                f"{path} (mix.weights) has more than {_MAX_BYTES:,} bytes, too many for weights."
            )
        return data.decode("utf-8-sig")
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise ConfigError(
            f"{path} (mix.weights) cannot be read: {reason}. Name a CSV or JSON file of weights."
        ) from None


def _from_list(path: Path, text: str) -> dict[str, float]:
    try:
        entries = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path} is not valid JSON: {error}.") from None
    if not isinstance(entries, list) or not all(
        isinstance(entry, dict) and {"domain", "weight"} <= entry.keys() for entry in entries
    ):
        raise ConfigError(f'{path}: expected a list of {{"domain": ..., "weight": ...}}.')
    return _collected(
        path, ((f"entry {n}", str(e["domain"]), str(e["weight"])) for n, e in enumerate(entries, 1))
    )


def _chosen(
    path: Path, header: list[str], lines: list[tuple[int, list[str]]], run: str | None
) -> tuple[int, list[str]]:
    """The line of a mix."""
    column = next((header.index(name) for name in _RUNS if name in header), None)
    names = [] if column is None else [row[column].strip() for _, row in lines]
    if run is not None and run not in names:
        shown = ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
        raise ConfigError(f"{path} has no run {run!r} (it has {shown or 'no column of runs'}).")
    mixes = lines if run is None else [line for line, name in zip(lines, names, strict=True) if name == run]
    if len(mixes) != 1:
        which = "mixes" if run is None else f"lines of {run!r}"
        raise ConfigError(
            f"{path} has {len(mixes):,} {which}; say which: mix.weights={{file: {path}, run: ...}}."
        )
    return mixes[0]


def _collected(path: Path, entries: Iterable[tuple[str, str, str]]) -> dict[str, float]:
    weights: dict[str, float] = {}
    for where, name, text in entries:
        try:
            weight = float(text)
        except ValueError:
            weight = math.nan
        if not 0 <= weight <= 1 + _TOLERANCE:
            raise ConfigError(
                f"{path} {where}: the weight of {name[:80]!r} is {text[:40]!r}, not from 0 to 1."
            )
        if name in weights:
            raise ConfigError(f"{path} {where}: {name[:80]!r} is named twice.")
        weights[name] = weight
    return weights
