"""What a folder of shards holds, as far as a trainer must know before it builds a model."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from btlm_data.errors import DataError
from btlm_train.data.block_cache import CacheSettings
from btlm_train.data.generations import Chosen
from btlm_train.data.settings import FEATURES, VSL_FEATURES
from btlm_train.data.shard_set import ShardSet


@dataclass(frozen=True)
class DataDescription:
    """What some folders of shards hold, as far as a trainer must know before it builds a model.

    sequence_length and num_samples are None for a corpus of which no length was asked. vocab_size and
    tokenizer_name are None where no manifest says them. digest (hex SHA-256) names the content, wherever the
    folders are.
    """

    sequence_length: int | None
    vocab_size: int | None
    tokenizer_name: str | None
    digest: str
    num_samples: int | None
    format: Literal["sample", "corpus", "vsl"]


def describe_data(
    data_dirs: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    max_sequence_length: int | None = None,
    cache: CacheSettings | None = None,
    generation: Chosen = None,
) -> DataDescription:
    """Look at the shards of `data_dirs` and at their manifests (dataset.json beside them, or one or two
    levels above).

    max_sequence_length: the length a corpus will be read with. cache: where blocks of shards in stores are
    kept. generation: as for ShardSet. Raises InputError or DataError if the folders
    cannot be read as one set.
    """
    given = [data_dirs] if isinstance(data_dirs, (str, os.PathLike)) else list(data_dirs)
    shards = ShardSet([os.fspath(folder) for folder in given], cache=cache, generation=generation)
    kind: Literal["sample", "corpus", "vsl"] = "sample"
    length: int | None
    if not shards.trailing:
        kind, length = "corpus", max_sequence_length
        count = None if length is None else max(0, (len(shards) - 1) // length)
    elif len(shards.trailing) == 2 and shards.trailing[0] >= len(FEATURES):
        kind = "vsl" if shards.trailing[0] == len(VSL_FEATURES) else "sample"
        length, count = shards.trailing[1], len(shards)
    else:
        raise DataError(
            f"{shards.names[0]} holds rows of shape {shards.trailing}, expected (3, sequence length). Give a "
            "folder of shards."
        )
    digest = hashlib.sha256(json.dumps(shards.fingerprint(), sort_keys=True).encode()).hexdigest()
    tokenizers = {manifest.path: manifest.dataset.tokenizer for manifest in shards.manifests}
    for key in ("name", "fingerprint", "vocab_size"):
        values = {path: getattr(tokenizer, key) for path, tokenizer in tokenizers.items()}
        if len(set(values.values())) > 1:
            listing = ", ".join(f"{value!r} in {path}" for path, value in values.items())
            raise DataError(
                f"The data folders were tokenized differently: tokenizer {key} {listing}. "
                "Give data_dir folders of one tokenizer."
            )
    tokenizer = next(iter(tokenizers.values()), None)
    return DataDescription(
        sequence_length=length,
        vocab_size=tokenizer.vocab_size if tokenizer else None,
        tokenizer_name=tokenizer.name if tokenizer else None,
        digest=digest,
        num_samples=count,
        format=kind,
    )
