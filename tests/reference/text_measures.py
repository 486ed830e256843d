"""The measures of Gopher's rules in plain Python."""

from __future__ import annotations

from collections import Counter

STOP_WORDS = ("the", "be", "to", "of", "and", "that", "have", "with")
BULLETS = ("•", "-", "*", "‣", "▪", "●", "◦", "–", "·")


def quality(text: str) -> list[float]:
    words = text.split()
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    n, m = len(words) or 1, len(lines) or 1
    stop_words = {word.strip(".,;:!?\"'()").lower() for word in words} & {*STOP_WORDS}
    return [
        len(words),
        sum(map(len, words)) / n,
        text.count("#") / n if words else 0.0,
        (text.count("...") + text.count("…")) / n if words else 0.0,
        sum(line.startswith(BULLETS) for line in lines) / m,
        sum(line.endswith(("...", "…")) for line in lines) / m,
        sum(any(map(str.isalpha, word)) for word in words) / n,
        len(stop_words),
    ]


def repetition(text: str) -> list[float]:
    shares: list[float] = []
    for parts in (text.split("\n"), text.split("\n\n")):
        stripped = [part.strip() for part in parts if part.strip()]
        again = [part for i, part in enumerate(stripped) if part in stripped[:i]]
        shares.append(len(again) / len(stripped) if stripped else 0.0)
        shares.append(sum(map(len, again)) / sum(map(len, stripped)) if stripped else 0.0)
    words = text.split()
    total = sum(map(len, words))
    for n in range(2, 11):
        grams = [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]
        counts = Counter(grams)
        if n <= 4:
            covered = max((c * sum(map(len, gram)) for gram, c in counts.items() if c > 1), default=0)
        else:
            inside = {i + k for i, gram in enumerate(grams) if counts[gram] > 1 for k in range(n)}
            covered = sum(len(words[i]) for i in inside)
        shares.append(covered / total if words else 0.0)
    return shares
