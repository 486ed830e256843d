"""Which token ends a document.

Asked for, else as the files beside the tokenizer say, in the order in which transformers believes them, else
the one common name that the vocabulary has:

    tokenizer_config.json     "eos_token": text, or an added token with "content"
    special_tokens_map.json   the same
    generation_config.json    "eos_token_id": one id, or a list of one
    config.json               the same
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from btlm_data.errors import ConfigError
from btlm_data.tokenizer.configuration import special_tokens, vocabulary

COMMON_EOS = (
    "<|endoftext|>",
    "<|end_of_text|>",
    "</s>",
    "<eos>",
    "<EOS>",
    "<|eos|>",
    "[EOS]",
    "<｜end▁of▁sentence｜>",
)
_MAX_SHOWN = 20

Companion = Callable[[str], Any]  # a file's name -> its JSON value, or None if the tokenizer has no such file


def find_eos(name: str, config: Mapping[str, Any], asked: str | None, companion: Companion) -> str:
    """The end-of-document token. name: the tokenizer's, for messages. asked: the setting tokenizer.eos.

    Raises ConfigError if the token requested, or the one that a file states, is not in the vocabulary, or
    none can be determined.
    """
    known = vocabulary(config)
    if asked is not None:
        if asked not in known:
            raise ConfigError(
                f"tokenizer.eos: {asked!r} is not a token of {name}. {_specials(config)} "
                f"{_how_to_set(config)}"
            )
        return asked
    stated, file = _stated(companion, known)
    if stated is not None:
        if stated not in known:
            raise ConfigError(
                f"{file} of {name} says that {stated!r} ends a text, but the tokenizer has no such token. "
                f"{_specials(config)} {_how_to_set(config)}"
            )
        return stated
    common = [token for token in COMMON_EOS if token in known]
    if len(common) != 1:
        raise ConfigError(
            f"Cannot tell which token ends a document in {name}: it has "
            f"{' and '.join(common) or 'none of the common names'}. {_specials(config)} {_how_to_set(config)}"
        )
    return common[0]


def _stated(companion: Companion, known: Mapping[str, int]) -> tuple[str | None, str]:
    """The token that a file beside the tokenizer states, and the file's name; (None, "") if none does."""
    for file in ("tokenizer_config.json", "special_tokens_map.json"):
        values = companion(file)
        token = values.get("eos_token") if isinstance(values, dict) else None
        content = token.get("content") if isinstance(token, dict) else token
        if isinstance(content, str):
            return content, file
    for file in ("generation_config.json", "config.json"):
        values = companion(file)
        ids = values.get("eos_token_id") if isinstance(values, dict) else None
        if isinstance(ids, list) and len(ids) == 1:
            ids = ids[0]
        if type(ids) is int:
            by_id = {token_id: token for token, token_id in known.items()}
            return by_id.get(ids, f"id {ids}"), file
    return None, ""


def _specials(config: Mapping[str, Any]) -> str:
    specials = special_tokens(config)
    more = f" and {len(specials) - _MAX_SHOWN} more" if len(specials) > _MAX_SHOWN else ""
    return f"Its special tokens are {', '.join(specials[:_MAX_SHOWN]) or 'none'}{more}."


def _how_to_set(config: Mapping[str, Any]) -> str:
    """Advice with an example that works as it is: brackets and braces need quotes in YAML."""
    example = next(
        (token for token in special_tokens(config) if "'" not in token and '"' not in token), "</s>"
    )
    if example[0] in "[{":
        quoted = f"""--set 'tokenizer.eos="{example}"' (the inner quotes are needed)."""
        return f"Pass tokenizer.eos, for example {quoted}"
    return f"Pass tokenizer.eos, for example --set tokenizer.eos='{example}'."
