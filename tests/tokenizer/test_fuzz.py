"""Damaged tokenizer files: each loads, or ends in an error in words; nothing else."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from btlm_data.errors import BtlmError
from btlm_data.tokenizer import load_tokenizer, self_check, verdicts
from btlm_data.tokenizer.backends import LibraryPanic
from tests.tokenizer.makers import OTHERS

QUIET = [HealthCheck.too_slow, HealthCheck.function_scoped_fixture]
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.floats(allow_nan=False),
    st.text(max_size=5),
    st.sampled_from(
        ["BPE", "Unigram", "WordPiece", "WordLevel", "ByteLevel", "Sequence", "Split", "</s>", "\ud800"]
    ),
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
)


def nodes(value: Any) -> Iterator[tuple[Any, Any]]:
    """(container, key) of every value below `value`, of large ones only the first few."""
    keys: list[Any] = list(value)[:20] if isinstance(value, dict) else list(range(min(len(value), 20)))
    for key in keys:
        yield value, key
        if isinstance(value[key], dict | list):
            yield from nodes(value[key])


@pytest.fixture(scope="module")
def originals() -> dict[str, str]:
    return {name: make().to_str() for name, make in OTHERS.items()}


def load(path: Path) -> None:
    """Loading and using it ends well, or in words."""
    with contextlib.suppress(BtlmError):
        tokenizer = load_tokenizer(
            str(path), eos="</s>" if "</s>" in path.read_text(errors="replace") else None
        )
        ids, offsets = tokenizer.encode_batch(["some text", "", "</s> 123 \x00 中"])
        assert len(offsets) == 4
        assert all(0 <= i < tokenizer.vocab_size for i in ids.tolist())
        tokenizer.decode(ids)


@settings(max_examples=120, deadline=None, suppress_health_check=QUIET)
@given(data=st.data(), name=st.sampled_from(sorted(OTHERS)))
def test_another_value_anywhere(
    data: st.DataObject, name: str, originals: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verdicts, "_check_in_limits", in_this_process)
    value = json.loads(originals[name])
    for _ in range(data.draw(st.integers(1, 3))):
        container, key = data.draw(st.sampled_from(list(nodes(value))))
        if data.draw(st.booleans()) and isinstance(container, dict):
            del container[key]
        else:
            container[key] = data.draw(VALUES)
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(value))
    load(path)


@settings(max_examples=60, deadline=None, suppress_health_check=QUIET)
@given(position=st.floats(0, 1), bit=st.integers(0, 7), name=st.sampled_from(sorted(OTHERS)))
def test_a_flipped_bit(
    position: float,
    bit: int,
    name: str,
    originals: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(verdicts, "_check_in_limits", in_this_process)
    data = bytearray(originals[name].encode())
    data[int(position * (len(data) - 1))] ^= 1 << bit
    (tmp_path / "tokenizer.json").write_bytes(data)
    load(tmp_path / "tokenizer.json")


@settings(max_examples=60, deadline=None, suppress_health_check=QUIET)
@given(
    value=VALUES,
    name=st.sampled_from(["tokenizer_config", "special_tokens_map", "generation_config", "config"]),
)
def test_other_values_beside_the_tokenizer(
    value: Any, name: str, tmp_path: Path, originals: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verdicts, "_check_in_limits", in_this_process)
    (tmp_path / "tokenizer.json").write_text(originals["word_level"])
    for content in (value, {"eos_token": value, "added_tokens_decoder": value, "eos_token_id": value}):
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
        load(tmp_path / "tokenizer.json")
    (tmp_path / f"{name}.json").unlink()


def in_this_process(config: Any) -> self_check.Checked:
    """The check without a process of its own, which would take half a second each time."""
    try:
        return self_check.check(config)
    except LibraryPanic as error:
        return self_check.Checked(self_check.Verdict(None, error.reason))
