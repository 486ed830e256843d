"""A tokenizer.json reduced to what decides ids, as a dict: the form in which tokenizers are compared and
handed to libraries.

    "version", "added_tokens", "normalizer", "pre_tokenizer", "decoder", "model"
    "truncation", "padding", "post_processor": None

The rest of a tokenizer.json (truncation, padding, post-processing) adds or removes tokens; here document text
is data.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from hashlib import sha256
from pathlib import Path
from typing import Annotated, Any

import msgspec

from btlm_data.errors import ConfigError
from btlm_data.tokenizer.json_files import decode, read_bytes

logger = logging.getLogger(__name__)

Configuration = dict[str, Any]

MAX_TOKENS = 2**21  # how many, and ids are below this; the largest vocabularies in use have about 2^18
MAX_DEPTH = 16  # of normalizers and pre-tokenizers within each other
MAX_COMPONENTS = 1000
_FLAGS = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": True, "special": False}
_PATTERN_KEYS = ("Regex", "String", "pattern", "content", "prepend", "replacement")
_Id = Annotated[int, msgspec.Meta(ge=0, lt=MAX_TOKENS)]


class AddedToken(msgspec.Struct):
    """A token outside the model's own vocabulary. Flags as in `tokenizers`; only their types are checked
    here.
    """

    id: _Id
    content: Annotated[str, msgspec.Meta(min_length=1, max_length=10_000)]
    single_word: bool = False
    lstrip: bool = False
    rstrip: bool = False
    normalized: bool = True
    special: bool = False


class _Model(msgspec.Struct):
    vocab: dict[str, _Id] | Annotated[list[tuple[str, float]], msgspec.Meta(max_length=MAX_TOKENS)]
    merges: list[str | tuple[str, str]] = msgspec.field(default_factory=list)
    dropout: float | None = None


class _TokenizerJson(msgspec.Struct):
    """What must hold of a tokenizer.json before its parts are handed on."""

    model: _Model
    added_tokens: list[AddedToken] | None = None
    normalizer: dict[str, Any] | None = None
    pre_tokenizer: dict[str, Any] | None = None
    decoder: dict[str, Any] | None = None


def read_tokenizer_json(path: Path) -> Configuration:
    """Read a tokenizer.json. Raises ConfigError if it cannot be read or is not one."""
    data = read_bytes(path)
    raw: dict[str, Any] = decode(data, path, dict[str, Any])
    decode(data, path, _TokenizerJson)
    model = raw["model"]
    if len(model["vocab"]) > MAX_TOKENS:
        raise ConfigError(
            f"The tokenizer file {path} has {len(model['vocab']):,} tokens; up to {MAX_TOKENS:,} can be "
            "used. "
            "Check where it comes from."
        )
    if not model["vocab"]:
        raise ConfigError(
            f"The tokenizer file {path} has an empty vocabulary. Name the tokenizer.json of a Hugging Face "
            "tokenizer."
        )
    if model.get("dropout"):
        logger.warning(
            "%s asks for BPE dropout; it is switched off, as the same text must always give the same ids",
            path,
        )
        model["dropout"] = None
    if "merges" in model:  # both spellings that `tokenizers` reads, so that the fingerprint is the same
        model["merges"] = [m.split(" ", 1) if isinstance(m, str) else m for m in model["merges"]]
    added = sorted(
        ({**_FLAGS, **token} for token in raw.get("added_tokens") or []), key=lambda t: int(t["id"])
    )
    config = configuration(
        model,
        added,
        normalizer=raw.get("normalizer"),
        pre_tokenizer=raw.get("pre_tokenizer"),
        decoder=raw.get("decoder"),
    )
    _check_size(config, path)
    return config


def configuration(
    model: dict[str, Any],
    added_tokens: list[dict[str, Any]],
    *,
    normalizer: dict[str, Any] | None,
    pre_tokenizer: dict[str, Any] | None,
    decoder: dict[str, Any] | None,
) -> Configuration:
    """The parts in the one form described at the top of this module."""
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added_tokens,
        "normalizer": normalizer,
        "pre_tokenizer": pre_tokenizer,
        "post_processor": None,
        "decoder": decoder,
        "model": model,
    }


def with_declared_tokens(config: Configuration, stated: Any, source: str) -> Configuration:
    """`config` with the tokens that a tokenizer_config.json declares beside it, in `added_tokens_decoder`:
    {id: token}.

    Older repositories declare special tokens only there, and transformers adds them after the vocabulary.
    source: the tokenizer's name for messages. Raises ConfigError if a token's id is not the one behind the
    vocabulary.
    """
    declared = stated.get("added_tokens_decoder") if isinstance(stated, dict) else None
    if not isinstance(declared, dict) or not declared:
        return config
    try:
        tokens = [
            msgspec.convert({**token, "id": int(token_id)}, AddedToken)
            for token_id, token in declared.items()
        ]
    except (msgspec.ValidationError, TypeError, ValueError) as error:
        raise ConfigError(
            f"{source}: added_tokens_decoder in tokenizer_config.json is not as transformers writes it "
            f"({error}). "
            "Correct or remove it."
        ) from None
    known = vocabulary(config)
    added = list(config["added_tokens"])
    next_id = max(known.values()) + 1
    for token in sorted(tokens, key=lambda t: t.id):
        if token.content in known:
            continue
        if token.id != next_id:
            raise ConfigError(
                f"{source}: tokenizer_config.json declares {token.content!r} with id {token.id}, but "
                "tokenizer.json does "
                f"not have it, and its next free id is {next_id}. Load and save the tokenizer with "
                "transformers, and "
                "name the tokenizer.json that it writes."
            )
        added.append(msgspec.to_builtins(token))
        next_id += 1
    return {**config, "added_tokens": added}


def vocabulary(config: Mapping[str, Any]) -> dict[str, int]:
    """Token text -> id, added tokens included. A Unigram vocabulary is a list of (token, score); its ids are
    positions.
    """
    vocab = config["model"]["vocab"]
    if isinstance(vocab, dict):
        ids = dict(vocab)
    else:
        ids = {entry[0]: position for position, entry in enumerate(vocab)}
    return ids | {token["content"]: int(token["id"]) for token in config["added_tokens"]}


def special_tokens(config: Mapping[str, Any]) -> list[str]:
    """The special tokens, by id."""
    return [token["content"] for token in config["added_tokens"] if token["special"]]


def fingerprint(config: Mapping[str, Any]) -> str:
    """Hex SHA-256 over what decides ids, as JSON with sorted keys and no spaces; independent of any library's
    version.
    """
    keys = ("model", "normalizer", "pre_tokenizer", "decoder", "added_tokens")
    return sha256(msgspec.json.encode({key: config[key] for key in keys}, order="sorted")).hexdigest()


def to_json(config: Mapping[str, Any]) -> str:
    """The configuration as a tokenizer.json that both libraries read; merges as texts where that is the same, since fastokens
    reads them in half the time.
    """
    model = config["model"]
    texts = [" ".join(merge) for merge in model.get("merges", ())]
    if texts and all(text.count(" ") == 1 for text in texts):
        config = {**config, "model": {**model, "merges": texts}}
    return msgspec.json.encode(config).decode()


def patterns(config: Mapping[str, Any]) -> Iterator[str]:
    """What the normalizer, the pre-tokenizer and the decoder search for, and what they put in its place."""
    for _, value in _components(config):
        if isinstance(value, dict):
            yield from (text for key in _PATTERN_KEYS if isinstance(text := value.get(key), str))


def _check_size(config: Mapping[str, Any], path: Path) -> None:
    for number, (depth, _) in enumerate(_components(config)):
        if depth > 2 * MAX_DEPTH or number > 10 * MAX_COMPONENTS:  # each component is a dict in a list
            raise ConfigError(
                f"The tokenizer file {path} has normalizers, pre-tokenizers or decoders nested more than "
                f"{MAX_DEPTH} "
                f"deep, or more than {MAX_COMPONENTS:,} of them. Check where it comes from."
            )


def _components(config: Mapping[str, Any]) -> Iterator[tuple[int, Any]]:
    """(depth, value) of every value in the normalizer, the pre-tokenizer and the decoder."""
    stack = [(0, config[key]) for key in ("decoder", "pre_tokenizer", "normalizer")]
    while stack:
        depth, value = stack.pop()
        yield depth, value
        if isinstance(value, dict):
            stack += ((depth + 1, inner) for inner in value.values())
        elif isinstance(value, list):
            stack += ((depth + 1, inner) for inner in value)
