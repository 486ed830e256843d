"""The GGUF file: read by ggml's own reader and computed by a twin of llama.cpp's graph; by llama.cpp itself where it is
installed (`make stress`).
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from btlm_data.errors import ConfigError
from btlm_train import mup
from btlm_train.generate import generate, load_tokenizer
from btlm_train.interchange import export
from btlm_train.model import BTLM
from btlm_train.parameters import ModelConfig
from tests.train import tiny

gguf = pytest.importorskip("gguf")
BASE = {
    **tiny.MODEL,
    "hidden_size": 64,
    "filter_size": 96,
    "num_heads": 4,
    "mup_base_hidden_size": 32,
    "mup_base_filter_size": 48,
}
CONFIGS: list[dict[str, Any]] = [
    {},
    {"num_heads": 8, "hidden_size": 96},
    {"scale_qk_dot_by_d": False, "attention_logits_alpha": 2.0},
    {
        "mup_base_hidden_size": None,
        "mup_base_filter_size": None,
        "output_logits_alpha": None,
        "embeddings_scale": 1.0,
    },
    {"use_projection_bias_in_attention": False, "use_ffn_bias_in_attention": False, "use_ffn_bias": False},
    {"num_heads": 12, "hidden_size": 96},
]


def model_of(**changes: Any) -> BTLM:
    config = ModelConfig.model_validate(BASE | changes)
    model = BTLM(config)
    mup.initialize(model, config, seed=3)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:  # biases of 0 would hide a wrong one
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return model.eval()


def exported(model: BTLM, folder: Path, precision: Any = "float32", tokenizer: Path | None = None) -> Path:
    (path,) = export(dict(model.state_dict()), model.config, folder, "gguf", precision, tokenizer=tokenizer)
    return path


def opened(path: Path) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """What ggml's own reader finds: fields, and tensors as float32."""
    reader = gguf.GGUFReader(path)
    fields = {name: field.contents() for name, field in reader.fields.items()}
    tensors = {
        tensor.name: torch.from_numpy(np.array(gguf.quants.dequantize(tensor.data, tensor.tensor_type)))
        for tensor in reader.tensors
    }
    return fields, tensors


def twin(fields: dict[str, Any], tensors: dict[str, torch.Tensor], ids: list[int]) -> torch.Tensor:
    """What llama.cpp's graph `jais` computes, (L, V): no factor but 1/d, slopes from max_alibi_bias."""
    heads, epsilon = fields["jais.attention.head_count"], fields["jais.attention.layer_norm_epsilon"]
    power = 2 ** math.floor(math.log2(heads))
    bias = fields["jais.attention.max_alibi_bias"]
    first, second = 2 ** (-bias / power), 2 ** (-bias / 2 / power)
    slopes = torch.tensor(
        [first ** (h + 1) if h < power else second ** (2 * (h - power) + 1) for h in range(heads)]
    )
    x = tensors["token_embd.weight"][ids]
    place = torch.arange(len(ids))
    distance = place[:, None] - place
    alibi = (-slopes[:, None, None] * distance.abs()).masked_fill(distance < 0, -math.inf)

    def linear(x: torch.Tensor, name: str) -> torch.Tensor:
        return F.linear(x, tensors[f"{name}.weight"], tensors[f"{name}.bias"])

    def norm(x: torch.Tensor, name: str) -> torch.Tensor:
        return F.layer_norm(x, x.shape[1:], tensors[f"{name}.weight"], tensors[f"{name}.bias"], epsilon)

    for layer in range(fields["jais.block_count"]):
        at = f"blk.{layer}"
        q, k, v = (
            part.view(len(ids), heads, -1).transpose(0, 1)
            for part in linear(norm(x, f"{at}.attn_norm"), f"{at}.attn_qkv").chunk(3, dim=1)
        )
        seen = torch.softmax(q @ k.transpose(1, 2) / q.shape[2] + alibi, dim=2) @ v
        x = x + linear(seen.transpose(0, 1).flatten(1), f"{at}.attn_output")
        inner = norm(x, f"{at}.ffn_norm")
        x = x + linear(
            F.silu(linear(inner, f"{at}.ffn_gate")) * linear(inner, f"{at}.ffn_up"), f"{at}.ffn_down"
        )
    return norm(x, "output_norm") @ tensors["output.weight"].T


def logits_of(model: BTLM, ids: list[int]) -> torch.Tensor:
    with torch.no_grad():
        return model.logits(model(torch.tensor([ids])))[0]


