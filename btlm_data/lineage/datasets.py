"""Open a finished dataset for questions: its generations, their sets and the splits of these."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt

from btlm_data.errors import DataError
from btlm_data.formats import dataset, generations
from btlm_data.formats.dataset import DROPPED, FILE_NAME, Dataset
from btlm_data.formats.documents_table import DocumentTable
from btlm_data.lineage.split_view import SplitView
from btlm_data.tokenizer import Tokenizer, load_tokenizer

_COLUMNS_OF_DROPPED = ("file", "line", "offset", "source", "bytes", "hash", "split", "stage", "reason")


@dataclass(frozen=True)
class SetView:
    """One prepared set. name: its folder in the generation, "" where there is one only. generation: from 1.
    samples_before, tokens_before: of earlier generations of the set, by split: samples and stream positions are
    numbered through all of them.
    """

    root: Path
    name: str
    manifest: Dataset
    generation: int = 1
    samples_before: Mapping[str, int] = field(default_factory=dict)
    tokens_before: Mapping[str, int] = field(default_factory=dict)

    @cached_property
    def splits(self) -> dict[str, SplitView]:
        """Its splits, train first."""
        return {name: SplitView(self.root, self.manifest, name) for name in self.manifest.splits}

    @cached_property
    def dropped(self) -> DocumentTable | None:
        """The documents that are in no split; None where the dataset has no such table."""
        path = self.root / DROPPED
        return DocumentTable(path, _COLUMNS_OF_DROPPED) if path.exists() else None

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer that made the ids. Raises ConfigError if it is not on this machine, DataError if it
        is another.
        """
        named = self.manifest.tokenizer
        settings = self.manifest.configuration.get("tokenizer")
        eos = settings.get("eos") if isinstance(settings, dict) else None
        path, revision = self._tokenizer_path()
        tokenizer = load_tokenizer(path, eos=eos, backend="reference", revision=revision)
        if tokenizer.fingerprint != named.fingerprint:
            raise DataError(
                f"The tokenizer {path} on this machine is not the one that made the ids of {self.root} (its fingerprint "
                "differs). Restore that tokenizer."
            )
        return tokenizer

    @cached_property
    def token_bytes(self) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
        """The bytes of text that each id stands for, as Tokenizer.bytes_of_tokens gives them. Returns
        (bytes,) uint8 and starts (vocabulary + 1,) int64.
        """
        return self.tokenizer.bytes_of_tokens()

    def _tokenizer_path(self) -> tuple[str, str | None]:
        from btlm_data.formats import provenance

        name = self.manifest.tokenizer.name
        made = provenance.read(self.root)
        return (made.tokenizer.name, made.tokenizer.revision) if made is not None else (name, None)


def open_dataset(path: Path) -> list[SetView]:
    """The sets of the dataset in a folder, of all its generations, the oldest first. Raises DataError if there
    is none, or it is not whole.
    """
    root = path.parent if path.name == FILE_NAME else path
    if not (root / FILE_NAME).is_file() and (root.parent / FILE_NAME).is_file():
        root = root.parent  # a split's folder was named
    sets: list[SetView] = []
    samples: dict[str, dict[str, int]] = {}
    tokens: dict[str, dict[str, int]] = {}
    for generation in generations.read(root):
        for name, manifest in dataset.read_sets(generation.root).items():
            before = samples.setdefault(name, {}), tokens.setdefault(name, {})
            folder = generation.root / name if name else generation.root
            sets.append(SetView(folder, name, manifest, generation.number, *map(dict, before)))
            for split, entry in manifest.splits.items():
                rows = sum(file.n_examples for file in entry.files)
                before[0][split] = before[0].get(split, 0) + rows
                before[1][split] = before[1].get(split, 0) + entry.stream_tokens
    return sets
