"""What is loaded, and what is not; and loading in other processes."""

from __future__ import annotations

import json
import logging
import multiprocessing
import pickle
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import tokenizers
from tokenizers import models, pre_tokenizers

from btlm_data.errors import ConfigError, DataError
from btlm_data.tokenizer import Tokenizer, TokenizerSpec, backends, load_tokenizer
from btlm_data.tokenizer import tokenizer as module
from btlm_data.tokenizer.gpt2 import GPT2_FOLDER
from tests.tokenizer.makers import (
    byte_level_bpe,
    word_level,
)


def test_a_tokenizer_json_and_its_folder_give_the_same_fingerprint(
    gpt2: Tokenizer, truth: tokenizers.Tokenizer, tmp_path: Path
) -> None:
    truth.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"eos_token": {"content": "<|endoftext|>"}}))
    for spec in (str(tmp_path), str(tmp_path / "tokenizer.json"), str(GPT2_FOLDER)):
        loaded = load_tokenizer(spec)
        assert (loaded.eos_id, loaded.backend, loaded.vocab_size) == (50256, "fastokens", 50257)
        ids, _ = loaded.encode_batch(["Hello world<|endoftext|>"])
        assert ids.tolist() == gpt2.encode_batch(["Hello world<|endoftext|>"])[0].tolist()
    by_folder, by_file = load_tokenizer(str(tmp_path)), load_tokenizer(str(tmp_path / "tokenizer.json"))
    assert by_folder.fingerprint == by_file.fingerprint


def test_merges_written_as_strings_or_pairs_have_one_fingerprint(tmp_path: Path) -> None:
    made = byte_level_bpe(pre_tokenizers.ByteLevel(add_prefix_space=False))
    raw = json.loads(made.to_str())
    prints = set()
    for merges in ([list(m) for m in raw["model"]["merges"]], [" ".join(m) for m in raw["model"]["merges"]]):
        raw["model"]["merges"] = merges
        raw["truncation"] = {"direction": "Right", "max_length": 3, "strategy": "LongestFirst", "stride": 0}
        (tmp_path / "t.json").write_text(json.dumps(raw))
        loaded = load_tokenizer(str(tmp_path / "t.json"))
        prints.add(loaded.fingerprint)
        assert len(loaded.encode_batch(["far more than three tokens, none cut off"])[0]) > 3
    assert len(prints) == 1
    raw["model"]["merges"] = raw["model"]["merges"][:-1]
    (tmp_path / "t.json").write_text(json.dumps(raw))
    assert load_tokenizer(str(tmp_path / "t.json")).fingerprint not in prints


