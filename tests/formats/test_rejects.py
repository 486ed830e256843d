from __future__ import annotations

import io
import json
import random

import pytest

from btlm_data.errors import DataError
from btlm_data.formats import rejects


def test_which_examples_are_kept_does_not_depend_on_the_order_they_come_in() -> None:
    offers = [
        (reason, number * 7919 % 1009, {"text": f"{reason} {number}"})
        for reason in ("short", "twin")
        for number in range(200)
    ]
    found = []
    for seed in range(3):
        random.Random(seed).shuffle(offers)
        examples = rejects.Examples(5)
        for reason, hash_value, example in offers:
            examples.add(reason, hash_value, example)
        found.append(list(examples.lines()))
    assert found[0] == found[1] == found[2]
    smallest = sorted(h for reason, h, _ in offers if reason == "short")[:5]
    assert [json.loads(line)["hash"] for line in found[0][:5]] == smallest
    assert len(found[0]) == 10


def test_no_example_is_wanted_where_none_is_asked_for() -> None:
    examples = rejects.Examples(0)
    assert not examples.wants("short", 0)
    examples.add("short", 0, {})
    assert list(examples.lines()) == []


def test_a_blocks_file_is_read_back_and_a_torn_one_named() -> None:
    file = io.BytesIO()
    examples = rejects.block_examples(100)
    examples.add("too_short", 3, {"text": "é\u2028\n", "file": "b"})
    rejects.write_block(file, [{"file": "a", "line": 1, "detail": "a lone \ud800"}], examples)
    assert list(rejects.read_block(file.getvalue(), "a.rejects")) == [
        {"file": "a", "line": 1, "detail": "a lone \ud800"},
        {"file": "b", "hash": 3, "reason": "too_short", "text": "é\u2028\n"},
    ]
    with pytest.raises(DataError, match=r"a\.rejects line 2 is torn"):
        list(rejects.read_block(file.getvalue()[:-5], "a.rejects"))
