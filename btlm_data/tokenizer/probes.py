"""Texts on which tokenizers that are not the same are likely to differ."""

from __future__ import annotations

import random
import unicodedata
from collections.abc import Mapping
from typing import Any

from btlm_data.tokenizer.configuration import vocabulary

VERSION = 1  # increased whenever other texts are made: a verdict of before then counts no more


def probe_texts(config: Mapping[str, Any]) -> list[str]:
    """About 250 kB of text on which tokenizers that are not the same are likely to differ.

    White space of every kind in runs before every kind of character; contractions in every spelling after
    every kind of character; both ends of every run of code points of one general category and of every
    unassigned gap (where newer Unicode tables assign letters), before a contraction, which shows their class;
    digits, emoji sequences, control characters, combining sequences; the special and other added tokens as
    text; long runs; words of the vocabulary in random order; random mixtures. The same for the same
    configuration.
    """
    kinds = [
        "a",
        "Z",
        "é",
        "中",
        "ا",
        "ไ",
        "1",
        "٣",
        "Ⅷ",
        "²",
        "!",
        "'",
        "’",
        "_",
        "—",
        "€",
        "\u0301",
        "😀",
        "👩‍👩‍👧",
        "\u200b",
        "\ufeff",
        "\x00",
        "\x1f",
        "\ue000",
        "\U0010ffff",
    ]
    spaces = [
        chr(c)
        for c in (
            9,
            10,
            11,
            12,
            13,
            28,
            31,
            32,
            0x85,
            0xA0,
            0x1680,
            0x180E,
            0x2000,
            0x200A,
            0x2028,
            0x2029,
            0x202F,
            0x205F,
            0x3000,
        )
    ]
    contractions = [
        "'s",
        "'t",
        "'re",
        "'ve",
        "'m",
        "'ll",
        "'d",
        "'S",
        "'RE",
        "'lL",
        "’s",
        "'x",
        "'",
        "''s",
        "'s's",
        "'st",
    ]
    probes = ["", " ", "\n"]
    probes += [
        f"{kind}{contraction}{after}"
        for kind in [*kinds, " ", "\n"]
        for contraction in contractions
        for after in ("", "b", " b", "1")
    ]
    probes += [
        f"{kind}{space * n}{after}"
        for kind in ("a", "1", "!")
        for space in spaces
        for n in (1, 2, 3)
        for after in ("", "b", "2", "?", "'s", "\n", "中")
    ]
    probes += [f"{first}{second} {second}{first}" for first in kinds for second in kinds]
    points = _telling_code_points()
    probes += ["".join(f"{chr(c)}'s" for c in points[i : i + 64]) for i in range(0, len(points), 64)]
    probes += [
        "".join(f"a{chr(c)}1 {chr(c)}" for c in points[i : i + 64 : 4]) for i in range(0, len(points), 64)
    ]
    for token in config["added_tokens"][:300]:
        content = token["content"]
        probes += [content, f"a{content}b", f" {content} {content}", f"{content[:-1]} {content}\n"]
    probes += [
        run * 2000 for run in ("a", "A", "1", " ", "\n", "!", "\u200b", "中", "é", "ab", " a", "\t\n", "😀")
    ]
    probes += [
        unicodedata.normalize(form, "Ångström ﬁnale 한국어 ｶﾞ ệ Ω ½ İi ſ")
        for form in ("NFC", "NFD", "NFKC", "NFKD")
    ]
    generator = random.Random(0)
    words = [token.replace("Ġ", " ").replace("Ċ", "\n").replace("▁", " ") for token in vocabulary(config)]
    probes += ["".join(generator.choices(words, k=20)) for _ in range(200)]
    mixture = [*kinds, *spaces, *contractions, "the", "The", " of", "ing", "http://", "x=1;", "123", "\r\n"]
    probes += ["".join(generator.choices(mixture, k=12)) for _ in range(1500)]
    return probes


def _telling_code_points() -> list[int]:
    """Ends and middle of each run of one general category up to U+3FFFF, and unassigned gaps densely (wide
    ones sparsely).
    """
    points: set[int] = set()
    start, category = 0, "Cc"
    for point in range(0x40000):
        following = unicodedata.category(chr(point))
        if following != category:
            points |= _of_run(start, point - 1, category)
            start, category = point, following
    points |= _of_run(start, 0x3FFFF, category)
    return sorted(point for point in points if not 0xD800 <= point < 0xE000)


def _of_run(first: int, last: int, category: str) -> set[int]:
    if category == "Cn":
        return {*range(first, last + 1, 1 if last - first < 256 else 16), last}
    return {first, (first + last) // 2, last}
