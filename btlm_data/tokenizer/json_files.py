"""Reading JSON files of tokenizers, which come from outside: bounded in size and depth, every error in
words.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar

import msgspec

from btlm_data.errors import ConfigError

MAX_BYTES = 2**26  # the largest tokenizer.json in use has about 35 MB

T = TypeVar("T")


def read_bytes(path: Path) -> bytes:
    """The content of a file. Raises ConfigError if it cannot be read or is too large for a tokenizer's
    file.
    """
    try:
        if not path.is_file():  # a named pipe would wait forever
            raise FileNotFoundError(2, "it is not a file")
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise ConfigError(
            f"The tokenizer file {path} cannot be read: {error.strerror}. Check its name and permissions."
        ) from error
    if len(data) > MAX_BYTES:
        raise ConfigError(
            f"The tokenizer file {path} has more than {MAX_BYTES / 1e6:.0f} MB, too many for a tokenizer. "
            "Check the path."
        )
    return data


def read_json(path: Path) -> Any:
    """The JSON value of a file. Raises ConfigError if it is not JSON."""
    return decode(read_bytes(path), path, Any)


def decode(data: bytes, path: Path, kind: type[T] | Any) -> T:
    """`data` as a value of type `kind` (see msgspec). Raises ConfigError naming the part that is wrong. path:
    for the message.
    """
    try:
        value: T = msgspec.json.decode(data, type=kind)
    except msgspec.ValidationError as error:
        raise ConfigError(
            f"The tokenizer file {path} is not a tokenizer that can be used: {error}. "
            "Name the tokenizer.json of a Hugging Face tokenizer."
        ) from None
    except RecursionError:
        raise ConfigError(
            f"The tokenizer file {path} is nested too deeply to be a tokenizer's. Check where it comes from."
        ) from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"The tokenizer file {path} is not valid JSON: {error}. Name the tokenizer.json of a Hugging Face "
            "tokenizer (a sentencepiece .model has to be converted); if it is one, download it again."
        ) from None
    return value
