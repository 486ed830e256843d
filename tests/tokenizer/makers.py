"""Tokenizers in the shapes of well-known ones, trained here on a few sentences, and texts that are hard
for them.
"""

from __future__ import annotations

import string
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import tokenizers
from hypothesis import strategies as st
from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers, trainers

# Short strings that meet every rule of GPT-2's pattern, and single characters of any kind.
WORDS = [
    "'s",
    "'re",
    "'ll",
    "'S",
    "’t",
    "''",
    " ",
    "  ",
    "\n",
    "\r\n",
    "\t",
    "\u00a0",
    "\u3000",
    "\u200b",
    "a",
    "the",
    " The",
    "é",
    "e\u0301",
]
WORDS += [
    "中文",
    "한",
    "ا",
    "1",
    "23",
    "٣",
    "½",
    "!",
    "--",
    "_",
    "<|endoftext|>",
    "<|endoftext",
    "😀",
    "👩‍👩‍👧",
    "\x00",
    "\x7f",
    "\ufeff",
    "\ua7cb",
    "\U00016d40",
]
TEXTS = st.lists(
    st.one_of(
        st.sampled_from(WORDS),
        st.characters(exclude_categories=["Cs"]),
        st.text(st.characters(exclude_categories=["Cs"]), max_size=8),
    ),
    max_size=30,
).map("".join)


def expected(truth: tokenizers.Tokenizer, texts: Sequence[str]) -> list[list[int]]:
    return [encoding.ids for encoding in truth.encode_batch(list(texts), add_special_tokens=False)]


def as_lists(encoded: tuple[npt.NDArray[Any], npt.NDArray[np.int64]]) -> list[list[int]]:
    ids, offsets = encoded
    assert offsets[0] == 0
    assert offsets[-1] == len(ids)
    return [ids[a:b].tolist() for a, b in pairwise(offsets)]


PATTERNS = {
    "llama3": "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}{1,3}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+",
    "qwen2": "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+",
    "o200k": "[^\\r\\n\\p{L}\\p{N}]?[\\p{Lu}\\p{Lt}\\p{Lm}\\p{Lo}\\p{M}]*[\\p{Ll}\\p{Lm}\\p{Lo}\\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    "|[^\\r\\n\\p{L}\\p{N}]?[\\p{Lu}\\p{Lt}\\p{Lm}\\p{Lo}\\p{M}]+[\\p{Ll}\\p{Lm}\\p{Lo}\\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    "|\\p{N}{1,3}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n/]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+",
}
CORPUS = [
    "The quick brown fox doesn't jump; it's 12345 years old, they've said. What we'll do is up to you, and you'd know.",
    "naïve été ÉTÉ Straße 中文字 한국어 русский текст",
    "for i in range(10):\n    print(i)\n\n\t# done  \r\n",
]


def byte_level_bpe(
    pre_tokenizer: pre_tokenizers.PreTokenizer, normalizer: normalizers.Normalizer | None = None
) -> tokenizers.Tokenizer:
    made = tokenizers.Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizer
    made.decoder = decoders.ByteLevel()
    if normalizer is not None:
        made.normalizer = normalizer
    trainer = trainers.BpeTrainer(
        vocab_size=500,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=["<|endoftext|>"],
        show_progress=False,
    )
    made.train_from_iterator(CORPUS * 3, trainer)
    return made


def by_pattern(name: str) -> tokenizers.Tokenizer:
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    split = pre_tokenizers.Split(Regex(PATTERNS[name]), "isolated")
    return byte_level_bpe(
        pre_tokenizers.Sequence([split, byte_level]), normalizers.NFC() if name == "qwen2" else None
    )


def gpt_neox() -> tokenizers.Tokenizer:
    made = byte_level_bpe(pre_tokenizers.ByteLevel(add_prefix_space=False), normalizers.NFC())
    made.add_tokens([tokenizers.AddedToken(" " * n, normalized=True) for n in (2, 4)])
    return made


def sentencepiece_like() -> tokenizers.Tokenizer:
    """Trained word by word, as SentencePiece is; unknown characters become bytes."""
    made = tokenizers.Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    specials = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    alphabet = ["▁", *string.ascii_letters]
    trainer = trainers.BpeTrainer(
        vocab_size=600, special_tokens=specials, initial_alphabet=alphabet, show_progress=False
    )
    made.train_from_iterator(CORPUS, trainer)
    return made


def llama2() -> tokenizers.Tokenizer:
    made = sentencepiece_like()
    made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    made.pre_tokenizer = None
    return made


def mistral() -> tokenizers.Tokenizer:
    made = sentencepiece_like()
    made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    return made


def gemma() -> tokenizers.Tokenizer:
    made = sentencepiece_like()
    made.normalizer = normalizers.Replace(" ", "▁")
    made.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    return made


def word_level() -> tokenizers.Tokenizer:
    made = tokenizers.Tokenizer(models.WordLevel(unk_token="[UNK]"))
    made.normalizer = normalizers.Lowercase()
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.train_from_iterator(
        CORPUS, trainers.WordLevelTrainer(special_tokens=["[UNK]", "[EOS]"], show_progress=False)
    )
    return made


OTHERS: dict[str, Callable[[], tokenizers.Tokenizer]] = {
    "llama3": lambda: by_pattern("llama3"),
    "qwen2": lambda: by_pattern("qwen2"),
    "o200k": lambda: by_pattern("o200k"),
    "gpt_neox": gpt_neox,
    "llama2": llama2,
    "mistral": mistral,
    "gemma": gemma,
    "word_level": word_level,
}
