"""The perplexity of a document under an n-gram model, as CCNet takes it.

Wenzek et al. 2020 (arXiv 1911.00359, section 4) train a 5-gram model with KenLM on SentencePiece pieces of Wikipedia
for each language, and divide the documents of a crawl by what such a model says of them: a low perplexity is close to
an encyclopedia's language.
"""

from __future__ import annotations

import math
import subprocess
import sys
import unicodedata
from functools import cache, lru_cache
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from pydantic import Field, field_validator

from btlm_data.cleaning.document import Documents
from btlm_data.cleaning.signal_parameters import (
    Kind,
    SignalParameters,
    Values,
    column_name,
    package_version,
    require_unchanged,
    sha256_of_model,
)
from btlm_data.errors import ConfigError, DataError

MAX_ARPA_BYTES = 1 << 28  # of a model as text, which every process holds in memory, at up to twice this size
MAX_PIECES_BYTES = 1 << 26  # of a SentencePiece model: the largest that are published have some 5 MB
_BINARY = b"mmap lm http://kheafield.com/code"
_LARGEST = 300.0  # decimal exponent of the largest perplexity: float64 ends at 308

# Signs that CCNet writes in ASCII, as `replace-unicode-punctuation.perl` of Moses does.
_SIGNS = {
    **dict.fromkeys("，、", ","),
    **dict.fromkeys("„”“«»」「《》", '"'),
    **dict.fromkeys("´’", "'"),
    **dict.fromkeys("∶：", ":"),
    **dict.fromkeys("–━►", "-"),
    **dict(zip("。？！（）；～〈〉【】％", ".?!();~<>[]%", strict=True)),
    **{"．": ". ", "—": " - ", "…": "..."},
}


class Perplexity(SignalParameters):
    """The perplexity of a document's first `max_chars` characters under an n-gram model of KenLM.

    model: a binary of KenLM (.bin), which all processes share, or an ARPA file of at most MAX_ARPA_BYTES. sentencepiece:
    the model that makes pieces of the text; without one, words between white space are looked up. normalize: "ccnet" is
    CCNet's (small letters without accents, 0 for every digit, signs in ASCII, control characters and with them line
    ends left out), after which the document is one sentence; with "none" each line that has a character is a sentence as
    it stands. The value is 10 ** (-s / n): s the sum of the sentences' log10 probabilities with their ends, n the number
    of words and ends; at most 1e300.
    """

    model: str = Field(min_length=1)
    sentencepiece: str | None = Field(None, min_length=1)
    name: str = "perplexity"
    normalize: Literal["ccnet", "none"] = "ccnet"
    max_chars: int = Field(1_000_000, ge=1, le=10_000_000)

    @field_validator("name")
    @classmethod
    def _named(cls, name: str) -> str:
        return column_name(name)

    @property
    def columns(self) -> dict[str, Kind]:
        """See SignalParameters."""
        return {self.name: "float64"}

    def resource(self) -> list[list[str]]:
        """Of the model, and of SentencePiece's where there is one: the package's version, the absolute path, the SHA-256."""
        resource = [_named_file("kenlm", self.model)]
        if self.sentencepiece is not None:
            resource.append(_named_file("sentencepiece", self.sentencepiece))
        _try(_flat(resource))
        return resource

    def deciding(self) -> Any:
        """All but where the models are."""
        return self.model_dump(mode="json", exclude={"model", "sentencepiece"})

    def identity(self, resource: Any) -> Any:
        """The packages' versions and the models' SHA-256."""
        return [[version, sha256] for version, _, sha256 in resource]

    def measure(self, documents: Documents, resource: Any) -> list[Values]:
        """See SignalParameters. Returns (n,) float64."""
        models = load_models(*_flat(resource))
        values = [self._perplexity(models, text[: self.max_chars]) for text in documents.texts]
        return [np.array(values, np.float64)]

    def _perplexity(self, models: Models, text: str) -> float:
        if self.normalize == "ccnet":
            sentences = [ccnet_normalized(text)]
        else:
            sentences = [line for line in text.splitlines() if line.strip()] or [""]
        score, length = 0.0, 0
        for sentence in sentences:
            words = sentence.encode()
            if models.pieces is not None:
                words = " ".join(models.pieces.encode(sentence, out_type=str)).encode()
            score += models.grams.score(words)
            length += len(words.split()) + 1
        if math.isnan(score):
            raise DataError(
                f"annotate: the model {self.model} gives no number for a sentence: it is damaged. Fetch it or make it again."
            )
        return float(10.0 ** min(-score / length, _LARGEST))


def ccnet_normalized(text: str) -> str:
    """A text as CCNet gives it to SentencePiece: one line."""
    return unicodedata.normalize("NFD", text.strip().lower()).translate(_ccnet_characters())


