"""The page on data loaders: its example runs as printed and learns, and its table is what our own loader
gives.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch

from btlm_train.data import GptHDF5MapDataProcessor

PAGE = Path(__file__).resolve().parents[2] / "docs" / "own-loader.md"


@pytest.fixture(autouse=True)
def _denormals_as_before() -> Any:
    """The example lets the process flush denormals, as the trainer does; other tests must not notice."""
    yield
    torch.set_flush_denormal(False)


def test_the_example_runs_as_printed_and_learns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (code,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    names: dict[str, Any] = {"__name__": "own_loader"}
    exec(compile(code, str(PAGE), "exec"), names)
    losses = names["losses"]
    # The text has 16 different bytes or so: knowing their frequencies alone would give about 2.6 nats.
    assert losses[0] > 5
    assert losses[-1] < 2
    assert f"{losses[-1]:.2f} at last" in capsys.readouterr().out
    batches = list(names["batches"](names["text"], seed=0))
    assert {len(batch["labels"]) for batch in batches[:-1]} == {names["BATCH_SIZE"]}
    masks = torch.cat([batch["attention_mask"] for batch in batches])
    assert int(masks.sum()) == len(names["text"]) - 1  # every byte but the first is a label once


def test_the_table_is_what_the_built_in_loader_gives(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["data"] = np.zeros((3, 5, 7), np.int32)
    table = re.findall(
        r"^\| `(\w+)` \| `torch\.(\w+)` \| `\(batch_size, max_sequence_length\)` ",
        PAGE.read_text(encoding="utf-8"),
        re.MULTILINE,
    )
    loader = GptHDF5MapDataProcessor(
        {"data_dir": str(tmp_path), "batch_size": 2, "use_vsl": True}
    ).create_dataloader()
    batch = next(iter(loader))
    assert table == [(name, str(values.dtype).removeprefix("torch.")) for name, values in batch.items()]
    assert all(values.shape == (2, 7) for values in batch.values())
