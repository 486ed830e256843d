"""Two recipes over one work folder: reading, sketching and tokenizing are done once, only what differs is done again."""

import tempfile
import time
from pathlib import Path

import btlm_data


def main(folder: Path) -> None:
    """Prepare the sample corpus twice below `folder`, once with near-duplicates removed and once without."""
    kept = {}
    for method in ("minhash", "exact"):
        start = time.perf_counter()
        dataset = btlm_data.prepare(
            {"source": "sample", "seq_len": 1024},
            dedupe__method=method,
            run__out=str(folder / method),
            run__work_dir=str(folder / "work"),
        )
        kept[method] = dataset["train"].num_documents
        print(f"{method:<8} {kept[method]:>6,} documents kept, {time.perf_counter() - start:.1f} s")
    assert kept["minhash"] < kept["exact"]


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as name:
        main(Path(name))
