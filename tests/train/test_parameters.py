"""Parameter files of both forms, overrides, and what the user is told about mistakes."""

from __future__ import annotations

import contextlib
import importlib.resources
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from btlm_data.errors import ConfigError
from btlm_train.model import count_parameters
from btlm_train.parameters import find_params, load_params

# Keys of the Model Zoo's published files of both generations (facts from its repository), values as
# published.
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


@pytest.mark.parametrize("form", [CURRENT, FLAT])
def test_a_mixture(tmp_path: Path, form: dict[str, Any]) -> None:
    tree = yaml.safe_load(yaml.safe_dump(form))
    data = tree["trainer"]["fit"]["train_dataloader"] if "trainer" in tree else tree["train_input"]
    del data["data_dir"]
    data["mixture"] = [{"data_dir": ["a", "b"], "weight": 2}, {"data_dir": "c", "weight": 1e-1}]
    params = load_params(written(tmp_path, tree))
    assert params.train is not None
    assert params.train.mixture is not None
    assert [(entry.data_dir, entry.weight) for entry in params.train.mixture] == [
        (["a", "b"], 2.0),
        ("c", 0.1),
    ]


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
        ("- 1\n", "the file holds a list"),
        ("model: {", "not valid YAML"),
        ("model: 3\n", "is a section|no parameter"),
        ("", "the file is empty"),
    ],
)
def test_files_that_are_no_parameters(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "params.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message):
        load_params(str(path))


# Keys that only some releases of the Model Zoo have (2.0.2, 2.0.3; 2.10), with the values BTLM's files have
# there.
OTHER_RELEASES: dict[str, Any] = {
    "model.use_position_embedding": True,
    "model.use_bfloat16": True,
    "model.embd_pdrop": 0.0,
    "runconfig.use_appliance_data": True,
    "runconfig.use_cs_grad_accum": True,
    "train_input.data_transforms": None,
    "train_input.dataset_map_fn": None,
    "eval_input.data_transforms": None,
    "model.rope_theta": 10000,
    "model.pad_rope": False,
    "model.extra_attention_params": {},
    "model.extra_ffn_params": {},
    "model.memory_tokens": {},
    "model.moe": {"num_experts": 1},
    "model.lr_adjustment_groups": None,
    "model.cross_attention_layers": [],
    "model.rel_distance_mode": "default",
    "model.attention_sink_tokens": None,
    "model.embeddings_scale": None,
    "model.attention_logits_alpha": None,
}


@pytest.mark.parametrize("key", OTHER_RELEASES)
def test_keys_of_other_releases_are_read(tmp_path: Path, key: str) -> None:
    tree = {name: dict(values) for name, values in FLAT.items()}
    section, name = key.split(".")
    tree[section][name] = OTHER_RELEASES[key]
    params = load_params(written(tmp_path, tree))
    if key in ("model.use_bfloat16", "runconfig.use_appliance_data", "runconfig.use_cs_grad_accum"):
        assert key in params.unused
    if name == "embd_pdrop":
        assert params.model.embedding_dropout == 0.0


def test_embd_pdrop_is_the_embedding_dropout(tmp_path: Path) -> None:
    tree = yaml.safe_load(yaml.safe_dump(CURRENT))
    tree["trainer"]["init"]["model"]["embd_pdrop"] = 0.25
    assert load_params(written(tmp_path, tree)).model.embedding_dropout == 0.25


def test_defaults_that_are_not_the_model_zoos_are_said(tmp_path: Path) -> None:
    tree = {name: dict(values) for name, values in FLAT.items()}
    for key in ("nonlinearity", "dropout_rate", "attention_dropout_rate"):
        del tree["model"][key]
    assumed = load_params(written(tmp_path, tree)).assumed
    assert [line.split(":")[0] for line in assumed] == [
        "nonlinearity",
        "dropout_rate",
        "attention_dropout_rate",
    ]
    assert "swiglu (the Model Zoo's default is gelu)" in assumed[0]
    assert load_params(written(tmp_path, FLAT)).assumed == ()


def test_numbers_are_numbers(tmp_path: Path) -> None:
    params = load_params(
        written(tmp_path, FLAT),
        ["optimizer.learning_rate=6e-4", "optimizer.eps=1e-8", "runconfig.max_steps=1e3"],
    )
    assert params.learning_rate(5) == 6e-4
    assert params.optimizer.eps == 1e-8
    assert params.loop.max_steps == 1000


BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "\n".join(
    f"{name}: &{name} [{', '.join([f'*{before}'] * 9)}]"
    for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)
# (whole file, or the lines that replace FLAT's section) -> part of the message
BROKEN: dict[str, tuple[str, str]] = {
    "bomb": (BOMB, "no parameter|more than .* values"),
    "self reference": ("model: &m\n  name: *m\n", "has no complete value before it"),
    "list of itself": ("trainer: &t [*t]\n", "has no complete value before it"),
    "unknown alias": ("model: *nothing\n", "has no complete value before it"),
    "tag": ("model: !!python/object/apply:os.system [true]\n", "tags .* are not allowed"),
    "own tag": ("model: {hidden_size: !x 3}\n", "tags .* are not allowed"),
    "two documents": ("model: {num_heads: 12}\n---\nmodel: {}\n", "a second document"),
    "key twice": ("model:\n  hidden_size: 1\n  hidden_size: 2\n", "given twice"),
    "deep": ("[" * 20000, "levels of nesting"),
    "control character": ("model: \x00\n", "not allowed in YAML"),
    "tabs": ("model:\n\thidden_size: 3\n", "not valid YAML"),
    "a number": ("3\n", "single value"),
    "a word": ("hello\n", "single value"),
    "null model": ("model: null\n", "model is missing"),
    "list key": ("model: {[a]: 3}\n", "key must be plain text"),
    "model list": ("model: [1, 2]\n", "is a section"),
    "hidden null": ("model: {hidden_size: null}\n", "hidden_size"),
    "hidden text": ("model: {hidden_size: wide}\n", "expected a whole number"),
    "hidden list": ("model: {hidden_size: [3]}\n", "expected a whole number"),
    "hidden mapping": ("model: {hidden_size: {a: 3}}\n", "expected a whole number|no parameter"),
    "hidden flag": ("model: {hidden_size: true}\n", "no value of this setting"),
    "hidden huge": ("model: {hidden_size: 1000000000000}\n", "hidden_size"),
    "hidden endless": (f"model: {{hidden_size: {'9' * 5000}}}\n", "digits"),
    "hidden negative": ("model: {hidden_size: -1}\n", "hidden_size"),
    "hidden fraction": ("model: {hidden_size: 1.5}\n", "whole number"),
    "layers huge": ("model: {num_hidden_layers: 1000000000}\n", "num_hidden_layers"),
    "infinite": ("model: {embeddings_scale: .inf}\n", "finite"),
    "not a number": ("model: {loss_weight: .nan}\n", "loss_weight"),
    "dropout 1": ("model: {dropout_rate: 1.0}\n", "dropout_rate"),
    "unordered bounds": ("model: {initializer: {std: 1, a: 3, b: -3}}\n", "is not below b"),
    "initializer name": ("model: {initializer: xavier}\n", "initializer"),
    "initializer list": ("model: {initializer: [truncated_normal]}\n", "initializer"),
    "experts": ("model: {moe: {num_experts: 8}}\n", "which BTLM does not have"),
    "attention parameters": ("model: {extra_attention_params: {num_kv_groups: 4}}\n", "num_kv_groups|BTLM"),
    "positions off": ("model: {use_position_embedding: false}\n", "which BTLM does not have"),
    "fixed by 0": ("model: {embedding_layer_norm: 0}\n", "which BTLM does not have"),
    "learned positions": ("model: {position_embedding_type: learned}\n", "alibi"),
    "batch huge": ("model: {num_heads: 12}\ntrain_input: {batch_size: 1000000000000}\n", "batch_size"),
    "batch text": ("model: {num_heads: 12}\ntrain_input: {batch_size: many}\n", "batch_size"),
    "workers huge": (
        "model: {num_heads: 12}\ntrain_input: {batch_size: 1, num_workers: 1000000000}\n",
        "num_workers",
    ),
    "data_dir number": ("model: {num_heads: 12}\ntrain_input: {batch_size: 1, data_dir: 3}\n", "data_dir"),
    "data_dir mapping": (
        "model: {num_heads: 12}\ntrain_input: {batch_size: 1, data_dir: {a: b}}\n",
        "data_dir",
    ),
    "mixture text": ("model: {num_heads: 12}\ntrain_input: {batch_size: 1, mixture: x}\n", "mixture"),
    "mixture unknown key": (
        "model: {num_heads: 12}\ntrain_input: {batch_size: 1, mixture: [{data_dir: a, wieght: 1}]}\n",
        "wieght",
    ),
    "transforms": (
        "model: {num_heads: 12}\ntrain_input: {batch_size: 1, data_transforms: [x]}\n",
        "data_transforms",
    ),
    "micro batch": (
        "model: {num_heads: 12}\ntrain_input: {batch_size: 1, micro_batch_size: no}\n",
        "micro_batch_size",
    ),
    "betas": ("model: {num_heads: 12}\noptimizer: {betas: [0.9, 1.0]}\n", "betas"),
    "three betas": ("model: {num_heads: 12}\noptimizer: {betas: [0.9, 0.9, 0.9]}\n", "betas"),
    "other optimizer": ("model: {num_heads: 12}\noptimizer: {optimizer_type: SGD}\n", "AdamW"),
    "optimizer list": ("model: {num_heads: 12}\noptimizer: [AdamW]\n", "is a section"),
    "schedule text": ("model: {num_heads: 12}\noptimizer: {learning_rate: fast}\n", "Give a number"),
    "schedule null": ("model: {num_heads: 12}\noptimizer: {learning_rate: null}\n", "Give a number"),
    "schedule list": ("model: {num_heads: 12}\noptimizer: {learning_rate: [1, 2]}\n", "Give a number"),
    "schedule name": (
        "model: {num_heads: 12}\noptimizer: {learning_rate: [{scheduler: Magic}]}\n",
        "no scheduler 'Magic'",
    ),
    "schedule key": (
        "model: {num_heads: 12}\noptimizer: {learning_rate: [{scheduler: Linear, x: 1}]}\n",
        "has no setting 'x'",
    ),
    "schedule empty": (
        "model: {num_heads: 12}\noptimizer: {learning_rate: [{scheduler: Linear}]}\n",
        "total_iters|initial",
    ),
    "schedule text rate": (
        "model: {num_heads: 12}\noptimizer: {learning_rate: [{scheduler: Linear, initial_learning_rate: a, "
        "total_iters: 3}]}\n",
        "expected a number",
    ),
    "schedule deep": (
        "model: {num_heads: 12}\ntrainer: {init: {schedulers: "
        + "[{SequentialLR: {schedulers: " * 12
        + "[{LinearLR: {}}]"
        + "}}]" * 12
        + "}}\n",
        "levels",
    ),
    "steps negative": ("model: {num_heads: 12}\nrunconfig: {max_steps: -1}\n", "max_steps"),
    "steps null list": ("model: {num_heads: 12}\nrunconfig: {max_steps: [null]}\n", "max_steps"),
    "seed text": ("model: {num_heads: 12}\nrunconfig: {seed: one}\n", "seed"),
    "seed huge": ("model: {num_heads: 12}\nrunconfig: {seed: 99999999999999999999999}\n", "seed"),
    "seed flag": ("model: {num_heads: 12}\nrunconfig: {seed: yes}\n", "seed"),
    "precision": ("model: {num_heads: 12}\nrunconfig: {precision: fp8}\n", "precision"),
    "model_dir NUL": ('model: {num_heads: 12}\nrunconfig: {model_dir: "a\\0b"}\n', "U\\+0000"),
    "data_dir NUL": (
        'model: {num_heads: 12}\ntrain_input: {batch_size: 1, data_dir: ["a\\0b"]}\n',
        "U\\+0000",
    ),
    "model_dir list": ("model: {num_heads: 12}\nrunconfig: {model_dir: [a]}\n", "model_dir"),
    "markup": ("model: {'[bold]x[/bold]': 1}\n", "no parameter"),
    "empty key": ("model: {'': 1}\n", "no parameter"),
    "dots": ("model: {'a.b.c': 1}\n", "no parameter"),
    "huge text": (f"model: {{name: {'x' * 10000}}}\n", "name"),
    "callbacks text": ("model: {num_heads: 12}\ntrainer: {init: {callbacks: text}}\n", ""),
    "trainer text": ("trainer: text\n", "is a section"),
}


@pytest.mark.parametrize("name", BROKEN)
@pytest.mark.timeout(20)
def test_broken_files_are_answered_in_words(tmp_path: Path, name: str) -> None:
    text, message = BROKEN[name]
    path = tmp_path / "params.yaml"
    path.write_text(text)
    if not message:
        load_params(str(path))
        return
    with pytest.raises(ConfigError, match=message) as caught:
        load_params(str(path))
    assert len(str(caught.value)) < 2000


@pytest.mark.parametrize("data", [b"\xff\xfem\x00", b"model: \xff\n", b"x" * (2**20 + 1)])
def test_files_that_are_no_text(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "params.yaml"
    path.write_bytes(data)
    with pytest.raises(ConfigError, match=r"not UTF-8|larger than"):
        load_params(str(path))


@pytest.mark.parametrize("name", ["\0", "x" * 5000, "..", "."])
def test_names_that_cannot_be_files(name: str) -> None:
    with pytest.raises(ConfigError, match="parameter file"):
        find_params(name)


@given(st.text(max_size=60), st.text(max_size=60))
def test_any_set_is_read_or_refused_in_words(key: str, value: str) -> None:
    with contextlib.suppress(ConfigError):
        load_params("params_btlm_tiny_2k.yaml", [f"{key}={value}"])


@given(st.sampled_from(sorted(FLAT["model"])), st.text(alphabet="[]{}:,-+.e0123456789x&*!\"' ~", max_size=30))
def test_any_value_is_read_or_refused_in_words(key: str, value: str) -> None:
    with contextlib.suppress(ConfigError):
        load_params("params_btlm_tiny_2k.yaml", [f"model.{key}={value}"])