@cache
def _ccnet_characters() -> dict[int, str | None]:
    """What CCNet puts in the place of a character: nothing for accents that stand alone and for control characters."""
    table: dict[int, str | None] = {}
    for code in range(sys.maxunicode + 1):
        if unicodedata.category(chr(code)) in ("Mn", "Cc"):
            table[code] = None
        elif chr(code).isdecimal():
            table[code] = "0"
    return table | str.maketrans(_SIGNS)


class Models(NamedTuple):
    """What a process has loaded."""

    grams: Any  # kenlm.Model
    pieces: Any  # sentencepiece.SentencePieceProcessor or None


def _named_file(package: str, model: str) -> list[str]:
    version = package_version(package, "perplexity", "perplexity")
    path = Path(model).absolute()
    sha256 = sha256_of_model(path)
    _check_size(package, path)
    return [version, str(path), sha256]


def _check_size(package: str, path: Path) -> None:
    """Raises ConfigError if a model that is read whole is larger than a model can sensibly be."""
    size = path.stat().st_size
    if package == "sentencepiece" and size > MAX_PIECES_BYTES:
        raise ConfigError(
            f"annotate: {path} has {size:,} bytes; a SentencePiece model has at most {MAX_PIECES_BYTES:,}. Name the .model file."
        )
    if package == "kenlm" and size > MAX_ARPA_BYTES:
        with path.open("rb") as file:
            if file.read(len(_BINARY)) != _BINARY:
                raise ConfigError(
                    f"annotate: the model {path} is text of {size:,} bytes, which every process would hold in memory; at most "
                    f"{MAX_ARPA_BYTES:,} are read. Make a binary of it with KenLM's `build_binary`, and name that."
                )


def _flat(resource: list[list[str]]) -> tuple[str, ...]:
    return tuple(value for each in resource for value in each)


# Loads the models as every process does, and asks them something. A damaged binary can end or hold the process that reads it.
_TRIAL = """
import resource, sys
resource.setrlimit(resource.RLIMIT_CPU, (int(sys.argv[1]), int(sys.argv[1])))
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
from btlm_data.cleaning.perplexity import load_models
from btlm_data.errors import BtlmError
try:
    models = load_models(*sys.argv[2:])
except BtlmError as error:
    sys.exit(str(error))
for text in ("", "a b a", "the river is wide . </s> x", "\u4e2d \u0431 0 , ."):
    if models.pieces is not None:
        text = " ".join(models.pieces.encode(text, out_type=str))
    models.grams.score(text)
"""
_TRIAL_SECONDS = 120  # of CPU: an ARPA file of the largest size takes a quarter of it


def _try(named: tuple[str, ...]) -> None:
    """Raises ConfigError if the models cannot be used, as a process of its own finds out. named: as `load_models` has it."""
    command = [sys.executable, "-P", "-c", _TRIAL, str(_TRIAL_SECONDS), *named]
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=10 * _TRIAL_SECONDS,
            check=False,
        )
    except OSError as error:
        raise ConfigError(
            f"annotate: perplexity could not try its model: no process could be started ({error}). Free some memory or processes."
        ) from None
    except subprocess.TimeoutExpired:
        raise ConfigError(f"annotate: the model {named[1]} could not be loaded in time. Try again.") from None
    if done.returncode == 1:
        raise ConfigError(done.stderr.strip().rpartition("\n")[2])
    if done.returncode:
        raise ConfigError(
            f"annotate: a process that read the model {named[1]} died of it (exit code {done.returncode}): the file is damaged. "
            "Fetch it again, or make it again with `build_binary`."
        )


@lru_cache(maxsize=4)
def load_models(*named: str) -> Models:
    """The models, once in a process. named: version, path and SHA-256 of KenLM's, and of SentencePiece's if there is one.

    Raises DataError if a file is another by now, ConfigError if it is no such model.
    """
    for path, sha256 in zip(named[1::3], named[2::3], strict=True):
        require_unchanged(Path(path), sha256)
    return Models(_grams(named[1]), _pieces(named[4]) if len(named) > 3 else None)


def _grams(path: str) -> Any:
    import kenlm

    settings = kenlm.Config()
    settings.load_method = kenlm.LoadMethod.LAZY  # a binary is mapped: its pages are those of all processes
    settings.show_progress = False
    settings.arpa_complain = kenlm.ARPALoadComplain.NONE
    try:
        return kenlm.Model(path, settings)
    except (OSError, ValueError, RuntimeError, MemoryError) as error:
        raise ConfigError(
            f"annotate: {path} is no model of KenLM, or is damaged ({_shown(error)}). Name an ARPA file or what `build_binary` made of one."
        ) from None


def _pieces(path: str) -> Any:
    import sentencepiece

    try:
        return sentencepiece.SentencePieceProcessor(model_file=path)
    except (OSError, ValueError, RuntimeError, MemoryError) as error:
        raise ConfigError(
            f"annotate: {path} is no model of SentencePiece, or is damaged ({_shown(error)}). Name a .model file."
        ) from None


def _shown(error: Exception) -> str:
    """What a library says of a damaged file, in one line: it may quote the file's bytes."""
    return " ".join(str(error).split())[:200]
