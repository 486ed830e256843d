"""Open a finished dataset for questions: its sets and their splits."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt

from btlm_data.errors import DataError
from btlm_data.formats import dataset
from btlm_data.formats.dataset import DROPPED, FILE_NAME, Dataset
from btlm_data.formats.documents_table import DocumentTable
from btlm_data.lineage.split_view import SplitView
from btlm_data.tokenizer import Tokenizer, load_tokenizer

_COLUMNS_OF_DROPPED = ("file", "line", "offset", "source", "bytes", "hash", "split", "stage", "reason")


@dataclass(frozen=True)
class SetView:
    """One prepared set. name: its folder in the dataset, "" where there is one only."""

    root: Path
    name: str
    manifest: Dataset

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
    """The sets of the dataset in a folder. Raises DataError if there is none, or it is not whole."""
    root = path.parent if path.name == FILE_NAME else path
    if not (root / FILE_NAME).is_file() and (root.parent / FILE_NAME).is_file():
        root = root.parent  # a split's folder was named
    value = dataset.read(root)
    if isinstance(value, Dataset):
        return [SetView(root, "", value)]
    sets = []
    for reference in value.sets:
        of_set = dataset.read(root / reference.name)
        if not isinstance(of_set, Dataset):
            raise DataError(
                f"{root / reference.name} holds sets itself. Restore it, or prepare the dataset again."
            )
        sets.append(SetView(root / reference.name, reference.name, of_set))
    return sets
