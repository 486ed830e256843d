"""Where a tokenizer's files are, and reading them: inside the package, in a folder, or on the hub."""

from __future__ import annotations

import functools
import re
from pathlib import Path
from typing import Any

import msgspec

from btlm_data.errors import ConfigError, DataError
from btlm_data.tokenizer.configuration import Configuration, read_tokenizer_json, with_declared_tokens
from btlm_data.tokenizer.gpt2 import GPT2_EOS, GPT2_FOLDER, read_vocab_and_merges
from btlm_data.tokenizer.hub import hub_file, optional_hub_file
from btlm_data.tokenizer.json_files import read_json

BUILT_IN = "gpt2"


@functools.cache
def _built_in() -> Configuration:
    """GPT-2's configuration from the package's own files, read once in a process."""
    return read_vocab_and_merges(GPT2_FOLDER)


class TokenizerFiles(msgspec.Struct, frozen=True):
    """The files of one tokenizer, the same in every process.

    name: as the user gave it. location: BUILT_IN, an absolute path, or a hub id. revision: the hub's commit,
    else None.
    """

    name: str
    location: str
    revision: str | None = None

    @staticmethod
    def locate(name: str, revision: str | None) -> TokenizerFiles:
        """Find what `name` means. Raises ConfigError if nothing, SourceUnavailable if the hub cannot be
        reached.
        """
        if name == BUILT_IN:
            return TokenizerFiles(name, BUILT_IN)
        try:
            path = Path(name).expanduser()
            exists = path.exists()
        except (OSError, ValueError, RuntimeError):  # too long, a NUL, no home folder
            exists = False
        if exists:
            return TokenizerFiles(name, str(path.resolve()))
        if not re.fullmatch(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?", name) or name.endswith(".json"):
            raise ConfigError(
                f"There is no tokenizer at {name}. "
                "Name `gpt2`, a tokenizer.json, a folder that holds one, or a hub id (ORG/NAME)."
            )
        # The commit is the snapshot's folder name; asking for it this way also works offline, from the cache.
        return TokenizerFiles(name, name, hub_file(name, "tokenizer.json", revision).parent.name)

    def read(self) -> Configuration:
        """What decides ids. Raises ConfigError if it cannot be read, DataError if it is no longer there."""
        if self.location == BUILT_IN:
            return _built_in()
        if self.revision is not None:
            config = read_tokenizer_json(hub_file(self.location, "tokenizer.json", self.revision))
        else:
            path = Path(self.location)
            if not path.exists():
                raise DataError(
                    f"The tokenizer {self.name} is no longer at {path}. Restore it and rerun the same "
                    "command."
                )
            if not path.is_dir():
                config = read_tokenizer_json(path)
            elif (path / "tokenizer.json").exists():
                config = read_tokenizer_json(path / "tokenizer.json")
            elif (path / "vocab.json").exists() and (path / "merges.txt").exists():
                config = read_vocab_and_merges(path)
            else:
                raise ConfigError(
                    f"The folder {path} holds neither tokenizer.json nor vocab.json with merges.txt. "
                    "Save the tokenizer there."
                )
        return with_declared_tokens(config, self.companion("tokenizer_config.json"), self.name)

    def companion(self, file: str) -> Any:
        """The JSON value of a file beside the tokenizer; None if there is none. Only for a tokenizer.json by
        its usual name.
        """
        if self.location == BUILT_IN:
            return {"eos_token": GPT2_EOS} if file == "tokenizer_config.json" else None
        path: Path | None
        if self.revision is not None:
            path = optional_hub_file(self.location, file, self.revision)
        else:
            path = Path(self.location)
            if path.name == "tokenizer.json" and path.is_file():
                path = path.parent / file
            elif path.is_dir():
                path = path / file
            else:
                return None
        return read_json(path) if path is not None and path.is_file() else None
