"""A new dataset beside an old one, made of links to the same bytes until a file changes."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from btlm_data.errors import BtlmError
from btlm_data.formats import dataset, forgotten, generations, key_index, pages, provenance, text_index
from btlm_data.formats.dataset import FILE_NAME, Dataset, SetList
from btlm_data.formats.guarded import require_no_link
from btlm_data.lineage.datasets import SetView

WORK_FOLDER = ".work"
_INDEXES = (key_index.FOLDER, key_index.WORK_FOLDER, text_index.FOLDER, text_index.WORK_FOLDER)  # of a set
_NOT_COPIED = (WORK_FOLDER, generations.INDEX_FOLDER, generations.INDEX_WORK_FOLDER)
SIGNATURES = tuple(
    f"{name}.sig" for name in (FILE_NAME, forgotten.FILE_NAME, generations.FILE_NAME)
)  # of the old dataset


@contextlib.contextmanager
def removed_on_failure(folder: Path) -> Iterator[None]:
    """Remove a half-built folder where the block fails or is interrupted: on a full disk it would take what is to be
    freed. An error of the system that names no file names the folder.
    """
    try:
        yield
    except (BtlmError, OSError, KeyboardInterrupt) as error:
        shutil.rmtree(folder, ignore_errors=True)
        if isinstance(error, OSError) and error.filename is None:
            raise OSError(error.errno, error.strerror, os.fspath(folder)) from error
        raise


def lock_of(root: Path) -> str:
    """The lease beside a dataset's folder, of whoever changes the dataset."""
    return f".{root.name}.forget.lock"


def require_no_links(root: Path, sets: Sequence[SetView]) -> None:
    """Raise DataError if a part of the dataset lies elsewhere: its texts would stay there."""
    for of_set in sets:
        stored = (file.name for file in of_set.manifest.stored())
        for name in (FILE_NAME, provenance.FILE_NAME, forgotten.FILE_NAME, *stored):
            require_no_link(root, (of_set.root.relative_to(root) / name).as_posix())


def copy(root: Path, staging: Path) -> None:
    """The dataset's folder once more: every file a link to the same bytes, but without work folders, the indexes
    of deduplication, keys and text, signatures and pages, and what an unfinished `add` left.
    """
    unfinished = generations.unfinished(root)
    generation_folders = [Path(entry.folder) for entry in generations.listed(root)] or [Path()]
    for folder, folders, names in os.walk(root):
        relative = Path(folder).relative_to(root)
        if relative in generation_folders:
            folders[:] = [name for name in folders if name not in _NOT_COPIED]
        folders[:] = [name for name in folders if name not in _INDEXES and Path(folder) / name != unfinished]
        (staging / relative).mkdir(parents=True)
        shutil.copystat(folder, staging / relative)
        linked = [
            name for name in folders if (Path(folder) / name).is_symlink()
        ]  # of the user: see require_no_links
        for name in [*names, *linked]:
            is_page = relative in generation_folders and name in pages.PAGES and is_ours(Path(folder) / name)
            if name not in SIGNATURES and not is_page:
                link(Path(folder) / name, staging / relative / name)


def is_ours(page: Path) -> bool:
    """Whether a page beside the dataset is as this program wrote it: it is about the old dataset, and may
    show its texts.
    """
    seal = (
        pages.seal_of(page.read_bytes())
        if page.is_file() and page.stat().st_size <= pages.MAX_BYTES
        else None
    )
    return seal is not None and seal.holds


def link(source: Path, target: Path) -> None:
    """A file once more; a copy where the file system has no links."""
    try:
        os.link(source, target, follow_symlinks=False)
    except OSError:  # a file system without links
        shutil.copy2(source, target, follow_symlinks=False)


def replace(path: Path, data: bytes) -> None:
    """A file of the new dataset, in place of the link to the old one."""
    path.unlink(missing_ok=True)
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def publish(folder: Path, value: Dataset | SetList, changed: Mapping[str, Any] | None = None) -> None:
    """dataset.json, and the provenance that belongs to it. changed: settings that are no longer those of the run."""
    replace(folder / FILE_NAME, dataset.encode(value))
    written = dataset.read(folder)
    made = provenance.read(folder)
    if made is not None:
        configuration = {**made.configuration, **(changed or {})}
        renewed = msgspec.structs.replace(made, dataset=written.checksum, configuration=configuration)
        replace(folder / provenance.FILE_NAME, provenance.encode(renewed))


def write_generations(staging: Path) -> None:
    """generations.json with the new checksums, where there is one."""
    entries = generations.listed(staging)
    if entries:
        renewed = [
            generations.Listed(entry.folder, dataset.read(staging / entry.folder).checksum)
            for entry in entries
        ]
        replace(staging / generations.FILE_NAME, generations.encode(generations.GenerationList(renewed)))


def write_list(staging: Path, changed: Mapping[str, Any] | None = None) -> None:
    """The upper dataset.json of several sets, with their new checksums. changed: as for `publish`."""
    value = dataset.read(staging)
    if not isinstance(value, SetList):
        return
    references, fingerprints = [], []
    for reference in value.sets:
        of_set = dataset.read(staging / reference.name)
        references.append(dataset.SetReference(reference.name, of_set.checksum))
        fingerprints.append(of_set.fingerprint)
    publish(staging, msgspec.structs.replace(value, sets=references, fingerprint=fingerprints[0]), changed)


def sync(folder: Path) -> None:
    """Every folder's entries on disk."""
    for name, _, _ in os.walk(folder):
        descriptor = os.open(name, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
