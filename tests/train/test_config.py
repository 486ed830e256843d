"""Parameter files of both forms, overrides, and what the user is told about mistakes."""

from __future__ import annotations

import importlib.resources
from pathlib import Path
from typing import Any

import pytest
import yaml

from btlm_data.errors import ConfigError
from btlm_train.config import find_params, load_params
from btlm_train.model import count_parameters

# Keys of the Model Zoo's published files of both generations (facts from its repository), values as published.
CURRENT: dict[str, Any] = {
    "trainer": {
        "init": {
            "seed": 1,
            "backend": {"backend_type": "CSX"},
            "model": {
                "name": "btlm", "hidden_size": 2560, "position_embedding_type": "alibi", "share_embedding_weights": True, "max_position_embeddings": 2048,
                "vocab_size": 50257, "num_hidden_layers": 32, "dropout_rate": 0.0, "layer_norm_epsilon": 1e-5, "num_heads": 32,
                "attention_type": "scaled_dot_product", "attention_dropout_rate": 0.0, "use_projection_bias_in_attention": True,
                "use_ffn_bias_in_attention": True, "filter_size": 6826, "nonlinearity": "swiglu", "use_ffn_bias": True,
                "initializer": {"mean": 0.0, "name": "truncated_normal", "std": 0.073, "a": -0.146, "b": 0.146},
                "loss_scaling": "batch_size", "loss_weight": 0.00048828125, "use_bias_in_output": False, "mixed_precision": True, "fp16_type": "cbfloat16",
                "mup_base_filter_size": 682.6, "mup_base_hidden_size": 256, "output_logits_alpha": 2.22, "scale_qk_dot_by_d": True, "embeddings_scale": 14.6,
            },
            "optimizer": {"AdamW": {"betas": [0.9, 0.95], "eps": 1e-8, "weight_decay": 0.1, "correct_bias": True}},
            "schedulers": [{"SequentialLR": {"schedulers": [
                {"LinearLR": {"initial_learning_rate": 0.0, "end_learning_rate": 0.012, "total_iters": 95}},
                {"LinearLR": {"initial_learning_rate": 0.012, "end_learning_rate": 0.00010138, "total_iters": 159541}},
            ]}}],
            "precision": {"enabled": True, "fp16_type": "cbfloat16", "precision_opt_level": 1, "loss_scaling_factor": "dynamic", "max_gradient_norm": 1.0, "log_loss_scale": True},
            "loop": {"max_steps": 119727, "eval_frequency": 200, "eval_steps": 8688},
            "checkpoint": {"steps": 200, "save_initial_checkpoint": False},
            "logging": {"log_steps": 1},
            "callbacks": [{"ScopedTrainFlags": {"csx.performance.micro_batch_size": 40}}, {"ComputeNorm": {}}, {"KeepNCheckpoints": {"n": 5}}],
        },
        "fit": {
            "train_dataloader": {"data_processor": "GptHDF5MapDataProcessor", "data_dir": "./train/", "shuffle": False, "shuffle_seed": 1, "batch_size": 1920, "use_worker_cache": False, "num_workers": 8},
            "val_dataloader": {"data_processor": "GptHDF5MapDataProcessor", "data_dir": "./val/", "batch_size": 60, "shuffle": False, "use_worker_cache": False, "num_workers": 8},
        },
    }
}  # fmt: skip
FLAT: dict[str, Any] = {
    "train_input": CURRENT["trainer"]["fit"]["train_dataloader"],
    "eval_input": CURRENT["trainer"]["fit"]["val_dataloader"],
    "model": {k: v for k, v in CURRENT["trainer"]["init"]["model"].items() if not k.startswith("mup") and k not in ("name", "output_logits_alpha")}
    | {"alibi_implementation": "expand", "output_logits_scale": 0.222},
    "optimizer": {
        "optimizer_type": "AdamW", "betas": [0.9, 0.95], "eps": 1e-8, "max_gradient_norm": 1.0, "loss_scaling_factor": "dynamic",
        "learning_rate": [
            {"scheduler": "Linear", "initial_learning_rate": 0.0, "end_learning_rate": 0.012, "total_iters": 95},
            {"scheduler": "Linear", "initial_learning_rate": 0.012, "end_learning_rate": 1.0138e-4, "total_iters": 159541},
        ],
        "adjust_learning_rate": {"decoder_kernel": 0.1}, "weight_decay": 0.1, "log_summaries": True, "correct_bias": True,
    },
    "runconfig": {"max_steps": 119727, "eval_steps": 8688, "enable_distributed": False, "checkpoint_steps": 200, "log_steps": 1, "save_initial_checkpoint": False, "seed": 1, "precision_opt_level": 1},
}  # fmt: skip


