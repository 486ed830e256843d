"""The settings of `train_input` and `eval_input`: the Model Zoo's keys, checked, with every error in
words.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PositiveInt, ValidationError

from btlm_data.errors import ConfigError
from btlm_data.recipe.models import Size
from btlm_data.recipe.validation import explain
from btlm_train.data.block_cache import CacheSettings

CACHE_BYTES = 16 * 10**9
FEATURES = ("input_ids", "attention_mask", "labels")
VSL_FEATURES = (*FEATURES, "attention_span", "position_ids")


def check_path(value: Any) -> Any:
    """Refuse the one character that no path can hold."""
    if isinstance(value, str) and "\0" in value:
        raise ValueError("a path cannot hold the character U+0000")
    return value


def _paths_as_text(value: Any) -> Any:
    for path in value if isinstance(value, (list, tuple)) else (value,):
        check_path(path)
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, (list, tuple)):
        return [os.fspath(item) if isinstance(item, os.PathLike) else item for item in value]
    return value


Generation = Annotated[int, Field(ge=1)] | Annotated[list[Annotated[int, Field(ge=1)]], Field(min_length=1)]
DataDir = Annotated[str | list[str], BeforeValidator(_paths_as_text)]


class _Settings(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class MixtureEntry(_Settings):
    """One set of a mixture; weights need not sum to 1."""

    data_dir: DataDir
    weight: float = Field(ge=0, allow_inf_nan=False)
    data_subset: str | None = None
    generation: Generation | Literal["all"] | None = None


class DataConfig(_Settings):
    """The Model Zoo's keys of `train_input` / `eval_input`; meanings as in its GptHDF5MapDataProcessor.

    batch_size is global: all ranks and all micro-batches together. max_sequence_length belongs to the corpus
    format alone. num_samples is the length of an epoch in samples (None: the length of the data). data_subset
    holds ascending ranges of fractions ("0.0-0.5,0.7-1.0"). prefetch_factor (batches per worker) and
    persistent_workers matter with num_workers only. Ours alone: strict_compat, the original's order where it
    is deterministic and a fault of the original's (docs/own-loader.md); generation, which generations of a
    dataset that documents were added to (its number, or several; default: all, the oldest first); cache_dir and cache_size, where
    blocks of shards in stores are kept (default: in the user's cache folder), and how many bytes of them at
    most.
    """

    data_dir: DataDir | None = None
    mixture: Annotated[list[MixtureEntry], Field(max_length=10_000)] | None = None
    batch_size: Annotated[int, Field(ge=1, le=2**31)]
    shuffle: bool = False
    shuffle_seed: int = Field(default=0, ge=0, le=2**62)
    max_sequence_length: PositiveInt | None = None
    data_subset: str | None = None
    drop_last: bool = True
    num_samples: PositiveInt | None = None
    sort_files: bool = True
    use_vsl: bool = False
    pad_last: bool = False
    num_workers: int = Field(default=0, ge=0, le=1024)
    prefetch_factor: Annotated[int, Field(ge=1, le=100_000)] | None = 10
    persistent_workers: bool = True
    use_worker_cache: bool = False
    strict_compat: bool = False
    generation: Generation | Literal["all"] | None = None
    cache_dir: Annotated[str | None, BeforeValidator(_paths_as_text)] = None
    cache_size: Annotated[Size, Field(ge=2**24)] = CACHE_BYTES
    # Accepted because published parameter files carry them; this reader has no use for them.
    data_processor: Literal["GptHDF5MapDataProcessor"] | None = None
    micro_batch_size: Any = None
    vocab_size: Any = None
    repeat: Any = None
    data_transforms: None = None
    dataset_map_fn: None = None

    @classmethod
    def parse(cls, values: Mapping[str, Any]) -> DataConfig:
        """Check `values`. Raises ConfigError naming the key, its value and the nearest known key."""
        try:
            config = cls(**values)
        except ValidationError as error:
            raise ConfigError(explain(error, cls, lambda _: "the data configuration")) from None
        config.check_sources()
        return config

    def check_sources(self) -> None:
        """Raise ConfigError unless there is exactly one of data_dir and mixture, and something to read in
        it.
        """
        if (self.data_dir is None) == (self.mixture is None):
            given = "neither" if self.data_dir is None else "both"
            raise ConfigError(
                f"The data configuration has {given} of data_dir and mixture. Give exactly one of them."
            )
        if self.mixture is not None and not any(entry.weight > 0 for entry in self.mixture):
            raise ConfigError(
                f"No set of mixture has a weight above 0 (weights {[e.weight for e in self.mixture]}). Give "
                "at least one such set."
            )

    def cache(self) -> CacheSettings:
        """Where blocks of shards in stores are kept."""
        return CacheSettings.of(self.cache_dir, self.cache_size)

    def unused_keys(self) -> list[str]:
        """Keys that were set and have no effect here, for the caller to report."""
        keys = [key for key in ("vocab_size", "repeat") if getattr(self, key) is not None]
        return [*keys, "use_worker_cache"] if self.use_worker_cache else keys
