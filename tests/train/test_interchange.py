"""Checkpoints leave and come back bit for bit; generation and evaluation compute what they say."""

from __future__ import annotations

import csv
import json
import math
import time
from pathlib import Path
from typing import Any

import click
import pytest
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer

from btlm_data.errors import ConfigError, DataError
from btlm_train import checkpoint, cli, mup, sessions
from btlm_train.checkpoint import State
from btlm_train.evaluate import Sums, evaluate_lengths
from btlm_train.generate import generate, load_tokenizer, sample
from btlm_train.interchange import export, read_weights
from btlm_train.interchange.huggingface import config_from_huggingface, huggingface_config
from btlm_train.interchange.modelzoo import modelzoo_model
from btlm_train.model import BTLM
from btlm_train.parameters import ModelConfig
from tests.train import tiny

REFERENCE = Path(__file__).parent.parent / "golden" / "btlm_reference"
CONFIG = ModelConfig.model_validate(tiny.MODEL)


def saved_run(folder: Path, config: ModelConfig = CONFIG) -> dict[str, torch.Tensor]:
    model = BTLM(config)
    mup.initialize(model, config, seed=5)
    weights = dict(model.state_dict())
    state = State(
        run="a" * 32, step=0, updates=0, tokens=0, seed=5, data=None, model=config.model_dump(mode="json")
    )
    checkpoint.save(folder / "checkpoints", state, weights, None, None)
    return weights


@pytest.mark.parametrize("to", ["hf", "jais", "modelzoo"])
def test_export_and_import_are_exact(tmp_path: Path, to: str) -> None:
    weights = saved_run(tmp_path / "run")
    result = tiny.invoke("export", tmp_path / "run", "--to", to, "--out", tmp_path / "out")
    assert result.exit_code == 0, result.output
    assert ("transformers 4.57 or 5" in result.output and "trust_remote_code=True" in result.output) == (
        to == "hf"
    )
    result = tiny.invoke("import", tmp_path / "out", "--model-dir", tmp_path / "back")
    assert result.exit_code == 0, result.output
    found = checkpoint.find(tmp_path / "back")
    assert found is not None
    assert modelzoo_model(found.model_config()) == modelzoo_model(
        CONFIG
    )  # defaults written out mean the same
    assert to == "modelzoo" or found.model_config() == CONFIG
    back = found.weights()
    assert set(back) == set(weights)
    assert all(torch.equal(back[name], weights[name]) for name in weights)
    again = tiny.invoke("import", tmp_path / "out", "--model-dir", tmp_path / "back")
    assert again.exit_code == 2
    assert "already holds checkpoints" in again.output


def test_huggingface_configuration_has_every_key_of_the_reference() -> None:
    recorded = json.loads((REFERENCE / "config.json").read_text())["model"]
    theirs = json.loads((REFERENCE / "hf_config.json").read_text())
    ours = huggingface_config(ModelConfig.model_validate(recorded))
    del theirs["auto_map"]  # ours names the code that travels with the folder
    assert {key: ours.get(key) for key in theirs} == theirs
    assert {"bos_token_id", "eos_token_id", "architectures", "torch_dtype", "initializer_range"} < set(ours)


def test_a_foreign_huggingface_checkpoint_computes_the_reference_logits(tmp_path: Path) -> None:
    """Without our own record in config.json, the muP sizes follow from mup_width_scale."""
    (tmp_path / "config.json").write_bytes((REFERENCE / "hf_config.json").read_bytes())
    (tmp_path / "model.safetensors").write_bytes((REFERENCE / "hf_state.safetensors").read_bytes())
    model = sessions.open_model(tmp_path, "cpu")
    batch, outputs = load_file(REFERENCE / "batch.safetensors"), load_file(REFERENCE / "outputs.safetensors")
    with torch.no_grad():
        torch.testing.assert_close(
            model.logits(model(batch["input_ids"])), outputs["logits"], rtol=1e-5, atol=1e-5
        )


def test_the_published_configuration_is_understood() -> None:
    published = {
        "model_type": "btlm", "n_embd": 2560, "n_head": 32, "n_inner": 6826, "n_layer": 32, "n_positions": 8192, "vocab_size": 50257, "mup_width_scale": 0.1,
        "mup_embeddings_scale": 14.6, "mup_output_alpha": 2.22, "mup_scale_qk_dot_by_d": True, "activation_function": "swiglu",
        "position_embedding_type": "alibi", "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0, "alibi_scaling": {"type": "linear", "train_seq_len": 8192},
    }  # fmt: skip
    config = config_from_huggingface(published)
    assert mup.logit_scale(config) == pytest.approx(0.222)
    assert mup.attention_scale(config) == 1 / 80
    assert (mup.hidden_multiplier(config), mup.filter_multiplier(config)) == (10.0, 10.0)
    assert config.alibi_train_seq_len == 8192
    written = huggingface_config(config)
    assert {key: written[key] for key in published if key not in ("mup_width_scale",)} == {
        k: v for k, v in published.items() if k != "mup_width_scale"
    }
    with pytest.raises(ConfigError, match="lacks 'n_embd'"):
        config_from_huggingface(
            {
                "model_type": "btlm",
                "vocab_size": 3,
                "position_embedding_type": "alibi",
                "activation_function": "swiglu",
            }
        )
    with pytest.raises(ConfigError, match="model_type 'gpt2'"):
        config_from_huggingface({"model_type": "gpt2"})


