"""Samples by index: one data_dir (`Source`), or all data of a configuration (`HDF5Dataset`)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import Dataset

from btlm_data.errors import ConfigError, DataError, InputError
from btlm_train.data.generations import Chosen
from btlm_train.data.manifests import split_folder
from btlm_train.data.mixture import Mixture
from btlm_train.data.read_ahead import Rows
from btlm_train.data.settings import FEATURES, VSL_FEATURES, DataConfig, MixtureEntry
from btlm_train.data.shard_set import ShardSet
from btlm_train.data.state import after_forgetting, data_differences, is_grown

Int64Array = npt.NDArray[np.int64]
Batch = dict[str, torch.Tensor]
PAD = -1  # in a batch of indices: a sample of zeros (`pad_last`)


def parse_subset(text: str, num_samples: int) -> list[tuple[int, int]]:
    """The sample ranges of a data_subset such as "0.0-0.5,0.7-1.0": [int(n * start), int(n * end)) each."""
    ranges = []
    previous = 0.0
    for part in text.strip().split(","):
        try:
            start, end = (float(bound) for bound in part.split("-"))
        except ValueError:
            raise ConfigError(
                f'data_subset is "{text[:200]}", expected ranges of fractions such as "0.0-0.5,0.7-1.0". '
                "Correct it."
            ) from None
        if not previous <= start <= end <= 1:
            raise ConfigError(
                f'data_subset "{text[:200]}" has the range {part.strip()}: '
                "ranges must ascend, not overlap and lie within 0 to 1. Correct it."
            )
        ranges.append((int(num_samples * start), int(num_samples * end)))
        previous = end
    return ranges


class Subset:
    """The samples of `data_subset`: those of some ranges, end to end. total: of all samples."""

    def __init__(self, text: str | None, total: int) -> None:
        ranges = [(0, total)] if text is None else parse_subset(text, total)
        self.starts = np.array([start for start, _ in ranges], np.int64)
        self.ends = np.cumsum([end - start for start, end in ranges], dtype=np.int64)

    def __len__(self) -> int:
        return int(self.ends[-1])

    def stored(self, samples: Int64Array) -> Int64Array:
        """Which of all samples some of the subset are. samples: (n,) int64; returns (n,) int64."""
        part = np.searchsorted(self.ends, samples, side="right")
        before = self.ends[part - 1] * (part > 0)
        return samples - before + self.starts[part]

    def chosen(self, stored: Int64Array) -> Int64Array:
        """The inverse of `stored`; -1 for samples that the subset leaves out. stored: (n,) int64; returns
        (n,) int64.
        """
        sizes = np.diff(np.concatenate([np.zeros(1, np.int64), self.ends]))
        out = np.full(len(stored), -1, np.int64)
        for start, end, size in zip(self.starts.tolist(), self.ends.tolist(), sizes.tolist(), strict=True):
            inside = (stored >= start) & (stored < start + size)
            out[inside] = stored[inside] - start + (end - size)
        return out


class Source:
    """The samples of one data_dir: row i of sample data, or tokens [i * L, i * L + L] (L + 1 of them) of a
    corpus.
    """

    def __init__(
        self, data_dir: str | list[str], subset: str | None, config: DataConfig, generation: Chosen = None
    ) -> None:
        folders = [data_dir] if isinstance(data_dir, str) else data_dir
        whole = [split_folder(folder, ("train",)) for folder in folders]  # `shards` names `shards/train`
        self.shards = ShardSet(whole, config.sort_files, config.cache(), generation)
        first, trailing, length = self.shards.names[0], self.shards.trailing, config.max_sequence_length
        self.by_sample = bool(trailing)
        if not self.by_sample:
            if length is None:
                raise ConfigError(
                    f"{first} is in corpus format (one stream of tokens). Set max_sequence_length to the "
                    "length of a sample."
                )
            if config.use_vsl:
                raise ConfigError(
                    f"{first} is in corpus format, which use_vsl cannot read. Prepare the data with --format "
                    "vsl."
                )
            self.sequence_length, self.stride, self.span = length, length, length + 1
            total = (len(self.shards) - 1) // length
        else:
            if length is not None:
                raise ConfigError(
                    f"max_sequence_length is {length}, and {first} is in sample format, which fixes the "
                    "length. Remove max_sequence_length."
                )
            if len(trailing) != 2 or trailing[0] < len(FEATURES):
                raise DataError(
                    f"{first} holds rows of shape {trailing}, expected (3, sequence length). Give the folder "
                    "of prepared shards."
                )
            if config.use_vsl and trailing[0] != len(VSL_FEATURES):
                raise ConfigError(
                    f"use_vsl needs 5 planes a sample, {first} has {trailing[0]}. Prepare the data with "
                    "--format vsl."
                )
            self.sequence_length, self.stride, self.span = trailing[1], 1, 1
            total = len(self.shards)
        self.subset = Subset(subset, total)

    def __len__(self) -> int:
        return len(self.subset)

    @property
    def has_phases(self) -> bool:
        """Whether it was prepared with a schedule, so that the order of its samples says something."""
        return any(
            len(split.phases) > 1 for m in self.shards.manifests for split in m.dataset.splits.values()
        )

    def read(self, samples: Int64Array) -> Iterator[tuple[int, npt.NDArray[Any]]]:
        """Yield (position in `samples`, what is stored: planes (P, L), or L + 1 tokens of a corpus). samples:
        (n,) int64; the dtype of the result is that of the shards.
        """
        rows = self.shards.read(self._rows(samples), self.span)
        return ((position, row[0]) for position, row in rows) if self.by_sample else rows

    def remote_rows(self, samples: Int64Array) -> Iterator[Rows]:
        """Where in stores these samples are. samples: (n,) int64."""
        return self.shards.remote_rows(self._rows(samples), self.span)

    def _rows(self, samples: Int64Array) -> Int64Array:
        """The first row of each sample."""
        return self.subset.stored(samples) * self.stride


def _source_of(entry: MixtureEntry, config: DataConfig) -> Source:
    """A set of a mixture; `generation` of the configuration is that of sets that say nothing."""
    generation = entry.generation if entry.generation is not None else config.generation
    return Source(entry.data_dir, entry.data_subset, config, generation)


class HDF5Dataset(Dataset[Any]):
    """Samples by index, in the order of the files (or of the mixture). An index gives one sample, a list of
    indices a batch.

    A sample is a dict of int32 arrays (L,): input_ids, attention_mask, labels, and with use_vsl
    attention_span and position_ids. A batch has the same keys, torch.int32 tensors (number of indices, L);
    the index PAD there gives zeros. May be pickled and forked.
    """

    def __init__(self, config: DataConfig | Mapping[str, Any]) -> None:
        self.config = config = config if isinstance(config, DataConfig) else DataConfig.parse(config)
        config.check_sources()
        self.features_list = list(VSL_FEATURES if config.use_vsl else FEATURES)
        self._mixture: Mixture | None = None
        if config.data_dir is not None:
            self._sources = [Source(config.data_dir, config.data_subset, config, config.generation)]
        else:
            used = [entry for entry in config.mixture or () if entry.weight > 0]
            self._sources = [_source_of(entry, config) for entry in used]
            for entry, source in zip(used, self._sources, strict=True):
                if not len(source):
                    raise InputError(
                        f"The set {entry.data_dir} of mixture has no sample (data_subset "
                        f"{entry.data_subset}). Remove it."
                    )
            lengths = [len(source) for source in self._sources]
            compared = None
            if (
                config.strict_compat
            ):  # the original pairs the weights above 0 with all sets, from the first on
                entries = (config.mixture or ())[: len(used)]
                compared = [len(_source_of(entry, config)) for entry in entries]
            self._mixture = Mixture(
                lengths, [entry.weight for entry in used], not config.shuffle, config.shuffle_seed, compared
            )
        kinds = {(source.by_sample, source.sequence_length) for source in self._sources}
        if len(kinds) > 1:
            raise ConfigError(
                f"The sets of mixture differ in format or sequence length: {sorted(kinds)}. Mix sets of one "
                "kind."
            )
        self.by_sample, self.sequence_length = kinds.pop()
        if not len(self):
            raise InputError(
                f"No sample is left of {config.data_dir} (data_subset {config.data_subset}). Widen "
                "data_subset, or add data."
            )

    @property
    def sources(self) -> Sequence[Source]:
        """Its sets: one, or those of the mixture that have a weight."""
        return self._sources

    def __len__(self) -> int:
        return len(self._sources[0]) if self._mixture is None else len(self._mixture)

    def __getitem__(self, index: int | Sequence[int]) -> Any:
        if isinstance(index, Sequence):
            return self.read_batch(index)
        if not 0 <= index < len(self):
            raise IndexError(f"sample {index} of {len(self)}")
        return {name: values[0].numpy() for name, values in self.read_batch([index]).items()}

    def read_batch(self, indices: Sequence[int]) -> Batch:
        """The samples at `indices`, PAD standing for zeros."""
        wanted = np.asarray(indices, np.int64)
        if wanted.size and not PAD <= wanted.min() <= wanted.max() < len(self):
            raise IndexError(f"samples {wanted.min()} to {wanted.max()} of {len(self)}")
        planes = np.empty((len(self.features_list), len(wanted), self.sequence_length), np.int32)
        padded = wanted == PAD
        planes[:, padded] = 0
        for number, positions, samples in self._by_source(wanted):
            rows = positions.tolist()
            for of_samples, stored in self._sources[number].read(samples):
                row = rows[of_samples]
                if self.by_sample:
                    planes[:, row] = stored[: len(planes)]
                else:
                    planes[0, row], planes[1, row], planes[2, row] = stored[:-1], 1, stored[1:]
        return {name: torch.from_numpy(plane) for name, plane in zip(self.features_list, planes, strict=True)}

    def remote_rows(self, indices: Sequence[int]) -> Iterator[Rows]:
        """Where in stores the samples at `indices` are, for reading ahead."""
        for number, _, samples in self._by_source(np.asarray(indices, np.int64)):
            yield from self._sources[number].remote_rows(samples)

    @property
    def is_remote(self) -> bool:
        """Whether some of its shards are in a store."""
        return any(file.remote for source in self._sources for file in source.shards.files)

    def _by_source(self, wanted: Int64Array) -> Iterator[tuple[int, Int64Array, Int64Array]]:
        """For each source in turn: its number, positions in `wanted` (n,), and the samples there (n,); PAD is
        left out.
        """
        positions = np.flatnonzero(wanted != PAD)
        source, sample = np.zeros_like(positions), wanted[positions]
        if self._mixture is not None:
            source, sample = self._mixture.locate(sample)
        for number in np.unique(source).tolist():
            of_source = np.flatnonzero(source == number)
            yield number, positions[of_source], sample[of_source]

    def state_dict(self) -> dict[str, Any]:
        """The settings that decide the samples, under the Model Zoo's names, and (`data`) what the files
        hold. Plain JSON values.
        """
        keys = (
            "use_worker_cache", "max_sequence_length", "shuffle", "shuffle_seed", "data_dir", "data_subset",
            "batch_size", "drop_last", "num_samples", "sort_files", "use_vsl", "pad_last",
        )  # fmt: skip
        state: dict[str, Any] = {key: getattr(self.config, key) for key in keys}
        mixture = self.config.mixture
        state["mixture_params"] = (
            None if mixture is None else [entry.model_dump(exclude_unset=True) for entry in mixture]
        )
        if self.config.strict_compat:
            state["strict_compat"] = True
        state["data"] = [source.shards.fingerprint() for source in self._sources]
        return state

    def load_state_dict(self, state: Mapping[str, Any], strict: bool = True) -> None:
        """Check that `state` is of the same samples. Raises ConfigError or DataError naming each difference;
        never with strict=False.

        batch_size and use_worker_cache may differ, and where the files are: what they hold is compared. A
        state of the Model Zoo, which has neither data_subset nor `data`, is accepted; then the places must be
        the same.
        """
        if not strict:
            return
        current = self.state_dict()
        may_differ = {"batch_size", "use_worker_cache"}
        if "data" in state:
            state, current = _without_locations(state), _without_locations(current)
        optional = may_differ | {"data_subset", "data"}
        differences = [
            f"{key}: {state[key]!r} then, not a setting now" for key in state if key not in current
        ]
        for key, now in current.items():
            if key not in state:
                differences += [] if key in optional else [f"{key}: absent then, {now!r} now"]
            elif key not in may_differ and key != "data" and state[key] != now:
                differences.append(f"{key}: {state[key]!r} then, {now!r} now")
        changed = []
        if "data" in state:
            manifests = [manifest for source in self._sources for manifest in source.shards.manifests]
            folders = [Path(m.path).parent for m in manifests if "://" not in str(m.path)]
            then = after_forgetting(state["data"], current["data"], folders)
            changed = data_differences(then, current["data"])
        if differences or changed:
            kind = ConfigError if differences else DataError
            listing = "\n  ".join(differences + changed)
            raise kind(
                f"The saved state belongs to other data or settings:\n  {listing}\nRestore them, or load "
                f"with strict=False.{_advice(state, current)}"
            )


def _advice(then: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """What to do where files only came behind those of the saved state."""
    if is_grown(then.get("data"), now["data"]):
        return " Where documents were added to a dataset since (btlm-data add), set `generation` to those that were read."
    return ""


def _without_locations(state: Mapping[str, Any]) -> dict[str, Any]:
    """A state without the folders that the data lay in."""
    kept = {key: value for key, value in state.items() if key != "data_dir"}
    if isinstance(mixture := kept.get("mixture_params"), list) and all(isinstance(e, dict) for e in mixture):
        kept["mixture_params"] = [
            {k: v for k, v in e.items() if k not in ("data_dir", "generation")} for e in mixture
        ]
    return kept
