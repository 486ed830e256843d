"""A filter of one's own: documents that look like a list of links are dropped, and counted under the filter's name."""

import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import btlm_data


def not_a_link_list(document: Mapping[str, Any]) -> bool:
    """Keep a document (True) unless more than a fifth of its lines are links."""
    lines = document["text"].splitlines() or [""]
    links = sum(line.strip().startswith(("http://", "https://")) for line in lines)
    return links <= len(lines) / 5


def main(folder: Path) -> None:
    """Prepare below `folder` with the filter of this file."""
    corpus = folder / "corpus.jsonl"
    good = '{"text": "' + "A sentence of an ordinary document. " * 20 + 'Number %d."}\n'
    bad = '{"text": "' + "https://example.org/page\\n" * 20 + '%d"}\n'
    corpus.write_text("".join(good % i for i in range(50)) + "".join(bad % i for i in range(5)))

    sys.path.insert(0, str(Path(__file__).parent))  # where the module of the filter is found
    dataset = btlm_data.prepare(
        {"source": str(corpus), "seq_len": 128, "run": {"out": str(folder / "shards")}},
        clean__filters=[{"name": "links", "function": "own_filter:not_a_link_list"}],
        dedupe__method="exact",
    )
    [clean] = [row for row in dataset.ledger if row.stage == "clean"]
    print({reason: amount.documents for reason, amount in clean.dropped.items()})
    assert clean.dropped["links"].documents == 5


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as name:
        main(Path(name))
