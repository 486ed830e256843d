"""Sampling against the distribution it should draw from."""

from __future__ import annotations

import pytest
import torch

from btlm_train.generate import sample

LOGITS = torch.tensor([2.0, 1.0, 0.5, 0.0, -1.0])


def frequencies(temperature: float, top_p: float, draws: int = 4000) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    counts = torch.bincount(
        torch.tensor([sample(LOGITS, temperature, top_p, generator) for _ in range(draws)]),
        minlength=len(LOGITS),
    )
    return counts / draws


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
@pytest.mark.parametrize("top_p", [0.0, 0.6, 0.9, 1.0])
def test_draws_follow_the_tempered_distribution_cut_to_its_nucleus(temperature: float, top_p: float) -> None:
    expected = torch.softmax(LOGITS / temperature, 0)
    kept = next(n for n in range(1, len(LOGITS) + 1) if n == len(LOGITS) or expected[:n].sum() >= top_p)
    expected[kept:] = 0
    expected /= expected.sum()
    found = frequencies(temperature, top_p)
    assert found[kept:].sum() == 0
    torch.testing.assert_close(found, expected, rtol=0, atol=0.03)  # four standard deviations of 4,000 draws


def test_temperature_0_takes_the_likeliest_and_a_seed_repeats_its_draws() -> None:
    generator = torch.Generator().manual_seed(0)
    assert {sample(LOGITS.roll(2), 0, 0.5, generator) for _ in range(20)} == {2}
    assert torch.equal(frequencies(1.0, 1.0, 50), frequencies(1.0, 1.0, 50))
