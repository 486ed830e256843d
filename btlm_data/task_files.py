"""The files of one task: what it may read (only what it names), and what it writes (which its receipt will
name).
"""

from __future__ import annotations

import contextlib
import json
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from typing import Any, BinaryIO, TypeVar

import numpy.typing as npt

from btlm_data.formats import columns
from btlm_data.formats.columns import Columns, DamagedError
from btlm_data.locations import Stores
from btlm_data.storage import Creating, Store, digest
from btlm_data.task import Artifact, StoreName, Task

T = TypeVar("T")
_PIECE = 4 * 2**20  # bytes
_KEPT = 4  # values kept between the tasks of a process


class TaskFiles:
    """What a work function gets beside its task: named files in, files out.

    Reading a file that the task does not name is a programming error and raises at once. `written` lists the
    outputs.
    """

    def __init__(self, stores: Stores, task: Task) -> None:
        self._stores = stores
        self._named = {(artifact.store, artifact.name): artifact for artifact in task.named()}
        self._resumes = task.resumes
        self.written: list[Artifact] = []

    @property
    def work(self) -> Store:
        """The work folder, for what has no artifact (resuming a part of this very task)."""
        return self._stores.work

    def columns(self, artifact: Artifact) -> Columns:
        """Open a columns file. Raises DamagedError if it is not the one named."""
        store = self._check(artifact)
        stamp = store.stamp(artifact.name)
        if stamp is None:
            return Columns(store, artifact)
        key = (store.url, artifact, stamp)
        opened = Columns(store, artifact, _checked.get(key, lambda: None))
        _checked.put(key, opened.checked)
        return opened

    def read(self, artifact: Artifact) -> bytes:
        """A whole file, checked. Raises DamagedError if it is not the one named."""
        store = self._check(artifact)
        data = store.read(artifact.name)
        if len(data) != artifact.size or digest.checksum(data) != artifact.checksum:
            raise damaged(store, artifact)
        return data

    def read_list(self, artifact: Artifact) -> list[Artifact]:
        """The files that a list of artifacts (`write_list`) names; the task may then read them."""
        files = self.kept(
            ("list", artifact.checksum), lambda: [Artifact(*row) for row in json.loads(self.read(artifact))]
        )
        self._named.update(((file.store, file.name), file) for file in files)
        return files

    def allow(self, artifacts: Sequence[Artifact]) -> None:
        """Let the task read files that a table it has read names."""
        self._named.update(((file.store, file.name), file) for file in artifacts)

    def kept(self, key: Hashable, make: Callable[[], T]) -> T:
        """`make()`, kept for the next tasks of this process that ask for the same key: checksums of what it
        is made from.
        """
        return _kept.get(key, make)

    def write_columns(
        self,
        name: str,
        arrays: Mapping[str, npt.NDArray[Any]],
        meta: Mapping[str, Any] | None = None,
        store: StoreName = "work",
    ) -> Artifact:
        """Write a columns file; outside of the work folder it survives a power cut. arrays: (n, ...) of any dtype, by name."""
        artifact = columns.write(self._stores[store], name, arrays, meta, durable=store != "work")
        artifact = artifact._replace(store=store)
        self.written.append(artifact)
        return artifact

    @contextlib.contextmanager
    def create(
        self, name: str, store: StoreName = "work", *, durable: bool | None = None
    ) -> Iterator[Creating]:
        """Write any other file; it is published, and becomes an output, when the block ends well.

        durable: survives a power cut; by default outside the work folder only.
        """
        with self._stores[store].create(
            name, durable=store != "work" if durable is None else durable
        ) as creating:
            yield creating
            size, checksum = measure(creating.file)
        self.written.append(Artifact(name, size, checksum, store))

    @contextlib.contextmanager
    def create_measured(self, name: str, store: StoreName) -> Iterator[Measured]:
        """Write a large file of the dataset by something that takes its checksum itself, so that it is not read for it again. It is
        published, and becomes an output, when the block ends well.
        """
        with self._stores[store].create(name, durable=store != "work") as creating:
            measured = Measured(creating.file)
            yield measured
            creating.file.flush()
        self.written.append(Artifact(name, measured.size, measured.checksum, store))

    @contextlib.contextmanager
    def create_in_order(self, name: str, store: StoreName) -> Iterator[digest.HashedWriter]:
        """Write a large file of the dataset from its beginning to its end; its checksums are taken on the way. It is published, and
        becomes an output, when the block ends well.
        """
        with (
            self._stores[store].create(name, durable=store != "work") as creating,
            digest.HashedWriter(creating.file) as writer,
        ):
            yield writer
            creating.file.flush()
        self.written.append(Artifact(name, writer.size, writer.checksum, store))

    def pieces(self, artifact: Artifact) -> Iterator[bytes]:
        """A whole file, some MB at a time. Raises DamagedError behind the last one if it is not the one named: what is made of the
        pieces is to be published after that.
        """
        store = self._check(artifact)
        size, hasher = 0, digest.checksummer()
        with store.open(artifact.name) as file:
            while piece := file.read(_PIECE):
                hasher.update(piece)
                size += len(piece)
                yield piece
        if (size, hasher.hexdigest()) != (artifact.size, artifact.checksum):
            raise damaged(store, artifact)

    def adopt(self, artifact: Artifact) -> None:
        """Count a file that an interrupted attempt at this task left as this attempt's own output."""
        assert self._resumes is not None
        assert artifact.name.startswith(self._resumes)
        self._named[artifact.store, artifact.name] = artifact
        self.written.append(artifact)

    def _check(self, artifact: Artifact) -> Store:
        assert self._named.get((artifact.store, artifact.name)) == artifact or artifact in self.written, (
            f"the task reads {artifact.name}, which it does not name"
        )
        return self._stores[artifact.store]