def written(folder: Path, tree: object) -> str:
    path = folder / "params.yaml"
    path.write_text(yaml.safe_dump(tree, sort_keys=False))
    return str(path)


@pytest.mark.parametrize("form", [CURRENT, FLAT])
def test_both_published_forms_run_unchanged(tmp_path: Path, form: dict[str, Any]) -> None:
    params = load_params(written(tmp_path, form))
    assert (
        params.model.hidden_size,
        params.loop.max_steps,
        params.loop.checkpoint_steps,
        params.loop.eval_steps,
    ) == (
        2560,
        119727,
        200,
        8688,
    )
    assert params.optimizer.betas == (0.9, 0.95)
    assert params.optimizer.max_gradient_norm == 1.0
    assert params.train is not None
    assert (params.train.batch_size, params.train.data_dir) == (1920, "./train/")
    assert [data.batch_size for data in params.validation] == [60]
    assert params.learning_rate(0) == 0
    assert params.learning_rate(95) == pytest.approx(0.012)
    assert params.learning_rate(119727) == pytest.approx(0.00308, rel=2e-3)
    assert params.learning_rate(10**9) == pytest.approx(0.00010138)


def test_cerebras_keys_are_accepted_and_reported(tmp_path: Path) -> None:
    unused = load_params(written(tmp_path, CURRENT)).unused
    assert "trainer.init.model.fp16_type" in unused
    assert any("micro_batch_size" in key for key in unused)
    assert "trainer.init.precision.max_gradient_norm" not in unused
    assert load_params(written(tmp_path, CURRENT)).loop.keep == 5
    assert "runconfig.precision_opt_level" in load_params(written(tmp_path, FLAT)).unused


@pytest.mark.parametrize(
    ("section", "key", "nearest"),
    [
        (("model",), "hiden_size", "model.hidden_size"),
        (("train_input",), "batchsize", "train_input.batch_size"),
        (("optimizer",), "weight_decy", "optimizer.weight_decay"),
        (("runconfig",), "max_step", "runconfig.max_steps"),
        ((), "modle", "model"),
    ],
)
def test_an_unknown_key_names_file_line_and_nearest(
    tmp_path: Path, section: tuple[str, ...], key: str, nearest: str
) -> None:
    tree = {name: dict(values) for name, values in FLAT.items()}
    target: dict[str, Any] = tree
    for name in section:
        target = target[name]
    target[key] = 1
    path = written(tmp_path, tree)
    line = next(
        number
        for number, text in enumerate(Path(path).read_text().splitlines(), 1)
        if text.strip().startswith(f"{key}:")
    )
    with pytest.raises(
        ConfigError, match=rf"params\.yaml line {line}: there is no parameter .*Did you mean {nearest}\?"
    ):
        load_params(path)


