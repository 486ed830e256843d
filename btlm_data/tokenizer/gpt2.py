"""GPT-2's own files, vocab.json and merges.txt, as one configuration; the package has a copy of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from btlm_data.errors import ConfigError
from btlm_data.tokenizer.configuration import MAX_TOKENS, Configuration, configuration
from btlm_data.tokenizer.json_files import read_bytes, read_json

GPT2_FOLDER = Path(__file__).parent.parent / "data" / "gpt2"
GPT2_EOS = "<|endoftext|>"


def read_vocab_and_merges(folder: Path) -> Configuration:
    """Byte-level BPE with `<|endoftext|>` as the only special token. Raises ConfigError if the files are not
    in GPT-2's form.
    """
    vocab: Any = read_json(folder / "vocab.json")
    try:
        lines = read_bytes(folder / "merges.txt").decode().split("\n")
    except UnicodeDecodeError:
        lines = ["not UTF-8"]
    merges = [line.split(" ") for line in lines if line and not line.startswith("#version")]
    if (
        not isinstance(vocab, dict)
        or not vocab
        or {*map(type, vocab.values())} != {int}
        or not 0 <= min(vocab.values()) <= max(vocab.values()) < MAX_TOKENS
        or {2, *map(len, merges)} != {2}
    ):
        raise ConfigError(
            f"{folder} holds vocab.json and merges.txt, but not in GPT-2's form. "
            "Download them again, or use a tokenizer.json."
        )
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    model = {
        "type": "BPE",
        "dropout": None,
        "unk_token": None,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": False,
        "byte_fallback": False,
        "ignore_merges": False,
        "vocab": vocab,
        "merges": merges,
    }
    added = [{"id": vocab[GPT2_EOS], "content": GPT2_EOS, **flags}] if GPT2_EOS in vocab else []
    return configuration(model, added, normalizer=None, pre_tokenizer=byte_level, decoder=byte_level)


def byte_characters() -> list[str]:
    """The 256 characters that stand for bytes in byte-level tokens (GPT-2's `bytes_to_unicode`), by byte.

    Bytes that are printable Latin-1 stand for themselves, the others for U+0100 onwards in order.
    """
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(0x100, 0x200))
    return [chr(byte if byte in printable else next(others)) for byte in range(256)]
