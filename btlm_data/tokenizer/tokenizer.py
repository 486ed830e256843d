"""One loaded tokenizer, and the few values that another process needs to load the same one.

Document text is data: a literal `<|endoftext|>` in it is encoded as ordinary text, no special token is ever
added, and the end-of-document token is the caller's to place (`tokenizer.eos_id`). Truncation, padding and
post-processing that a tokenizer.json asks for are ignored, for the same reason.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from btlm_data.errors import DataError
from btlm_data.tokenizer import splitting
from btlm_data.tokenizer.backends import Backend, Encoder, Fast, Offsets, Reference
from btlm_data.tokenizer.configuration import fingerprint, vocabulary
from btlm_data.tokenizer.files import TokenizerFiles
from btlm_data.tokenizer.gpt2 import byte_characters

_SINGLE_BYTE = re.compile("<0x([0-9A-F]{2})>")
# Documents and characters of one call: enough to make the call's cost vanish, few enough for its buffers to stay in
# a core's cache.
MAX_CALL_TEXTS = 1000
MAX_CALL_CHARS = 1 << 18


class TokenizerSpec(msgspec.Struct, frozen=True):
    """All that another process needs to load the same tokenizer: picklable, a few hundred bytes.

    location: "gpt2", an absolute path, or a hub id. revision: the hub commit. backend: what the self-check
    allowed.
    """

    name: str
    location: str
    fingerprint: str
    eos: str
    backend: Backend
    revision: str | None = None

    def load(self) -> Tokenizer:
        """Load without a second self-check; a process that has loaded it before reuses it.

        Raises DataError if the files are no longer the ones the fingerprint was taken from.
        """
        return open_tokenizer(self)


class Tokenizer:
    """One loaded tokenizer; see the module. Made by `load_tokenizer` or `TokenizerSpec.load`.

    fingerprint: hex SHA-256 over the canonical JSON of what decides ids (model, normalizer, pre-tokenizer,
    decoder, added tokens). vocab_size: one more than the largest id. dtype: uint16 where every id fits, else
    uint32.
    """

    def __init__(self, config: Mapping[str, Any], spec: TokenizerSpec, encoder: Encoder) -> None:
        self.spec = spec
        self.name = spec.name
        self.fingerprint = spec.fingerprint
        self.revision = spec.revision
        self.backend: Backend = encoder.name
        ids = vocabulary(config)
        self.eos_id = ids[spec.eos]
        self.vocab_size = max(ids.values()) + 1
        self.dtype: np.dtype[Any] = np.dtype(np.uint16 if self.vocab_size <= 2**16 else np.uint32)
        self._config = config
        self._encoder = encoder
        self._loaded_reference = encoder if isinstance(encoder, Reference) else None
        self._splitter = splitting.Splitter(config)

    def __reduce__(self) -> tuple[Any, ...]:
        return open_tokenizer, (self.spec,)

    def encode_batch(self, texts: Sequence[str]) -> tuple[npt.NDArray[Any], Offsets]:
        """Ids of all texts, flat, in `self.dtype`, and int64 offsets: text i is ids[offsets[i]:offsets[i +
        1]].

        No special tokens are added or recognised. Raises UnicodeEncodeError for a text with a lone surrogate.
        Shapes: (ids,) and (n + 1,).
        """
        return self._encode(texts, self._encoder)

    def encode_reference(self, texts: Sequence[str]) -> tuple[npt.NDArray[Any], Offsets]:
        """The same by `tokenizers`, regardless of the backend; for checks. Shapes: (ids,) in `self.dtype`,
        and (n + 1,).
        """
        return self._encode(texts, self._reference)

    def decode(self, ids: Sequence[int] | npt.NDArray[Any]) -> str:
        """The text of `ids`, special tokens shown; bytes that are no UTF-8 appear as U+FFFD. ids: (n,)
        integers.
        """
        numbers = [int(i) for i in ids]
        known = self._decoded_bytes
        if known is None or not all(0 <= number < self.vocab_size for number in numbers):
            return self._reference.decode(numbers)
        blob, offsets = known
        return b"".join([blob[offsets[i] : offsets[i + 1]] for i in numbers]).decode(errors="replace")

    @cached_property
    def _decoded_bytes(self) -> tuple[bytes, list[int]] | None:
        """`token_bytes`, where the reference's decoder gives just these, so that it need not be loaded; else None.

        It takes a token that has a character which stands for no byte as it is, and an added token as characters that
        stand for bytes, where they do.
        """
        if self.token_bytes is None:
            return None
        characters = set(byte_characters())
        added = {str(token["content"]) for token in self._config["added_tokens"]}
        spelt = "".join(token for token in vocabulary(self._config) if token not in added)
        if not characters.issuperset(spelt) or not all(token.isascii() for token in added):
            return None
        blob, offsets = self.token_bytes
        return blob.tobytes(), offsets.tolist()

    @cached_property
    def token_bytes(self) -> tuple[npt.NDArray[np.uint8], Offsets] | None:
        """The bytes that each id stands for, one after the other, and V + 1 int64 offsets; None where a
        token's bytes depend on its neighbours.

        Joined, they are the text wherever the tokenizer changed nothing before encoding; that is for the
        caller to check. Shapes: (bytes,) and (V + 1,).
        """
        if (self._config["decoder"] or {}).get("type") != "ByteLevel":
            return None
        characters = byte_characters()
        tokens = [""] * self.vocab_size
        for token, token_id in vocabulary(self._config).items():
            tokens[token_id] = token
        for added in self._config["added_tokens"]:
            tokens[int(added["id"])] = "".join(characters[byte] for byte in str(added["content"]).encode())
        points = np.frombuffer("".join(tokens).encode("utf-32-le", "surrogatepass"), "<u4")
        of_bytes = np.array([ord(character) for character in characters])
        byte_of = np.full(
            of_bytes.max() + 2, -1, np.int16
        )  # the last: of all characters that stand for no byte
        byte_of[of_bytes] = np.arange(256)
        values = byte_of[np.minimum(points, len(byte_of) - 1)]
        before = np.concatenate([np.zeros(1, np.int64), np.cumsum(values >= 0)])
        offsets = before[np.cumsum([0, *map(len, tokens)], dtype=np.int64)]
        return values[values >= 0].astype(np.uint8), offsets

    def token_text(self, token_id: int) -> str:
        """One token for people: part of a character appears as U+FFFD. Raises ValueError for an unknown
        id.
        """
        if self.token_bytes is not None and 0 <= token_id < self.vocab_size:
            blob, offsets = self.token_bytes
            piece = blob[offsets[token_id] : offsets[token_id + 1]].tobytes()
            if piece:  # the reference need not be loaded for what its decoder does alike
                return piece.decode(errors="replace")
        if self._reference.tokenizer.id_to_token(int(token_id)) is None:
            raise ValueError(
                f"{self.name} has no token {token_id}; its ids go from 0 to {self.vocab_size - 1}."
            )
        return self.decode([token_id])

    def bytes_of_tokens(self) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
        """The UTF-8 bytes that each id stands for: (blob, starts), those of id i are blob[starts[i]:starts[i
        + 1]].

        The end-of-document token and ids without a token have none. Within a text, as after a space; where a
        tokenizer spells bytes as characters, these bytes, even if they are a part of a character only.
        """
        pieces = [b""] * self.vocab_size
        byte_of = {character: byte for byte, character in enumerate(byte_characters())}
        decoder = self._config.get("decoder") or {}
        byte_level = "ByteLevel" in str(decoder.get("type")) or "'ByteLevel'" in str(decoder)
        added = {token["content"] for token in self._config.get("added_tokens", ())}
        for token, number in vocabulary(self._config).items():
            if number == self.eos_id:
                continue
            if token in added:
                pieces[number] = token.encode()
            elif byte_level:
                pieces[number] = bytes(byte_of[character] for character in token if character in byte_of)
            elif (single := _SINGLE_BYTE.fullmatch(token)) is not None:
                pieces[number] = bytes([int(single[1], 16)])
            else:
                pieces[number] = token.replace("▁", " ").encode()
        starts = np.cumsum([0, *map(len, pieces)], dtype=np.int64)
        return np.frombuffer(b"".join(pieces), np.uint8), starts

    @property
    def _reference(self) -> Reference:
        if self._loaded_reference is None:
            self._loaded_reference = Reference(self._config)
        return self._loaded_reference

    def _encode(self, texts: Sequence[str], encoder: Encoder) -> tuple[npt.NDArray[Any], Offsets]:
        lengths = np.zeros(len(texts) + 1, np.int64)
        parts: list[npt.NDArray[Any]] = []
        for first, last in _calls(texts):
            if last - first == 1 and len(texts[first]) > splitting.MAX_PIECE_CHARS:
                ids = np.empty(0, self.dtype)
                for piece in self._encode_long(texts[first], encoder):
                    start = len(ids)
                    # In place, so that the ids are never held twice.
                    ids.resize(start + len(piece), refcheck=False)
                    ids[start:] = piece
                parts.append(ids)
                lengths[last] = len(ids)
            else:
                encoded, offsets = encoder.encode(texts[first:last])
                parts.append(encoded.astype(self.dtype))
                lengths[first + 1 : last + 1] = np.diff(offsets)
        flat = parts[0] if len(parts) == 1 else np.concatenate(parts) if parts else np.empty(0, self.dtype)
        return flat, np.cumsum(lengths)

    def _encode_long(self, text: str, encoder: Encoder) -> Iterator[npt.NDArray[np.uint32]]:
        """Encode one text longer than MAX_PIECE_CHARS, piece by piece where the rules allow it."""
        for piece, is_word in self._splitter.pieces(text, lambda: self._reference):
            if is_word and len(piece) > splitting.MAX_PIECE_CHARS:
                yield from self._splitter.encode_word(piece, encoder)
            else:
                yield encoder.encode([piece])[0]


def _calls(texts: Sequence[str]) -> Iterator[tuple[int, int]]:
    """Ranges of texts to encode in one call: bounded in number and size, a long text alone."""
    first = size = 0
    for index, text in enumerate(texts):
        length = len(text)
        if index > first and (
            length > splitting.MAX_PIECE_CHARS
            or size + length > MAX_CALL_CHARS
            or index - first == MAX_CALL_TEXTS
        ):
            yield first, index
            first, size = index, 0
        size += length
        if length > splitting.MAX_PIECE_CHARS:
            yield first, index + 1
            first, size = index + 1, 0
    if first < len(texts):
        yield first, len(texts)


_MAX_OPEN = 4
_OPEN: dict[TokenizerSpec, Tokenizer] = {}  # a spec names its content by the fingerprint
_LOCK = threading.Lock()


def open_tokenizer(spec: TokenizerSpec, load: Callable[[], Tokenizer] | None = None) -> Tokenizer:
    """The tokenizer of a spec, loaded once in a process. load: loads it, for a caller that has read its files."""
    with _LOCK:
        tokenizer = _OPEN.pop(spec, None) or (load() if load is not None else _load(spec))
        _OPEN[spec] = tokenizer  # the latest is last
        while len(_OPEN) > _MAX_OPEN:
            del _OPEN[next(iter(_OPEN))]
    return tokenizer


def already_open(fingerprint: str, eos_id: int) -> Tokenizer | None:
    """A tokenizer of this content that this process has loaded, regardless of its place; None if there is
    none.
    """
    with _LOCK:
        equal = (t for t in _OPEN.values() if (t.fingerprint, t.eos_id) == (fingerprint, eos_id))
        return next(equal, None)


def _load(spec: TokenizerSpec) -> Tokenizer:
    config = TokenizerFiles(spec.name, spec.location, spec.revision).read()
    if (now := fingerprint(config)) != spec.fingerprint:
        raise DataError(
            f"The tokenizer {spec.name} ({spec.location}) changed during the run: its fingerprint is "
            f"{now[:12]}, "
            f"the run started with {spec.fingerprint[:12]}. Restore the file, or start again with another "
            "work folder."
        )
    encoder: Encoder = Fast(config) if spec.backend == "fastokens" else Reference(config)
    return Tokenizer(config, spec, encoder)