def test_exported_tokenizer_files_encode_as_gpt2(tmp_path: Path) -> None:
    config = ModelConfig.model_validate(tiny.MODEL | {"vocab_size": 50257})
    weights = dict(BTLM(config).state_dict())
    files = export(weights, config, tmp_path, "hf", "bfloat16")
    assert {file.name for file in files} == {
        "config.json",
        "model.safetensors",
        "vocab.json",
        "merges.txt",
        "tokenizer_config.json",
        "configuration_btlm.py",
        "modeling_btlm.py",
    }
    assert load_tokenizer("gpt2", 50257).encode("Hello world").ids == [15496, 995]
    assert all(
        tensor.dtype == torch.bfloat16
        for name, tensor in load_file(tmp_path / "model.safetensors").items()
        if "slopes" not in name
    )


def test_foreign_tensors_are_refused(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    for name in ("transformer.h.0.attn.rotary.weight", "model.transformer_decoder.layers.0.moe.weight"):
        save_file({name: torch.zeros(1)}, tmp_path / "model.safetensors")
        with pytest.raises(DataError, match="does not have"):
            read_weights(tmp_path)


@pytest.mark.parametrize(
    "settings", [{"temperature": 0.0}, {"temperature": 1.0, "top_p": 0.8}, {"temperature": 0.7}]
)
def test_cache_changes_no_token(settings: dict[str, Any]) -> None:
    """Also beyond the trained length, where ALiBi is scaled dynamically."""
    config = CONFIG.model_copy(update={"alibi_train_seq_len": 16})
    model = BTLM(config)
    mup.initialize(model, config, seed=2)
    prompt = [3, 1, 4, 1, 5]
    cached = generate(model, prompt, 40, seed=11, **settings)
    assert cached == generate(model, prompt, 40, seed=11, use_cache=False, **settings)
    assert len(cached) == 40
    assert cached == generate(model, prompt, 40, seed=11, **settings)
    if settings["temperature"]:
        assert cached != generate(model, prompt, 40, seed=12, **settings)
    assert (
        generate(model, prompt, 40, seed=11, stop_id=cached[9], **settings)
        == cached[: cached.index(cached[9])]
    )


def test_top_p_draws_only_from_the_nucleus() -> None:
    probabilities = torch.tensor([0.05, 0.5, 0.15, 0.3])
    generator = torch.Generator().manual_seed(0)
    drawn = {
        top_p: {sample(probabilities.log(), 1.0, top_p, generator) for _ in range(300)}
        for top_p in (0.4, 0.6, 0.9, 1.0)
    }
    assert drawn == {0.4: {1}, 0.6: {1, 3}, 0.9: {1, 2, 3}, 1.0: {0, 1, 2, 3}}
    counts = (
        torch.bincount(torch.tensor([sample(probabilities.log(), 1.0, 1.0, generator) for _ in range(4000)]))
        / 4000
    )
    torch.testing.assert_close(counts, probabilities, rtol=0, atol=0.03)


def test_generate_command_prints_prompt_and_more(tmp_path: Path) -> None:
    saved_run(tmp_path / "run", ModelConfig.model_validate(tiny.MODEL | {"vocab_size": 50257}))
    arguments = [
        "generate",
        "--model-dir",
        str(tmp_path / "run"),
        "--prompt",
        "The package",
        "--max-new-tokens",
        "5",
        "--seed",
        "1",
        "--device",
        "cpu",
    ]
    one, two = (tiny.invoke(*arguments) for _ in range(2))
    assert one.exit_code == 0, one.output
    assert one.output.startswith("The package")
    assert len(one.output) > len("The package\n")
    assert one.output == two.output
    saved_run(tmp_path / "small")
    refused = tiny.invoke("generate", "--model-dir", str(tmp_path / "small"), "--prompt", "x")
    assert refused.exit_code == 2
    assert "has 50257 tokens, the model 64" in refused.output


def test_every_length_sees_the_same_tokens(tmp_path: Path) -> None:
    shards = tiny.write_shards(tmp_path / "shards", samples=6, length=64)
    saved_run(tmp_path / "run")
    arguments = [
        "eval-lengths",
        "--model-dir",
        str(tmp_path / "run"),
        "--data",
        str(shards),
        "--lengths",
        "16,32,64",
        "--out",
        str(tmp_path / "out"),
        "--device",
        "cpu",
    ]
    result = tiny.invoke(*arguments)
    assert result.exit_code == 0, result.output
    rows = list(csv.DictReader((tmp_path / "out" / "lengths.csv").read_text().splitlines()))
    assert [int(row["length"]) for row in rows] == [16, 32, 64]
    assert {row["tokens"] for row in rows} == {str(6 * 64 - 32)}
    assert (tmp_path / "out" / "lengths.png").read_bytes().startswith(b"\x89PNG")
    curve = list(csv.DictReader((tmp_path / "out" / "positions.csv").read_text().splitlines()))
    assert sum(int(row["last"]) - int(row["first"]) + 1 for row in curve) == 64
    model = sessions.open_model(tmp_path / "run", "cpu")
    context = torch.autocast("cpu", enabled=False)
    with pytest.raises(ConfigError, match="does not divide"):
        evaluate_lengths(
            model, {"data_dir": str(shards), "batch_size": 1}, [24, 64], torch.device("cpu"), context
        )
    with pytest.raises(ConfigError, match="hold 64 tokens"):
        evaluate_lengths(
            model, {"data_dir": str(shards), "batch_size": 1}, [128], torch.device("cpu"), context
        )


@pytest.mark.parametrize("lengths", ["", "0,16", "-4,16", "9" * 30, "16,x", "1.5"])
def test_lengths_that_are_none(tmp_path: Path, lengths: str) -> None:
    shards = tiny.write_shards(tmp_path / "shards", samples=2)
    saved_run(tmp_path / "run")
    result = tiny.invoke(
        "eval-lengths",
        "-o",
        tmp_path / "run",
        "--data",
        shards,
        "--out",
        tmp_path / "out",
        f"--lengths={lengths}",
    )
    assert result.exit_code == 2
    assert "is not a list of sequence lengths" in result.output


def test_sums_count_only_unmasked_tokens() -> None:
    sums = Sums.zero(4, torch.device("cpu"))
    sums.add(
        torch.tensor([[1.0, 2.0, 3.0, 100.0]]),
        torch.tensor([[True, False, True, True]]),
        torch.tensor([[1, 1, 1, 0]]),
    )
    report = sums.report()
    assert report == {"loss": 2.0, "perplexity": math.exp(2.0), "accuracy": pytest.approx(2 / 3), "tokens": 3}
    assert [row["loss"] for row in sums.curve()] == [1.0, 2.0, 3.0, 0.0]


def test_older_checkpoints_are_removed(tmp_path: Path) -> None:
    for step in range(5):
        state = State(run="a" * 32, step=step, updates=0, tokens=0, seed=0, data=None, model={})
        checkpoint.save(tmp_path, state, {"w": torch.full((2,), step)}, None, keep=2)
    assert [path.name for path in checkpoint.list_steps(tmp_path)] == ["step_00000003", "step_00000004"]
    found = checkpoint.newest(tmp_path)
    assert found is not None
    assert found.weights()["w"].tolist() == [4, 4]
    assert found.optimizer() is None


def test_help_is_quick_and_loads_no_torch() -> None:
    import subprocess
    import sys

    code = """
import atexit, sys
from btlm_train.cli import main
sys.argv = ["btlm-train", "--help"]
atexit.register(lambda: print("LOADED", {"torch", "h5py", "numpy", "tokenizers"} & set(sys.modules)))
main()
"""
    started = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "btlm-train" in done.stdout
    assert done.stdout.endswith("LOADED set()\n")
    assert time.perf_counter() - started < 5  # 0.15 s on a machine at rest; the exact budget is a benchmark


def test_every_command_has_help_and_an_example() -> None:
    for name, command in cli.cli.commands.items():
        assert command.help, name
        assert f"Example: btlm-train {name}" in command.help, name
        for parameter in command.params:
            if isinstance(parameter, click.Option) and parameter.name not in ("max_new_tokens", "seed"):
                assert parameter.help, (name, parameter.name)


def test_without_torch_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    result = tiny.invoke("run", "--params", "params_btlm_tiny_2k.yaml", "--mode", "train")
    assert result.exit_code == 2
    assert "pip install '.[train]'" in result.output


def test_positional_device_and_underscored_options_are_understood(tmp_path: Path) -> None:
    data = tiny.write_shards(tmp_path / "data")
    params = tiny.write_params(tmp_path / "params.yaml", data)
    arguments = [
        "run",
        "CPU",
        "--params",
        str(params),
        "--mode",
        "train",
        "--model_dir",
        str(tmp_path / "run"),
        "--max_steps",
        "2",
        "--parallel",
        "ddp",
        "--json",
    ]
    result = tiny.invoke(*arguments)
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout.splitlines()[-1])["step"] == 2


def test_load_tokenizer_from_a_file(tmp_path: Path) -> None:
    tokenizer: Tokenizer = load_tokenizer("gpt2", 50257)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    assert (
        load_tokenizer(str(tmp_path / "tokenizer.json"), 50257).encode("a b").ids
        == tokenizer.encode("a b").ids
    )
    with pytest.raises(ConfigError, match="There is no tokenizer"):
        load_tokenizer("nowhere.json", 50257)
