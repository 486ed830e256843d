from __future__ import annotations

from pathlib import Path

import pytest
import tokenizers
from tokenizers import decoders, models, pre_tokenizers

from btlm_data.tokenizer import Tokenizer, load_tokenizer
from btlm_data.tokenizer.gpt2 import GPT2_FOLDER
from tests.tokenizer.makers import OTHERS


@pytest.fixture(autouse=True)
def cache_folder(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache folder of each test's own: no verdict of an earlier run counts."""
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
    return folder


@pytest.fixture(scope="session")
def gpt2() -> Tokenizer:
    return load_tokenizer("gpt2")


@pytest.fixture(scope="session")
def truth() -> tokenizers.Tokenizer:
    """GPT-2 as its own documentation builds it, without a line of ours."""
    made = tokenizers.Tokenizer(
        models.BPE.from_file(str(GPT2_FOLDER / "vocab.json"), str(GPT2_FOLDER / "merges.txt"))
    )
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens(["<|endoftext|>"])
    made.encode_special_tokens = True
    return made


@pytest.fixture(scope="session", params=sorted(OTHERS))
def other(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Tokenizer, tokenizers.Tokenizer]:
    path = tmp_path_factory.mktemp("tokenizers") / f"{request.param}.json"
    made = OTHERS[request.param]()
    made.save(str(path))
    made.encode_special_tokens = True
    return load_tokenizer(str(path)), made
