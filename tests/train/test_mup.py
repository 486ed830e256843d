"""muP: what is multiplied by what. The coordinate check in short: test_mup_coordinates.py."""

from __future__ import annotations

import pytest

from btlm_train import mup
from btlm_train.parameters import Initializer, ModelConfig, OptimizerConfig

OLDER = ModelConfig(
    hidden_size=2560, num_heads=32, num_hidden_layers=32, filter_size=6826, output_logits_scale=0.222, scale_qk_dot_by_d=True, embeddings_scale=14.6,
    initializer=Initializer(std=0.0231), output_layer_initializer=Initializer(std=0.00289),
)  # fmt: skip
NEWER = OLDER.model_copy(
    update={
        "output_logits_scale": None, "output_logits_alpha": 2.22, "mup_base_hidden_size": 256.0, "mup_base_filter_size": 682.6,
        "initializer": Initializer(std=0.073), "output_layer_initializer": Initializer(std=0.073),
    }
)  # fmt: skip


def test_the_older_form_is_the_same_model() -> None:
    """Explicit deviations, logit scale and decoder rate of the first published file are what muP derives in
    the later one.
    """
    older, newer = OptimizerConfig(adjust_learning_rate={"decoder_kernel": 0.1}), OptimizerConfig()
    for name in mup.GROUPS:
        assert mup.learning_rate_multiplier(name, OLDER, older) == pytest.approx(
            mup.learning_rate_multiplier(name, NEWER, newer)
        ), name
        if name not in (
            "ffn.proj.weight",
            "wte.weight",
        ):  # the later form starts the feed-forward output at 0.02: see mup.initializer
            assert mup.initializer(OLDER, name).std == pytest.approx(
                mup.initializer(NEWER, name).std, rel=2e-3
            ), name
    assert mup.logit_scale(OLDER) == pytest.approx(mup.logit_scale(NEWER))
    assert mup.attention_scale(OLDER) == mup.attention_scale(NEWER) == 1 / 80


def test_without_mup_the_scales_are_standard() -> None:
    plain = ModelConfig(hidden_size=64, num_heads=4, num_hidden_layers=2, filter_size=128)
    assert mup.logit_scale(plain) == 1.0
    assert mup.attention_scale(plain) == 1 / 4
    assert {mup.learning_rate_multiplier(name, plain, OptimizerConfig()) for name in mup.GROUPS} == {1.0}
    assert mup.initializer(plain, "attn.qkv.weight").std == 0.02
    assert (
        mup.initializer(plain, "attn.proj.weight").std
        == mup.initializer(plain, "ffn.proj.weight").std
        == pytest.approx(0.02 / 2)
    )


def test_optional_scales() -> None:
    config = NEWER.model_copy(
        update={"scale_output_logits_by_d": False, "attention_logits_alpha": 3.0, "scale_qk_dot_by_d": None}
    )
    assert mup.logit_scale(config) == pytest.approx(2.22 / 10**0.5)
    assert mup.attention_scale(config) == pytest.approx(
        3 / 80
    )  # under muP an absent scale_qk_dot_by_d counts as true
    dot = config.model_copy(update={"attention_type": "dot_product"})
    assert mup.attention_scale(dot) == 3.0


def test_biases_and_norms_keep_the_base_rate_and_never_decay() -> None:
    from btlm_train.model import BTLM

    config = ModelConfig(
        hidden_size=32,
        num_heads=2,
        num_hidden_layers=1,
        filter_size=64,
        vocab_size=10,
        mup_base_hidden_size=8,
        mup_base_filter_size=8,
    )
    groups = mup.parameter_groups(BTLM(config).named_parameters(), config, OptimizerConfig(weight_decay=0.1))
    found = {name: rates for rates, members in groups.items() for name, _ in members}
    assert (
        found["blocks.0.ln_1.weight"] == found["blocks.0.attn.qkv.bias"] == found["ln_f.bias"] == (1.0, 0.0)
    )
    assert found["wte.weight"] == (1.0, 0.1)
    assert found["blocks.0.attn.proj.weight"] == found["blocks.0.ffn.gate.weight"] == (1 / 4, 0.1)
    assert found["blocks.0.ffn.proj.weight"] == (1 / 8, 0.1)