class Measured:
    """A file being written. size, checksum (XXH3, 128 bits): of all of it; who writes it sets them at the end."""

    def __init__(self, file: BinaryIO) -> None:
        self.file, self.size, self.checksum = file, 0, ""


def damaged(store: Store, artifact: Artifact) -> DamagedError:
    """The error for a work file whose bytes are not those that its receipt names."""
    return DamagedError(
        f"The work file {store.shown}/{artifact.name} is damaged: it does not match its checksum. "
        "Rerun the same command: the file is made again.",
        artifact,
    )


def measure(file: BinaryIO) -> tuple[int, str]:
    """Size in bytes and checksum of a file that has just been written."""
    file.flush()
    file.seek(0)
    checksum = digest.checksum_stream(file)
    return file.tell(), checksum


def write_list(store: Store, name: str, artifacts: Sequence[Artifact]) -> Artifact:
    """Write a list of artifacts that many tasks read, so that each names one file and not thousands."""
    data = (json.dumps([list(artifact) for artifact in artifacts], separators=(",", ":")) + "\n").encode()
    store.write(name, data, durable=False)
    return Artifact(name, len(data), digest.checksum(data))


def read_list(store: Store, artifact: Artifact) -> list[Artifact]:
    """Inverse of write_list, outside of a task."""
    return [Artifact(*row) for row in json.loads(store.read(artifact.name))]


class _Kept:
    """A few values by key, the least recently used dropped first. Keys are content, so that no value can be
    stale.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._values: OrderedDict[Hashable, Any] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: Hashable, make: Callable[[], T]) -> T:
        with self._lock:
            if key in self._values:
                self._values.move_to_end(key)
                value: T = self._values[key]
                return value
        made = make()
        if made is not None:
            self.put(key, made)
        return made

    def put(self, key: Hashable, value: object) -> None:
        with self._lock:
            self._values[key] = value
            while len(self._values) > self._size:
                self._values.popitem(last=False)


_kept = _Kept(_KEPT)
# Which chunks of a file this process has checked: about a byte for 16 KiB. The key changes when the file is
# written.
_checked = _Kept(4096)