@pytest.mark.parametrize("changes", CONFIGS, ids=str)
def test_the_file_computes_our_logits(tmp_path: Path, changes: dict[str, Any]) -> None:
    model = model_of(**changes)
    ids = np.random.default_rng(0).integers(0, tiny.VOCAB, 40).tolist()
    fields, tensors = opened(exported(model, tmp_path))
    assert fields["general.architecture"] == "jais"
    assert fields["jais.context_length"] == model.config.max_position_embeddings
    torch.testing.assert_close(twin(fields, tensors, ids), logits_of(model, ids), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("precision", "step"), [("float16", 2**-10), ("bfloat16", 2**-7), ("q8_0", 2**-6)])
def test_smaller_numbers_are_near(tmp_path: Path, precision: str, step: float) -> None:
    model = model_of()
    _, exact = opened(exported(model, tmp_path / "exact"))
    path = exported(model, tmp_path / "small", precision)
    _, small = opened(path)
    assert (
        path.stat().st_size
        < (0.4 if precision == "q8_0" else 0.6) * (tmp_path / "exact" / "model.gguf").stat().st_size
    )
    for name, values in exact.items():
        if values.ndim == 1:
            assert torch.equal(values, small[name])
        else:
            assert (values - small[name]).abs().max() <= step * values.abs().max()


def test_the_vocabulary_travels(tmp_path: Path) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers

    gpt2 = model_of(vocab_size=50257, num_hidden_layers=1)
    fields, _ = opened(exported(gpt2, tmp_path / "gpt2"))
    assert len(fields["tokenizer.ggml.tokens"]) == 50257
    assert fields["tokenizer.ggml.tokens"][50256] == "<|endoftext|>"
    assert (fields["tokenizer.ggml.pre"], fields["tokenizer.ggml.eos_token_id"]) == ("gpt-2", 50256)
    assert len(fields["tokenizer.ggml.merges"]) == 50000

    own = Tokenizer(models.BPE({"a": 0, "b": 1, "ab": 2}, [("a", "b")]))
    own.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    own.add_special_tokens(["<|endoftext|>"])
    own.save(str(tmp_path / "own.json"))
    fields, _ = opened(exported(model_of(), tmp_path / "own", tokenizer=tmp_path / "own.json"))
    assert fields["tokenizer.ggml.tokens"][:5] == ["a", "b", "ab", "<|endoftext|>", "[PAD4]"]
    assert fields["tokenizer.ggml.token_type"][:5] == [1, 1, 1, 3, 5]
    assert fields["tokenizer.ggml.merges"] == ["a b"]

    own.pre_tokenizer = pre_tokenizers.Whitespace()
    own.save(str(tmp_path / "other.json"))
    with pytest.raises(ConfigError, match="splits text in another way than GPT-2"):
        exported(model_of(), tmp_path / "other", tokenizer=tmp_path / "other.json")
    assert not list((tmp_path / "other").glob("*.gguf"))


def test_what_llama_cpp_does_not_have_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"pos_scaling_factor is 2\.0"):
        exported(model_of(pos_scaling_factor=2.0), tmp_path)
    with pytest.raises(ConfigError, match="q8_0 is for --to gguf"):
        export(dict(model_of().state_dict()), model_of().config, tmp_path / "hf", "hf", "q8_0")


@pytest.mark.stress
@pytest.mark.parametrize("changes", CONFIGS, ids=str)
def test_llama_cpp_gives_our_logits_and_our_tokens(tmp_path: Path, changes: dict[str, Any]) -> None:
    """Needs llama-cpp-python, which is built from source: some ten minutes."""
    llama_cpp = pytest.importorskip("llama_cpp")
    model = model_of(vocab_size=50257, max_position_embeddings=128, **changes)
    path = exported(model, tmp_path)
    llama = llama_cpp.Llama(
        str(path),
        n_ctx=128,
        logits_all=True,
        verbose=False,
        n_threads=1,
        type_k=0,
        type_v=0,
        flash_attn=False,
    )
    text = "The package reads two files; it's 27 lines, \u4f60\u597d\n\n  done."
    tokenizer = load_tokenizer("gpt2", 50257)
    ids = tokenizer.encode(text).ids
    assert llama.tokenize(text.encode(), add_bos=False) == ids
    llama.eval(ids)
    found = torch.from_numpy(np.array(llama.scores[: len(ids)]))
    torch.testing.assert_close(found, logits_of(model, ids), rtol=1e-5, atol=1e-5)
    expected = generate(model, ids, 64, temperature=0)
    llama.reset()
    new = []
    for token in llama.generate(ids, temp=0.0, repeat_penalty=1.0):
        new.append(token)
        if len(new) == 64:
            break
    assert new == expected
