"""Other programs' deduplication of one file, for bench_truth: which lines they keep.

    PYTHON tests/benchmarks/peer_dedupe.py datatrove|text-dedup|rensa IN.jsonl FOLDER

PYTHON: of an environment that has the program (and nothing of this project):

    python -m venv other && other/bin/pip install 'datatrove[processing,multilingual]==0.10.1'
    python -m venv other && other/bin/pip install 'text-dedup==0.4.0'
    python -m venv other && other/bin/pip install 'rensa==0.5.0'

Each line of IN.jsonl is {"text", "id"} with the line's number as its id. Each program has the settings that its own
documentation recommends; where one asks for a threshold, 0.85. FOLDER is made, and gets kept.json, the numbers of the lines
that are kept. Only this function of each program is used: datatrove's four MinHash steps, one task each; text-dedup's
minhash command; rensa's deduplicator over sets of words.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

THRESHOLD = 0.85


def datatrove(source: Path, folder: Path) -> list[int]:
    """FineWeb's settings, which are the default: word 5-grams, 14 buckets of 8 hashes."""
    from datatrove.executor import LocalPipelineExecutor
    from datatrove.pipeline.dedup import MinhashDedupSignature
    from datatrove.pipeline.dedup.minhash import (
        MinhashConfig,
        MinhashDedupBuckets,
        MinhashDedupCluster,
        MinhashDedupFilter,
    )
    from datatrove.pipeline.readers import JsonlReader
    from datatrove.pipeline.writers.jsonl import JsonlWriter

    config = MinhashConfig()
    where = {name: str(folder / name) for name in ("signatures", "buckets", "removed", "kept")}

    def read() -> JsonlReader:
        return JsonlReader(str(source.parent), glob_pattern=source.name)

    def run(*steps: object, tasks: int = 1) -> None:
        LocalPipelineExecutor(
            pipeline=list(steps), tasks=tasks, workers=1, logging_dir=str(folder / "logs" / str(len(done)))
        ).run()
        done.append(1)

    done: list[int] = []
    run(read(), MinhashDedupSignature(where["signatures"], config))
    run(MinhashDedupBuckets(where["signatures"], where["buckets"], config=config), tasks=config.num_buckets)
    run(MinhashDedupCluster(where["buckets"], where["removed"], config))
    run(read(), MinhashDedupFilter(where["removed"]), JsonlWriter(where["kept"], compression=None))
    return [
        int(json.loads(line)["id"])
        for path in sorted(Path(where["kept"]).glob("*.jsonl"))
        for line in path.read_text().splitlines()
    ]


def text_dedup(source: Path, folder: Path) -> list[int]:
    """Its default but for the threshold: word 5-grams, 250 permutations; components, the first document kept."""
    command = [sys.executable, "-m", "text_dedup.minhash", "--path", "json", "--data_files", str(source)]
    command += ["--split", "train", "--column", "text", "--output", str(folder / "kept"), "--num_proc", "1"]
    command += ["--cache_dir", str(folder / "cache"), "--threshold", str(THRESHOLD), "--min_length", "0"]
    subprocess.run(command, check=True)
    import datasets

    return [int(number) for number in datasets.load_from_disk(str(folder / "kept"))["id"]]


def rensa(source: Path, folder: Path) -> list[int]:
    """As its page shows: sets of words, 128 permutations; a document goes if an earlier one that stays is estimated alike."""
    from rensa import RMinHash, RMinHashDeduplicator

    deduplicator = RMinHashDeduplicator(threshold=THRESHOLD, num_perm=128, use_lsh=True)
    kept = []
    with source.open() as lines:
        for line in lines:
            record = json.loads(line)
            sketch = RMinHash(num_perm=128, seed=42)
            sketch.update(record["text"].split())
            if not deduplicator.is_duplicate(record["id"], sketch):
                deduplicator.add(record["id"], sketch)
                kept.append(int(record["id"]))
    return kept


def main() -> None:
    program, source, folder = sys.argv[1], Path(sys.argv[2]).resolve(), Path(sys.argv[3]).resolve()
    folder.mkdir(parents=True)
    kept = {"datatrove": datatrove, "text-dedup": text_dedup, "rensa": rensa}[program](source, folder)
    (folder / "kept.json").write_text(json.dumps(kept))


if __name__ == "__main__":
    main()