def test_an_unknown_key_of_the_current_form(tmp_path: Path) -> None:
    tree = yaml.safe_load(yaml.safe_dump(CURRENT))
    tree["trainer"]["init"]["model"]["num_head"] = 3
    with pytest.raises(ConfigError, match=r"line \d+: .*Did you mean trainer\.init\.model\.num_heads"):
        load_params(written(tmp_path, tree))


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("position_embedding_type", "rotary", "position_embedding_type"),
        ("num_heads", 7, "not a multiple of num_heads 7"),
        ("norm_type", "rmsnorm", "which BTLM does not have"),
        ("mup_base_hidden_size", 256, "needs both"),
        ("vocab_size", "many", "vocab_size"),
    ],
)
def test_a_wrong_value_names_the_key(tmp_path: Path, key: str, value: object, message: str) -> None:
    tree = {name: dict(values) for name, values in FLAT.items()}
    tree["model"] = tree["model"] | {key: value}
    with pytest.raises(ConfigError, match=message):
        load_params(written(tmp_path, tree))


@pytest.mark.parametrize("form", [CURRENT, FLAT])
def test_overrides_speak_either_form(tmp_path: Path, form: dict[str, Any]) -> None:
    overrides = [
        "train_input.data_dir=[a, b]",
        "trainer.init.model.num_hidden_layers=2",
        "eval_input.batch_size=5",
        "runconfig.max_steps=9",
    ]
    params = load_params(written(tmp_path, form), overrides)
    assert params.train is not None
    assert params.train.data_dir == ["a", "b"]
    assert params.model.num_hidden_layers == 2
    assert params.validation[0].batch_size == 5
    assert params.loop.max_steps == 9
    with pytest.raises(ConfigError, match=r"--set model\.numheads=1: there is no parameter"):
        load_params(written(tmp_path, form), ["model.numheads=1"])
    with pytest.raises(ConfigError, match="not KEY=VALUE"):
        load_params(written(tmp_path, form), ["model.num_heads"])


def test_a_list_of_validation_sets(tmp_path: Path) -> None:
    tree = yaml.safe_load(yaml.safe_dump(CURRENT))
    one = tree["trainer"]["fit"]["val_dataloader"]
    tree["trainer"]["validate_all"] = {"val_dataloaders": [one, one | {"data_dir": "other"}]}
    params = load_params(written(tmp_path, tree), ["eval_input.batch_size=7"], "eval_all")
    assert [(data.data_dir, data.batch_size) for data in params.validation] == [("./val/", 7), ("other", 7)]


def test_shipped_files_load_and_hold_the_published_values() -> None:
    folder = Path(str(importlib.resources.files("btlm_train") / "configs"))
    names = sorted(path.name for path in folder.glob("*.yaml"))
    assert len(names) == 5
    for name in names:
        params = load_params(name)
        assert params.unused == ()
        assert params.train is not None
        assert params.model.loss_weight == pytest.approx(1 / params.model.max_position_embeddings)
    stages = [load_params(f"params_btlm_2p7b_{length}") for length in ("2k", "8k")]
    for params, steps, batch, length, end in zip(
        stages, (119727, 159636), (1920, 480), (2048, 8192), (0.00010138, 0.00010198), strict=True
    ):
        assert params.train is not None
        assert count_parameters(params.model) == 2_646_255_744
        assert (params.loop.max_steps, params.train.batch_size, params.model.max_position_embeddings) == (
            steps,
            batch,
            length,
        )
        assert params.train.batch_size * length == 3_932_160
        assert params.learning_rate(10**6) == pytest.approx(end)
    tiny = [load_params(f"params_btlm_tiny_{length}") for length in ("2k", "8k")]
    assert tiny[0].schedule == tiny[1].schedule
    assert tiny[0].loop.max_steps is not None
    assert tiny[1].loop.max_steps is not None
    assert tiny[0].loop.max_steps < tiny[1].loop.max_steps


def test_names_that_are_not_there() -> None:
    with pytest.raises(ConfigError, match=r"Did you mean params_btlm_tiny_2k\.yaml\?"):
        find_params("params_btlm_tiny_2.yaml")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- 1\n", "expected `trainer:`"),
        ("model: {", "not valid YAML"),
        ("model: 3\n", "is a section|no parameter"),
    ],
)
def test_files_that_are_no_parameters(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "params.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message):
        load_params(str(path))
