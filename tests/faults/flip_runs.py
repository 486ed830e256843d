"""Flip single bits of every file of a work folder; the next run notices each, or ends with the very same dataset.

    python -m tests.faults.flip_runs --flips 200

For each flip the work folder of a run that was stopped before its shards is copied, one bit of one file is flipped, and the
same command is run. It ends well, with the bytes of an undisturbed run; or it names the damage, and the command after that
ends well (after the folder was removed, where it is the folder's mark that is damaged). --flips counts for each file, or kind; --seconds ends it earlier, having taken the files in turn.
"""

from __future__ import annotations

import argparse
import collections
import gc
import json
import os
import random
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from btlm_data import work_folder
from tests.faults.commands import command
from tests.faults.fuzz_readers import _corpus_run, _expected, _make_work
from tests.faults.kill_targets import hashes


class Flips(collections.Counter[str]):
    """How the flips ended: "same" bytes, or "named". problems: the others."""

    problems: list[str]


def work_files(case: Path) -> list[Path]:
    """The files of the work folder, relative."""
    return sorted(p.relative_to(case) for p in (case / "out/.work").rglob("*") if p.is_file())


def flip_one(folder: Path, name: Path, chance: random.Random) -> tuple[str, str | None]:
    """Flip a bit of a file in a fresh copy, run; ("same" or "named", what was wrong)."""
    case = folder / "case"
    shutil.rmtree(case, ignore_errors=True)
    shutil.copytree(folder / "seed", case)
    data = bytearray((case / name).read_bytes())
    place, bit = chance.randrange(len(data)), chance.randrange(8)
    data[place] ^= 1 << bit
    (case / name).write_bytes(data)
    where = f"bit {bit} of byte {place} of {name}"
    expected = json.loads((folder / "expected.json").read_text())
    code, *_ = command(*_corpus_run(case))
    ended = "same" if code == 0 else "named"
    if code:
        again, *_ = command(*_corpus_run(case))
        if again and name.name == work_folder.MARK:
            # The folder is not known to be ours any more: its user removes it, as the error says.
            shutil.rmtree(case / name.parent)
            again, *_ = command(*_corpus_run(case))
        if again:
            return ended, f"{where}: exit code {code}, and {again} for the same command again"
    if hashes(case / "out") != expected:
        return ended, f"{where}: other bytes, exit code {code}"
    return ended, None


def in_turn(names: list[Path], flips: int, by_kind: bool) -> Iterator[Path]:
    """Each file `flips` times; or each kind of file, its files in turn: a kind's names differ in digits alone."""
    kinds: dict[str, list[Path]] = {}
    for name in names:
        kinds.setdefault(re.sub(r"[0-9]+|[0-9a-f]{8,}", "#", str(name)) if by_kind else str(name), []).append(
            name
        )
    for number in range(flips):
        yield from (those[number % len(those)] for those in kinds.values())


def flip_everywhere(folder: Path, flips: int, seconds: float, seed: int, by_kind: bool = False) -> Flips:
    """Flip `flips` bits of every file (by_kind: of every kind of file), or as many as the time allows."""
    chance, end = random.Random(seed), time.monotonic() + seconds
    found = Flips()
    found.problems = []
    (folder / "seed").mkdir()
    _make_work(folder / "seed")
    with _expected(folder):
        names = [name for name in work_files(folder / "seed") if (folder / "seed" / name).stat().st_size]
        for name in in_turn(names, flips, by_kind):
            if time.monotonic() > end:
                break
            ended, wrong = flip_one(folder, name, chance)
            found[ended] += 1
            if wrong is not None:
                found.problems.append(wrong)
    return found


def main() -> None:
    """Command line."""
    from tests.faults import fuzz_readers

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--flips", type=int, default=200)
    parser.add_argument(
        "--by-kind", action="store_true", help="files whose names differ in digits alone count as one"
    )
    parser.add_argument("--seconds", type=float, default=3600)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--folder", type=Path, help="where to work")
    given = parser.parse_args()
    fuzz_readers.load_programs()
    gc.freeze()
    with tempfile.TemporaryDirectory(prefix="btlm-flip-", dir=given.folder) as name:
        os.environ["TMPDIR"] = name
        found = flip_everywhere(Path(name).resolve(), given.flips, given.seconds, given.seed, given.by_kind)
        files = len(work_files(Path(name) / "seed"))
    print("\n".join(found.problems))
    print(f"{sum(found.values())} flips in {files} files: {dict(found)}, {len(found.problems)} problems")
    sys.exit(bool(found.problems))


if __name__ == "__main__":
    main()
