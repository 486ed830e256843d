"""Whose the dataset folder is: what a run may replace there, what it claims, and how the dataset becomes
complete.

    preparing.json   is there while the dataset is not complete: {"run": fingerprint of the run, "files":
                     [names], "source": what it reads}, the files that this run and the interrupted ones before
                     it may have written
    preparing.lease  held by the process that writes there now

Only files that dataset.json or preparing.json name, and pages whose seal holds (formats/pages.py), are ever
replaced or deleted; with --overwrite also shards (*.h5) of others in the very folders that get new ones,
because a reader would mix them. dataset.json is written last.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import msgspec

from btlm_data.errors import DataError, OutputError
from btlm_data.formats import dataset, generations, pages, provenance
from btlm_data.formats.dataset import UNFINISHED_NAME, Dataset, SetList
from btlm_data.splits import SPLITS
from btlm_data.storage import Store, check_name

LEASE = "preparing.lease"
SIGNATURE = f"{dataset.FILE_NAME}.sig"  # made by `btlm-data sign`; of the dataset that is replaced
MAX_BYTES = 1 << 28  # of preparing.json


class _Preparing(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    run: str
    files: list[str]
    source: str | None = None  # not in files of earlier versions

    def __post_init__(self) -> None:
        for name in self.files:
            try:
                check_name(name)
            except DataError as error:
                raise ValueError(str(error)) from None


class OutputFolder(msgspec.Struct, frozen=True):
    """The dataset folder of one run. sets: folders of the prepared sets, "" where there is only one. source: the
    place that the run reads; "" of who only looks.
    """

    store: Store
    sets: Sequence[str]
    source: str = ""

    def state(self, run: str, configuration: Mapping[str, Any], *, overwrite: bool) -> bool:
        """Whether this very dataset is there, complete, by names and sizes.

        run: the run's fingerprint. configuration: of this run, to say what differs. Raises OutputError if the
        folder holds something that is not this run's to replace (unless `overwrite`).
        """
        if overwrite:
            if self.store.size(generations.FILE_NAME) is not None:
                raise OutputError(
                    f"The output folder {self.store.shown} holds a dataset that documents were added to, in generations of "
                    "their own. They would be of another dataset then. Choose another --out, or remove that folder."
                )
            return False
        if self.store.size(dataset.FILE_NAME) is None:
            self._refuse_foreign()
            return False
        try:
            dataset.read(self.store)
            earlier = self._provenance()
        except DataError as error:
            raise OutputError(
                f"The output folder {self.store.shown} holds a dataset.json that this program cannot use: {error}\n"
                "Choose another --out, or pass --overwrite to replace it."
            ) from None
        if earlier is None or earlier.run != run:
            differences = _differences(earlier.configuration, configuration) if earlier is not None else []
            described = "; ".join(differences[:5]) or "other input files or another tokenizer"
            raise OutputError(
                f"The output folder {self.store.shown} holds another dataset. It differs in: {described}. "
                "Choose another --out, or pass --overwrite to replace it (work that both share is kept)."
            )
        return self.is_whole()

    def owner(self) -> tuple[str, str | None] | None:
        """Of the run that has prepared what is there, or is preparing it: its fingerprint, and the place that it
        read, as far as that is recorded. None if there is no such run.
        """
        if (preparing := self._preparing()) is not None:
            return preparing.run, preparing.source
        made = self._provenance()
        return (made.run, made.source.get("place")) if made is not None else None

    def is_whole(self) -> bool:
        """Whether every file that dataset.json names is there with its size (`verify` reads them)."""
        try:
            names = {
                entry.name: entry.size for folder in self._folders() for entry in self.store.list(folder)
            }
            return all(
                (names.get(name) or self.store.size(name)) == size
                for name, size in self._named_by_dataset().items()
            )
        except DataError:
            return False

    def claim(self, run: str, *, overwrite: bool) -> None:
        """Mark the folder as being prepared; from here on it holds no complete dataset.

        What another run left there is removed, so that no file of it can be taken for one of this run's by
        its size.
        """
        earlier = self._preparing()
        owned = set(earlier.files) if earlier is not None else set()
        same_run = earlier is None or earlier.run == run
        try:
            owned |= set(self._named_by_dataset())
            described = self._provenance()
            same_run = same_run and (described is None or described.run == run)
        except DataError:
            same_run = False
        manifests = [
            dataset.FILE_NAME,
            SIGNATURE,
            *(f"{name}/{dataset.FILE_NAME}" for name in self.sets if name),
        ]
        foreign = [name for name in self._shards() if name not in owned] if overwrite else []
        self._write_preparing(run, owned)
        self.store.delete([*manifests, *foreign])
        if not same_run:
            self.store.delete(sorted({*owned, *self._pages()}))
        self.store.sweep()

    def announce(self, run: str, names: Iterable[str]) -> None:
        """Before they are written: these files are this run's."""
        earlier = self._preparing()
        self._write_preparing(run, {*names, *(earlier.files if earlier is not None else [])})

    def publish(self, folder: str, value: Dataset | SetList, made: provenance.Provenance) -> str:
        """Write provenance.json, then dataset.json, into a set's folder; returns the checksum of the latter.

        made: its `dataset` is filled in here.
        """
        data = dataset.encode(value)
        checksum = dataset.decode(data, dataset.FILE_NAME).checksum
        prefix = f"{folder}/" if folder else ""
        described = msgspec.structs.replace(made, dataset=checksum)
        self.store.write(prefix + provenance.FILE_NAME, provenance.encode(described))
        self.store.write(prefix + dataset.FILE_NAME, data)
        return checksum

    def finish(self) -> None:
        """Remove what interrupted or replaced runs, and workers that died, left and this dataset does not
        name; then the mark.
        """
        self.store.sweep()
        earlier = self._preparing()
        wanted = self._named_by_dataset()
        self.store.delete(
            name for name in (earlier.files if earlier is not None else []) if name not in wanted
        )
        self.store.delete([UNFINISHED_NAME])

    def _folders(self) -> list[str]:
        """Every folder that gets shards."""
        return [f"{name}/{split}" if name else split for name in self.sets for split in SPLITS]

    def _shards(self) -> list[str]:
        """Shards in those folders, whatever wrote them."""
        return [
            e.name for folder in self._folders() for e in self.store.list(folder) if e.name.endswith(".h5")
        ]

    def _refuse_foreign(self) -> None:
        earlier = self._preparing()
        owned = set(earlier.files) if earlier is not None else set()
        foreign = [name for name in self._shards() if name not in owned]
        foreign += [
            f"{name}/{dataset.FILE_NAME}"
            for name in self.sets
            if name and earlier is None and self.store.size(f"{name}/{dataset.FILE_NAME}") is not None
        ]
        if foreign:
            raise OutputError(
                f"The output folder {self.store.shown} holds files that this run did not make ({', '.join(foreign[:3])}). "
                "They would be mixed with new ones. Choose another --out, or pass --overwrite to replace them."
            )

    def datasets(self) -> dict[str, Dataset]:
        """The complete dataset that is there, by set folder; empty if there is none. Raises DataError if it
        is damaged.
        """
        if self.store.size(dataset.FILE_NAME) is None:
            return {}
        value = dataset.read(self.store)
        if isinstance(value, Dataset):
            return {"": value}
        sets: dict[str, Dataset] = {}
        for name in value.names:
            path = f"{name}/{dataset.FILE_NAME}"
            entry = dataset.decode(self.store.read(path), f"{self.store.shown}/{path}")
            if not isinstance(entry, Dataset):
                raise DataError(f"{self.store.shown}/{path} describes several sets, one was expected.")
            sets[name] = entry
        return sets

    def _named_by_dataset(self) -> dict[str, int]:
        """Files of the complete dataset that is there, but for its dataset.json: name -> size. Raises
        DataError if damaged.
        """
        named: dict[str, int] = {}
        for folder, value in self.datasets().items():
            prefix = f"{folder}/" if folder else ""
            named |= {prefix + file.name: file.bytes for file in value.stored()}
            for name in (dataset.FILE_NAME, provenance.FILE_NAME) if folder else (provenance.FILE_NAME,):
                size = self.store.size(prefix + name)
                if size is not None:
                    named[prefix + name] = size
        return named

    def _pages(self) -> list[str]:
        """Pages of the dataset that is there, as this program wrote them; what a person changed is theirs."""
        intact = []
        for name in pages.PAGES:
            size = self.store.size(name)
            if size is None or size > pages.MAX_BYTES:
                continue
            seal = pages.seal_of(self.store.read(name))
            if seal is not None and seal.holds:
                intact.append(name)
        return intact

    def _provenance(self) -> provenance.Provenance | None:
        if self.store.size(provenance.FILE_NAME) is None:
            return None
        return provenance.decode(
            self.store.read(provenance.FILE_NAME), f"{self.store.shown}/{provenance.FILE_NAME}"
        )

    def _preparing(self) -> _Preparing | None:
        size = self.store.size(UNFINISHED_NAME)
        if size is None:
            return None
        try:
            return msgspec.json.decode(
                self.store.read(UNFINISHED_NAME, 0, min(size, MAX_BYTES)), type=_Preparing
            )
        except (msgspec.MsgspecError, ValueError, RecursionError) as error:
            raise OutputError(
                f"{self.store.shown}/{UNFINISHED_NAME} cannot be read ({error}), so it is not known which files there are this "
                "program's. Choose another --out, or remove that file and the shards of the interrupted run."
            ) from None

    def _write_preparing(self, run: str, names: Iterable[str]) -> None:
        value = {"run": run, "source": self.source, "files": sorted(names)}
        self.store.write(UNFINISHED_NAME, (json.dumps(value, indent=1, ensure_ascii=False) + "\n").encode())


def _differences(present: Any, current: Any, prefix: str = "") -> list[str]:
    """Settings in which two configurations differ."""
    if isinstance(present, dict) and isinstance(current, dict):
        differences = []
        for key in sorted({*present, *current}):
            differences += _differences(present.get(key), current.get(key), f"{prefix}{key}.")
        return differences
    return (
        []
        if present == current
        else [f"{prefix[:-1]} is {json.dumps(present)} there, {json.dumps(current)} now"]
    )
