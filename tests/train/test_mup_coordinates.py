"""muP's coordinate check in its short form, and that it would notice any of muP's multipliers missing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from btlm_train import mup
from btlm_train.parameters import Initializer, ModelConfig
from tests.reference.mup_coordinates import not_flat, proxy_config, sizes

WIDTHS = (32, 64, 128, 256)
VOCABULARY = 256
TOLERANCE = 0.25  # of the exponent of the width; it is about 0.1 as it should be, and 0.5 or 1 with a multiplier missing


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Small matrices: a second thread costs more than it brings."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def zipf_batches(count: int) -> list[Tensor]:
    """Ids of unequal frequency, so that there is something to learn; (8, 33) each."""
    generator = torch.Generator().manual_seed(0)
    weights = 1 / torch.arange(1, VOCABULARY + 1).float()
    return [
        torch.multinomial(weights, 8 * 33, replacement=True, generator=generator).view(8, 33)
        for _ in range(count)
    ]


def offenders(parametrisation: str = "mup") -> dict[str, float]:
    by_width = {
        width: sizes(
            proxy_config(width, 2, VOCABULARY, parametrisation=parametrisation, base_width=32),
            zipf_batches(6),
            rate=0.01,
            seeds=(1,),
        )
        for width in WIDTHS
    }
    return not_flat(by_width, TOLERANCE)


def test_activations_and_their_changes_keep_their_scale_at_any_width() -> None:
    assert offenders() == {}


def test_without_mup_they_do_not() -> None:
    found = offenders("standard")
    assert max(found.values()) > 0.75
    assert "layer 1: ffn, change" in found


def without_rate(group: str) -> Callable[..., float]:
    true = mup.learning_rate_multiplier
    return lambda name, *rest: 1.0 if mup.group(name) == group else true(name, *rest)


def without_initial_scale(ending: str) -> Callable[[ModelConfig, str], Initializer]:
    true = mup.initializer

    def initializer(config: ModelConfig, name: str) -> Initializer:
        drawn = true(config, name)
        if not name.endswith(ending):
            return drawn
        width = (
            mup.filter_multiplier(config) if ending.startswith("ffn.proj") else mup.hidden_multiplier(config)
        )
        return drawn.model_copy(update={"std": drawn.std * width**0.5})

    return initializer


@pytest.mark.parametrize(
    ("function", "broken", "where"),
    [
        ("learning_rate_multiplier", lambda: without_rate("decoder_attention"), "attention, change"),
        ("learning_rate_multiplier", lambda: without_rate("decoder_input_ffn"), "ffn, change"),
        ("learning_rate_multiplier", lambda: without_rate("decoder_output_ffn"), "ffn, change"),
        ("logit_scale", lambda: lambda config: config.output_logits_alpha, "logits, change"),
        (
            "attention_scale",
            lambda: lambda config: config.attention_logits_alpha / config.head_dim**0.5,
            "q.k, change",
        ),
        ("initializer", lambda: without_initial_scale("attn.qkv.weight"), "attention, start"),
        ("initializer", lambda: without_initial_scale("attn.proj.weight"), "attention, start"),
        ("initializer", lambda: without_initial_scale("ffn.fc.weight"), "ffn, start"),
        ("initializer", lambda: without_initial_scale("ffn.gate.weight"), "ffn, start"),
        ("initializer", lambda: without_initial_scale("ffn.proj.weight"), "ffn, start"),
    ],
    ids=[
        "rate qkv proj",
        "rate fc gate",
        "rate ffn proj",
        "logits",
        "1/d",
        "init qkv",
        "init proj",
        "init fc",
        "init gate",
        "init ffn proj",
    ],
)
def test_a_missing_multiplier_shows(
    function: str, broken: Callable[[], Any], where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mup, function, broken())
    assert any(name.endswith(where) and value > TOLERANCE for name, value in offenders().items())
