"""Which token ends a document, as transformers would say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from tokenizers import models, pre_tokenizers

from btlm_data.errors import ConfigError
from btlm_data.tokenizer import load_tokenizer


def save(folder: Path, *specials: str, **companions: Any) -> str:
    """A tokenizer of a few words and these special tokens, from id 3 on, and the JSON files beside it."""
    vocab = {token: i for i, token in enumerate(["[UNK]", "a", "b", *specials])}
    made = tokenizers.Tokenizer(models.WordLevel(vocab, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.add_special_tokens(list(specials))
    made.save(str(folder / "tokenizer.json"))
    for name, value in companions.items():
        (folder / f"{name}.json").write_text(json.dumps(value))
    return str(folder)


def eos_id(spec: str, eos: str | None = None) -> int:
    return load_tokenizer(spec, eos=eos, backend="reference").eos_id


def test_asked_or_the_one_common_name(tmp_path: Path) -> None:
    spec = save(tmp_path, "<s>", "</s>")
    assert eos_id(spec) == 4
    assert eos_id(spec, "<s>") == 3
    with pytest.raises(ConfigError, match=r"'x' is not a token .*special tokens are <s>, </s>"):
        eos_id(spec, "x")
    with pytest.raises(ConfigError, match=r"<\|endoftext\|> and </s>. Its special .*Pass tokenizer.eos"):
        eos_id(save(tmp_path, "</s>", "<|endoftext|>"))
    with pytest.raises(ConfigError, match=r"none of the common names. .*--set tokenizer.eos='<end>'"):
        eos_id(save(tmp_path, "<end>"))
    with pytest.raises(
        ConfigError, match=r"""--set 'tokenizer.eos="\[SEP\]"' \(the inner quotes are needed"""
    ):
        eos_id(save(tmp_path, "[SEP]"))


TWO = ("</s>", "<|endoftext|>")


@pytest.mark.parametrize(
    "companions",
    [
        {"tokenizer_config": {"eos_token": "<|endoftext|>"}},
        {"tokenizer_config": {"eos_token": {"content": "<|endoftext|>", "special": True}}},
        {"tokenizer_config": {}, "special_tokens_map": {"eos_token": "<|endoftext|>"}},
        {
            "tokenizer_config": {"eos_token": None},
            "special_tokens_map": {"eos_token": {"content": "<|endoftext|>"}},
        },
        {"generation_config": {"eos_token_id": 4}},
        {"generation_config": {"eos_token_id": [4]}},
        {"generation_config": {"eos_token_id": [3, 4]}, "config": {"eos_token_id": 4}},
        {"tokenizer_config": {"eos_token": "<|endoftext|>"}, "generation_config": {"eos_token_id": 3}},
    ],
)
def test_stated_beside_the_tokenizer(companions: dict[str, Any], tmp_path: Path) -> None:
    spec = save(tmp_path, *TWO, **companions)
    assert eos_id(spec) == eos_id(f"{spec}/tokenizer.json") == 4


def test_a_stated_token_that_the_tokenizer_lacks_is_never_passed_over(tmp_path: Path) -> None:
    spec = save(tmp_path, "</s>", tokenizer_config={"eos_token": "<|im_end|>"})
    with pytest.raises(
        ConfigError, match=r"tokenizer_config.json of .* says that '<\|im_end\|>' ends a text, but"
    ):
        eos_id(spec)
    assert eos_id(spec, "</s>") == 3
    spec = save(tmp_path, "</s>", tokenizer_config={}, generation_config={"eos_token_id": 99})
    with pytest.raises(ConfigError, match=r"generation_config.json of .* says that 'id 99' ends a text, but"):
        eos_id(spec)


def declared(token_id: int, content: str = "<|im_end|>") -> dict[str, Any]:
    flags = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False, "special": True}
    return {"eos_token": content, "added_tokens_decoder": {str(token_id): {"content": content, **flags}}}


@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_a_token_declared_only_in_tokenizer_config_is_added_as_transformers_does(
    backend: Any, tmp_path: Path
) -> None:
    from transformers import AutoTokenizer

    config = declared(4) | {"tokenizer_class": "PreTrainedTokenizerFast"}
    spec = save(tmp_path, "</s>", tokenizer_config=config)
    theirs = AutoTokenizer.from_pretrained(spec)
    ours = load_tokenizer(spec, backend=backend)
    assert ours.eos_id == theirs.eos_token_id == 4
    assert ours.vocab_size == len(theirs) == 5
    assert ours.token_text(4) == "<|im_end|>"
    assert 4 not in ours.encode_batch(["a <|im_end|> b"])[0].tolist()
    assert ours.spec.load().eos_id == 4
    assert ours.fingerprint != load_tokenizer(save(tmp_path, "</s>", tokenizer_config={})).fingerprint


def test_a_declared_token_whose_id_is_taken_or_far_off_is_refused(tmp_path: Path) -> None:
    for token_id in (0, 3, 7):
        spec = save(tmp_path, "</s>", tokenizer_config=declared(token_id))
        with pytest.raises(
            ConfigError, match=rf"declares '<\|im_end\|>' with id {token_id}.*next free id is 4"
        ):
            eos_id(spec)
    faults: list[Any] = [{"x": {}}, {"4": 3}, {"4": {"content": 3}}, {"-4": {"content": "x"}}]
    for wrong in faults:
        spec = save(tmp_path, "</s>", tokenizer_config={"added_tokens_decoder": wrong})
        with pytest.raises(ConfigError, match=r"added_tokens_decoder in tokenizer_config.json is not as"):
            eos_id(spec)
