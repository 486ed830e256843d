"""The two libraries that encode: `tokenizers`, which is the reference, and fastokens, which is fast."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from itertools import chain
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
import numpy.typing as npt

from btlm_data.errors import DataError
from btlm_data.tokenizer.configuration import to_json

if TYPE_CHECKING:
    import fastokens
    import tokenizers

Backend = Literal["fastokens", "tokenizers"]
Offsets = npt.NDArray[np.int64]


class Encoder(Protocol):
    """What a backend does: nothing but ids for a few short texts."""

    name: Backend

    def encode(self, texts: Sequence[str]) -> tuple[npt.NDArray[np.uint32], Offsets]:
        """Flat ids of all n texts (uint32), and n + 1 int64 offsets into them. Shapes: (ids,) and (n + 1,)."""


class Fast:
    """fastokens; flat buffers in and out, one thread. It is loaded when it is first needed, which takes a fifth of a second: what
    only decodes ids does without it.
    """

    name: Backend = "fastokens"

    def __init__(self, config: Mapping[str, Any]) -> None:
        self._config = config

    @cached_property
    def tokenizer(self) -> fastokens.Tokenizer:
        """The library's own. Raises ValueError for a tokenizer it does not know."""
        # Read when the library is first imported; one thread a worker, as the engine decides how many workers
        # there are.
        os.environ.setdefault("FASTOKENS_BPE_THREADS", "1")
        import fastokens

        with panics_are_errors(self.name):
            return fastokens.Tokenizer.from_json_str(to_json(self._config))

    def encode(self, texts: Sequence[str]) -> tuple[npt.NDArray[np.uint32], Offsets]:
        """See Encoder."""
        with panics_are_errors(self.name):
            ids, offsets = self.tokenizer.encode_batch_flat(
                list(texts), add_special_tokens=False, split_special_tokens=True
            )
        return np.frombuffer(ids, "<u4"), np.frombuffer(offsets, "<u8").astype(np.int64)


class Reference:
    """Hugging Face `tokenizers`, told to treat special tokens in text as text. It is loaded when it is first needed: what only decodes
    ids mostly does without it (Tokenizer.decode).
    """

    name: Backend = "tokenizers"

    def __init__(self, config: Mapping[str, Any]) -> None:
        self._config = config

    @cached_property
    def tokenizer(self) -> tokenizers.Tokenizer:
        """The library's own. Raises Exception for a tokenizer it refuses."""
        # Read at every call; its threads would multiply with our workers, and a fork after their use prints a
        # warning.
        os.environ["TOKENIZERS_PARALLELISM"] = "false"
        import tokenizers

        with panics_are_errors(self.name):
            loaded = tokenizers.Tokenizer.from_str(to_json(self._config))
        loaded.encode_special_tokens = True
        return loaded

    def encode(self, texts: Sequence[str]) -> tuple[npt.NDArray[np.uint32], Offsets]:
        """See Encoder."""
        loaded = self.tokenizer
        try:
            with panics_are_errors(self.name):
                encodings = loaded.encode_batch_fast(list(texts), add_special_tokens=False)
        except LibraryPanic:
            raise
        except Exception as error:  # `tokenizers` raises bare Exceptions
            raise CannotEncode(self.name, str(error)) from error
        lists = [encoding.ids for encoding in encodings]
        offsets = np.cumsum([0, *map(len, lists)], dtype=np.int64)
        return np.fromiter(chain.from_iterable(lists), np.uint32, int(offsets[-1])), offsets

    def decode(self, ids: Sequence[int]) -> str:
        """The text of `ids`, special tokens shown; bytes that are not UTF-8 appear as U+FFFD."""
        with panics_are_errors(self.name):
            text: str = self.tokenizer.decode(list(ids), skip_special_tokens=False)
        return text


class CannotEncode(DataError):
    """A library refused a text, for example as the vocabulary has no token for what it does not know. reason: what it said."""

    def __init__(self, library: str, reason: str) -> None:
        super().__init__(
            f"The tokenizer library {library} cannot encode a text: {reason}. Correct the tokenizer, or use another."
        )
        self.reason = f"{library} cannot encode every text with it: {reason}"


class LibraryPanic(DataError):
    """A library in Rust panicked, for example as an expression took too many steps. reason: what it said."""

    def __init__(self, library: str, reason: str) -> None:
        super().__init__(
            f"The tokenizer library {library} failed: {reason}. A rule of the tokenizer or a bug of the "
            "library is the "
            "cause; set tokenizer.backend=reference, or use another tokenizer."
        )
        self.reason = f"{library} failed: {reason}"


@contextmanager
def panics_are_errors(library: str) -> Iterator[None]:
    """Turn a panic of a library in Rust into a LibraryPanic: it arrives as a BaseException, which nothing
    else would catch.
    """
    try:
        yield
    except BaseException as error:
        if type(error).__name__ == "PanicException":
            raise LibraryPanic(library, str(error)) from error
        raise
