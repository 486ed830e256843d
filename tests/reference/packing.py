"""Plain twins of btlm_data/kernels/packing.py and formats/shard_formats/permutation.py: dictionaries, lists and loops, to be believed on reading."""

from __future__ import annotations

from collections.abc import Sequence


def splitmix64(seed: int, count: int) -> list[int]:
    """The first outputs of SplitMix64 (Steele, Lea & Flood 2014, "Fast splittable pseudorandom number generators")."""
    out = []
    for i in range(1, count + 1):
        z = (seed + i * 0x9E3779B97F4A7C15) % 2**64
        z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
        z = (z ^ (z >> 27)) * 0x94D049BB133111EB % 2**64
        out.append(z ^ (z >> 31))
    return out


def permute_index(index: int, n: int, seed: int) -> int:
    """Six Feistel rounds on two halves of equal width, repeated until the value is below n."""
    half = max(4, ((n - 1).bit_length() + 1) // 2)
    while True:
        left, right = divmod(index, 2**half)
        for key in splitmix64(seed % 2**64, 6):
            z = (right + key) * 0xBF58476D1CE4E5B9 % 2**64
            z = (z ^ (z >> 32)) * 0x94D049BB133111EB % 2**64
            left, right = right, left ^ (((z >> 16) ^ (z >> 40)) % 2**half)
        index = left * 2**half + right
        if index < n:
            return index


def place_documents(
    documents: Sequence[Sequence[int]], places: Sequence[int], start: int, stop: int, eos_id: int, fill: int
) -> list[int]:
    """The stream's positions [start, stop): documents at their places, an EOS behind each, `fill` where nothing lies."""
    stream = {}
    for tokens, place in zip(documents, places, strict=True):
        for i, token in enumerate([*tokens, eos_id]):
            stream[place + i] = token
    return [stream.get(position, fill) for position in range(start, stop)]


def best_fit_decreasing(lengths: Sequence[int], seq_len: int, max_pieces: int) -> list[int]:
    """Each piece's row. Of the rows with the least room that is enough, the one that came to that room last."""
    room: list[int] = []
    pieces: list[int] = []
    came: list[int] = []
    rows = [0] * len(lengths)
    for step, piece in enumerate(sorted(range(len(lengths)), key=lambda p: -lengths[p])):
        fits = [
            r
            for r in range(len(room))
            if room[r] >= lengths[piece] and (not max_pieces or pieces[r] < max_pieces)
        ]
        if fits:
            row = min(fits, key=lambda r: (room[r], -came[r]))
        else:
            row = len(room)
            room.append(seq_len)
            pieces.append(0)
            came.append(0)
        room[row] -= lengths[piece]
        pieces[row] += 1
        came[row] = step
        rows[piece] = row
    return rows


def vsl_samples(
    documents: Sequence[Sequence[int]], seq_len: int, eos_id: int
) -> list[list[tuple[int, int, int, int]]]:
    """Every piece of every document as (input, label, attention span, position) for each of its label positions."""
    pieces = []
    for tokens in documents:
        pairs = list(zip(tokens, [*tokens[1:], eos_id], strict=True)) if tokens else []
        for start in range(0, len(pairs), seq_len):
            part = pairs[start : start + seq_len]
            pieces.append([(token, label, len(part) - 1 - i, i) for i, (token, label) in enumerate(part)])
    return pieces