def test_a_large_vocabulary_takes_uint32(tmp_path: Path) -> None:
    vocab = {f"w{i}": i for i in range(70_000)} | {"[UNK]": 70_000, "</s>": 70_001}
    made = tokenizers.Tokenizer(models.WordLevel(vocab, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made.save(str(tmp_path / "t.json"))
    loaded = load_tokenizer(str(tmp_path / "t.json"), backend="reference")
    ids, _ = loaded.encode_batch(["w69999 w1"])
    assert ids.dtype == loaded.dtype == np.uint32
    assert ids.tolist() == [69_999, 1]


def test_an_unsupported_tokenizer_falls_back_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    word_level().save(str(tmp_path / "t.json"))
    with caplog.at_level(logging.WARNING):
        loaded = load_tokenizer(str(tmp_path / "t.json"))
    assert loaded.backend == "tokenizers"
    assert "running on `tokenizers`" in caplog.text
    with pytest.raises(ConfigError, match=r"fast backend cannot run .*backend=auto"):
        load_tokenizer(str(tmp_path / "t.json"), backend="fast")


def test_the_self_check_finds_a_backend_that_differs(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    honest = backends.Fast.encode

    def newer_unicode(
        self: backends.Fast, texts: Sequence[str]
    ) -> tuple[npt.NDArray[np.uint32], npt.NDArray[np.int64]]:
        """As if U+A7CB were a letter, which it is since Unicode 16."""
        return honest(self, [text.replace("\ua7cb'", "\ua7cax'") for text in texts])

    monkeypatch.setattr(backends.Fast, "encode", newer_unicode)
    with caplog.at_level(logging.WARNING):
        assert load_tokenizer("gpt2").backend == "tokenizers"
    assert "gives other ids for" in caplog.text


def test_asking_for_the_reference_gives_it() -> None:
    loaded = load_tokenizer("gpt2", backend="reference")
    assert loaded.backend == "tokenizers"
    assert loaded.encode_batch(["Hello world"])[0].tolist() == [15496, 995]


def write(path: Path, content: str) -> str:
    path.write_text(content)
    return str(path)


def test_what_cannot_be_read_is_a_config_error(tmp_path: Path, truth: tokenizers.Tokenizer) -> None:
    whole = truth.to_str()
    with pytest.raises(ConfigError, match="not valid JSON"):
        load_tokenizer(write(tmp_path / "cut.json", whole[: len(whole) // 2]))
    with pytest.raises(ConfigError, match="not valid JSON"):
        load_tokenizer(write(tmp_path / "empty.json", ""))
    with pytest.raises(ConfigError, match=r"not a tokenizer that can be used.*model"):
        load_tokenizer(write(tmp_path / "foreign.json", '{"model": 3}'))
    with pytest.raises(ConfigError, match="`tokenizers` cannot use"):
        load_tokenizer(write(tmp_path / "merges.json", whole.replace('["Ġ","t"]', '["Ġ","nowhere"]')))
    lacking = word_level().to_str().replace('"unk_token":"[UNK]"', '"unk_token":"[UNJ]"')
    with pytest.raises(
        ConfigError, match=r"tokenizers cannot encode every text with it: .*Missing \[UNK\] token"
    ):
        load_tokenizer(write(tmp_path / "lacking.json", lacking))
    with pytest.raises(ConfigError, match="There is no tokenizer at"):
        load_tokenizer(str(tmp_path / "missing.json"))
    (tmp_path / "folder").mkdir()
    with pytest.raises(ConfigError, match=r"holds neither tokenizer.json nor"):
        load_tokenizer(str(tmp_path / "folder"))


def encode_elsewhere(spec: TokenizerSpec) -> list[int]:
    ids: list[int] = spec.load().encode_batch(["in another process"])[0].tolist()
    return ids


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_a_spec_loads_in_another_process(gpt2: Tokenizer, method: str) -> None:
    with multiprocessing.get_context(method).Pool(1) as pool:
        assert (
            pool.apply(encode_elsewhere, [gpt2.spec]) == gpt2.encode_batch(["in another process"])[0].tolist()
        )


def test_a_pickled_tokenizer_is_its_spec(gpt2: Tokenizer) -> None:
    pickled = pickle.dumps(gpt2)
    assert len(pickled) < 1000
    assert pickle.loads(pickled).spec == gpt2.spec


def test_a_tokenizer_that_changed_during_the_run_is_refused(tmp_path: Path) -> None:
    byte_level_bpe(pre_tokenizers.ByteLevel(add_prefix_space=False)).save(str(tmp_path / "t.json"))
    spec = load_tokenizer(str(tmp_path / "t.json")).spec
    module._OPEN.pop(spec)
    byte_level_bpe(pre_tokenizers.ByteLevel(add_prefix_space=True)).save(str(tmp_path / "t.json"))
    with pytest.raises(DataError, match="changed during the run"):
        spec.load()
    (tmp_path / "t.json").unlink()
    with pytest.raises(DataError, match="no longer at"):
        spec.load()


def test_loading_is_quick() -> None:
    """A load with its self-check takes half a second where this was written; ten times that is a mistake."""
    start = time.process_time()
    load_tokenizer("gpt2")
    assert time.process_time() - start < 5
