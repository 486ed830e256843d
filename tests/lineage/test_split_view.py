"""Which document stands where: against the shards as the HDF5 library reads them and the source's text tokenized again."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from btlm_data.errors import ConfigError, DataError
from btlm_data.formats.shard_formats import vsl
from tests.lineage.corpora import Truth, prepared, records

SCHEDULE = {
    "max_epochs": 100,
    "sources": {"Books": 0.6},
    "schedule": [{"until": 0.7}, {"last": {"Web": 0.9}}],
}
OPTIONS = st.fixed_dictionaries(
    {
        "format": st.sampled_from(["sample", "vsl", "corpus"]),
        "seq_len": st.sampled_from([8, 17, 64, 300]),
        "shuffle": st.sampled_from(["samples", "documents", "none"]),
        "tail": st.sampled_from(["pad", "drop"]),
        "shards__samples_per_file": st.sampled_from([1, 5, 1000]),
        "dedupe__method": st.sampled_from(["none", "exact"]),
        "mix": st.sampled_from([{}, {"Web": 2.5, "Books": 0.5}, SCHEDULE]),
        "seed": st.integers(0, 5),
    }
)


@settings(max_examples=14, deadline=None, suppress_health_check=list(HealthCheck))
@given(OPTIONS, st.integers(2, 60), st.integers(0, 1000))
def test_places_and_documents_agree_with_what_the_shards_hold(
    options: dict[str, Any], count: int, seed: int
) -> None:
    if options["format"] == "vsl" and options["shuffle"] == "none":
        options = {**options, "shuffle": "documents"}
    documents = records(count, seed)
    with tempfile.TemporaryDirectory() as name, pytest.MonkeyPatch.context() as patch:
        patch.setattr(vsl, "WINDOW_TOKENS", 500)  # several windows
        try:
            of_set = prepared(Path(name), documents, **options)
        except (ConfigError, DataError):
            return
        if "train" not in of_set.splits:
            return
        truth = Truth(of_set, "train", documents)
        if not truth.view.num_rows:
            return
        check(truth)


def check(truth: Truth) -> None:
    view, corpus = truth.view, truth.view.is_corpus
    inputs = truth.data if corpus else truth.data[:, 0]
    mask = np.ones(len(inputs), int) if corpus else truth.data[:, 1]
    seen_inputs, seen_labels = np.zeros(inputs.shape, int), np.zeros(inputs.shape, int)
    by_row: dict[int, set[Any]] = {}
    for extent, tokens in zip(view.extents(range(len(truth.tokens))), truth.tokens, strict=True):
        for place in view.spans(extent):
            first, last = place.positions
            if corpus:
                shard, row = view.shard_of(place.row)
                assert row == first
                first, last = (view.first_row(shard) + at for at in place.positions)
                found = inputs[first:last]
                seen_inputs[first:last] += 1
            else:
                found = inputs[place.row, first:last]
                seen_inputs[place.row, first:last] += 1
                low, high = place.labels
                seen_labels[place.row, low:high] += 1
                # The label of a position is the token after the input's.
                ahead = place.tokens[0] + 1 if place.positions[0] == low and first < last else 0
                start = ahead if first < last or view.format == "vsl" else 0
                labels = truth.data[place.row, 2, low:high].tolist()
                assert labels == tokens[start : start + high - low]
                by_row.setdefault(place.row, set()).add(place)
            assert found.tolist() == tokens[slice(*place.tokens)]
    # Every real position belongs to one document, as input and as label.
    assert (seen_inputs == mask).all()
    if not corpus:
        assert (seen_labels == mask).all()
        for row in range(view.num_rows):
            assert set(view.documents_in(row)) == by_row.get(row, set()), row
    else:
        for start in range(0, view.num_rows, view.length):
            positions = sum(p.positions[1] - p.positions[0] for p in view.documents_in(start))
            assert positions == min(view.length, view.num_rows - start)


def test_what_is_not_there_is_said(tmp_path: Path) -> None:
    of_set = prepared(tmp_path, records(20, 1), seq_len=16)
    view = of_set.splits["train"]
    with pytest.raises(ConfigError, match=r"There is no sample 9,999 in train: they go from 0 to"):
        view.documents_in(9999)
    with pytest.raises(ConfigError, match=r"There is no shard data-7\.h5 in train"):
        view.row_in("data-7.h5", 0)
    with pytest.raises(ConfigError, match=r"data-00000\.h5 has the rows 0 to"):
        view.row_in("data-00000.h5", 9999)
