"""Text from a trained model: one token at a time, from a cache of keys and values, sampled with temperature
and top-p.
"""

from __future__ import annotations

import importlib.resources
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor

from btlm_data.errors import ConfigError
from btlm_data.tokenizer.backends import panics_are_errors
from btlm_data.tokenizer.configuration import read_tokenizer_json, to_json
from btlm_train.model import BTLM, KeyValueCache


def load_tokenizer(name: str, vocab_size: int) -> Tokenizer:
    """`gpt2` (inside the package) or a tokenizer.json.

    Raises ConfigError if there is none, if it is not one, or if it has more tokens than the model.
    """
    if name == "gpt2":
        folder = Path(str(importlib.resources.files("btlm_data") / "data" / "gpt2"))
        tokenizer = Tokenizer(models.BPE.from_file(str(folder / "vocab.json"), str(folder / "merges.txt")))
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
    elif Path(name).is_file():
        text = to_json(read_tokenizer_json(Path(name)))
        try:
            with panics_are_errors("tokenizers"):
                tokenizer = Tokenizer.from_str(text)
        except Exception as error:  # the library raises bare exceptions
            raise ConfigError(
                f"{name} is no tokenizer that the tokenizers library reads ({str(error)[:200]}). Give "
                "another tokenizer.json."
            ) from None
    else:
        raise ConfigError(f"There is no tokenizer {name[:200]}. Give gpt2 or the path of a tokenizer.json.")
    if tokenizer.get_vocab_size() > vocab_size:
        raise ConfigError(
            f"The tokenizer {name} has {tokenizer.get_vocab_size()} tokens, the model {vocab_size}. "
            "Give the tokenizer its data was prepared with."
        )
    return tokenizer


def sample(logits: Tensor, temperature: float, top_p: float, generator: torch.Generator) -> int:
    """Draw a token from logits (V,).

    temperature 0 takes the likeliest; top_p keeps the smallest set of likeliest tokens with that much
    probability. Nucleus sampling: Holtzman et al. 2020, "The curious case of neural text degeneration".
    """
    if temperature == 0:
        return int(logits.argmax())
    probabilities = torch.softmax(logits.float().cpu() / temperature, dim=0)
    if top_p < 1:
        ordered, order = probabilities.sort(descending=True, stable=True)
        kept = ordered.cumsum(0) - ordered < top_p  # by the probability of all likelier tokens
        kept[0] = True
        probabilities = torch.zeros_like(probabilities).scatter(0, order, torch.where(kept, ordered, 0.0))
    return int(torch.multinomial(probabilities, 1, generator=generator))


@torch.no_grad()
def generate(
    model: BTLM,
    prompt: list[int],
    max_new_tokens: int,
    *,
    temperature: float = 1.0,
    top_p: float = 1.0,
    seed: int = 0,
    stop_id: int | None = None,
    use_cache: bool = True,
) -> list[int]:
    """New token ids after `prompt` (not empty), up to max_new_tokens or stop_id (not included).

    ALiBi's dynamic scaling is set for the whole length from the first token on, so that cached keys stay
    valid and use_cache changes no token.
    """
    model.eval()
    device = model.wte.weight.device
    scale = model.position_scale(len(prompt) + max_new_tokens)
    generator = torch.Generator().manual_seed(seed)
    cache = KeyValueCache(model.config.num_hidden_layers) if use_cache else None
    ids, new = list(prompt), list(prompt)
    for _ in range(max_new_tokens):
        hidden = model(
            torch.tensor([new if use_cache else ids], device=device), cache=cache, position_scale=scale
        )
        token = sample(model.logits(hidden[0, -1]), temperature, top_p, generator)
        if token == stop_id:
            break
        ids.append(token)
        new = [token]
    return ids[len(prompt) :]
