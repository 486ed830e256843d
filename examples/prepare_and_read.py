"""Prepare the sample corpus from Python; read its samples as numpy arrays and its documents as a table."""

import tempfile
from pathlib import Path

import btlm_data


def main(folder: Path) -> None:
    """Prepare below `folder` and look at what is there."""
    dataset = btlm_data.prepare({"source": "sample", "seq_len": 512, "run": {"out": str(folder / "shards")}})

    train = dataset["train"]
    print(f"{len(train):,} samples, {train.num_tokens:,} tokens, {train.num_documents:,} documents")

    input_ids, attention_mask, labels = train[0]  # each (512,) int32
    assert (input_ids[1:] == labels[:-1]).all(), "a label is the next token"
    print("real positions of the first sample:", int(attention_mask.sum()))

    for batch in train.batches(256):  # (n, 3, 512)
        assert batch.shape[1:] == (3, 512)

    documents = train.documents(["file", "line", "tokens", "source"])
    longest = max(documents.to_pylist(), key=lambda row: row["tokens"])
    print("the longest document:", longest)

    for row in dataset.ledger:
        for reason, amount in row.dropped.items():
            if amount.documents:
                print(f"{row.stage:<8} {row.split:<10} {row.source:<25} {reason:<28} {amount.documents:>5}")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as name:
        main(Path(name))
