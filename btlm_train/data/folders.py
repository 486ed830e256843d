"""The folders that hold shards: on this machine, or below a URL that fsspec opens. A listing, small files,
the folders above.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from btlm_data.errors import DataError, InputError
from btlm_data.formats.sealed_json import read_small
from btlm_data.redact import without_secrets
from btlm_data.storage import is_remote
from btlm_data.storage.remote import RemoteEntry, RemoteStore


class Folder(Protocol):
    """A folder that may hold shards."""

    @property
    def name(self) -> str:
        """As it was given."""

    @property
    def absolute(self) -> str:
        """The same for every spelling of the folder."""

    def shards(self) -> list[str] | None:
        """The names of its *.h5 files, hidden ones too; None where there is no such folder. Raises
        InputError.
        """

    def read(self, name: str, max_bytes: int) -> bytes | None:
        """A small file in it, whole; None if it is not there. Raises DataError if it is larger or no file."""

    def exists(self) -> bool:
        """Whether there is such a folder."""

    def child(self, name: str) -> Folder:
        """A folder in it."""

    def parent(self) -> Folder | None:
        """The folder above it, None at the top."""


def open_folder(name: str) -> Folder:
    """The folder that a path or URL names."""
    return RemoteFolder(name) if is_remote(name) else LocalFolder(name.removeprefix("file://"))


@dataclass(frozen=True)
class LocalFolder:
    """A folder on this machine."""

    name: str

    @property
    def absolute(self) -> str:
        """The absolute path."""
        return os.path.abspath(self.name)

    def shards(self) -> list[str] | None:
        """See `Folder`."""
        try:
            with os.scandir(self.name) as entries:
                return [entry.name for entry in entries if entry.name.endswith(".h5")]
        except FileNotFoundError:
            return None
        except OSError as error:
            raise InputError(
                f"The data folder {self.name} cannot be read ({error.strerror}). Check data_dir, and that it "
                "is mounted."
            ) from None

    def read(self, name: str, max_bytes: int) -> bytes | None:
        """See `Folder`."""
        path = Path(self.absolute) / name
        return read_small(path, max_bytes) if os.path.lexists(path) else None

    def exists(self) -> bool:
        """See `Folder`."""
        return os.path.isdir(self.name)

    def child(self, name: str) -> LocalFolder:
        """See `Folder`."""
        return LocalFolder(os.path.join(self.name, name))

    def parent(self) -> LocalFolder | None:
        """See `Folder`."""
        above = os.path.dirname(self.absolute)
        return None if above == self.absolute else LocalFolder(above)


class RemoteFolder:
    """A folder below a URL. It is listed once."""

    def __init__(self, name: str) -> None:
        self.name = self.absolute = name.rstrip("/")
        self.store = RemoteStore(self.name)
        self._entries: dict[str, RemoteEntry] | None = None

    def entries(self) -> dict[str, RemoteEntry]:
        """The entries directly in it, by name; empty if there is no such folder."""
        if self._entries is None:
            self._entries = {entry.name: entry for entry in self.store.entries() or ()}
        return self._entries

    def shards(self) -> list[str] | None:
        """See `Folder`."""
        entries = self.entries()
        if not entries:
            return None
        return [name for name, entry in entries.items() if name.endswith(".h5") and not entry.is_folder]

    def read(self, name: str, max_bytes: int) -> bytes | None:
        """See `Folder`."""
        entry = self.entries().get(name)
        if entry is None:
            return None
        if entry.is_folder or entry.size > max_bytes:
            raise DataError(
                f"{self.store.shown}/{name} is a folder or has more than {max_bytes:,} bytes: it is no file "
                "of a prepared dataset. Move it away."
            )
        return self.store.read(name)

    def exists(self) -> bool:
        """See `Folder`."""
        return bool(self.entries())

    def child(self, name: str) -> RemoteFolder:
        """See `Folder`."""
        return RemoteFolder(f"{self.name}/{name}")

    def parent(self) -> RemoteFolder | None:
        """See `Folder`. The top is a host or bucket, or a repository of the hub (hf://datasets/OWNER/NAME)."""
        scheme, _, path = self.name.partition("://")
        parts = path.split("/")
        top = {"hf": 3 if parts[0] in ("datasets", "spaces", "buckets") else 2}.get(scheme, 1)
        return RemoteFolder(f"{scheme}://{'/'.join(parts[:-1])}") if len(parts) > top else None


def shown(name: str) -> str:
    """A folder as messages name it."""
    return without_secrets(name)
