"""Tokenizers from the hub."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tokenizers import pre_tokenizers

from btlm_data.errors import ConfigError, SourceUnavailable
from btlm_data.tokenizer import load_tokenizer
from btlm_data.tokenizer import tokenizer as module
from tests.hub import Hub
from tests.tokenizer.makers import (
    byte_level_bpe,
)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    with Hub() as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.delenv("HF_TOKEN", raising=False)
        yield server


def on_hub(text: str = "", **config: str) -> dict[str, bytes]:
    tokenizer = byte_level_bpe(pre_tokenizers.ByteLevel(add_prefix_space=False)).to_str() + text
    return {"tokenizer.json": tokenizer.encode()} | (
        {"tokenizer_config.json": json.dumps(config).encode()} if config else {}
    )


def test_a_hub_id_is_fetched_once_and_pinned(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    first = hub.add("org/model", on_hub(eos_token="<|endoftext|>"))
    second = hub.add("org/model", on_hub())
    newest, pinned = load_tokenizer("org/model"), load_tokenizer("org/model", revision=first)
    assert (newest.revision, pinned.revision) == (second, first)
    assert newest.fingerprint == pinned.fingerprint
    assert newest.token_text(newest.eos_id) == "<|endoftext|>"
    monkeypatch.setattr(module, "_OPEN", {})
    count = len(hub.requests)
    assert newest.spec.load().encode_batch(["a"])[0].tolist() == newest.encode_batch(["a"])[0].tolist()
    assert all(request.method == "HEAD" for request in hub.requests[count:])


def test_what_the_hub_refuses_is_said(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.add("org/gated", on_hub(), gated=True)
    hub.add("org/torn", on_hub(text="}"))
    hub.add("org/other", {"README.md": b"no tokenizer"})
    with pytest.raises(SourceUnavailable, match=r"is gated. Accept its terms"):
        load_tokenizer("org/gated")
    with pytest.raises(ConfigError, match="There is no tokenizer org/none"):
        load_tokenizer("org/none")
    with pytest.raises(ConfigError, match=r"holds no tokenizer.json"):
        load_tokenizer("org/other")
    with pytest.raises(ConfigError, match="has no revision v9"):
        load_tokenizer("org/torn", revision="v9")
    with pytest.raises(ConfigError, match="not valid JSON"):
        load_tokenizer("org/torn")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:1")
    monkeypatch.setattr(
        time, "sleep", lambda seconds: None
    )  # the client tries five times, with growing pauses
    with pytest.raises(SourceUnavailable, match="hub cannot be reached"):
        load_tokenizer("org/unreachable")


def test_a_hub_that_does_not_answer_is_named_in_one_sentence(
    hub: Hub, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    hub.add("org/model", on_hub(eos_token="<|endoftext|>"))
    load_tokenizer("org/model")
    monkeypatch.setattr(module, "_OPEN", {})
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    begin = time.monotonic()
    assert load_tokenizer("org/model").vocab_size > 0  # from the cache
    with pytest.raises(SourceUnavailable, match=r"hub cannot be reached for tokenizer\.json of org/none"):
        load_tokenizer("org/none")
    assert time.monotonic() - begin < 20  # the client itself would have repeated for a minute
    assert not [record for record in caplog.records if record.levelname != "DEBUG"]
