"""A place in an object store (or any other file system that fsspec opens) as a store.

An object appears whole under its name or not at all: S3, GCS and Azure put atomically; elsewhere a file goes
to a temporary name and is moved. A file being written is in the temporary folder of this machine (TMPDIR)
until then. Requests are repeated by one policy (retry.py); what fails in the end is reported.
"""

from __future__ import annotations

import contextlib
import datetime
import hashlib
import io
import os
import secrets
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, TypeVar, cast

import msgspec

from btlm_data.errors import BtlmError, ConfigError, DataError, OutputError
from btlm_data.redact import redact, without_secrets
from btlm_data.storage import cached
from btlm_data.storage.base import TEMPORARY_SUFFIX, Entry, check_name
from btlm_data.storage.retry import Retry, TransientError, within

T = TypeVar("T")
_ATOMIC_PUT = {"s3", "s3a", "gs", "gcs", "abfs", "az", "adl", "oss", "memory"}
_PACKAGES = {"s3": "s3fs", "s3a": "s3fs", "gs": "gcsfs", "gcs": "gcsfs", "az": "adlfs", "abfs": "adlfs"}
_FIRST_ANSWER = 6.0  # seconds: with the start of the program, a user waits for less than ten
_READ_AHEAD = 4 * 2**20  # bytes of one range request while a file is read from its beginning


class RemoteEntry(msgspec.Struct, frozen=True):
    """One object or folder directly below a place. tag: what changes when the object is written again (""
    where the store tells nothing but the size).
    """

    name: str
    size: int
    tag: str
    is_folder: bool


class _Creating(msgspec.Struct, frozen=True):
    file: BinaryIO
    path: Path


class RemoteStore:
    """The objects below a URL. See `btlm_data.storage.base.Store` for what each call does."""

    is_local = False

    def __init__(self, url: str, retry: Retry | None = None) -> None:
        self.url = url.rstrip("/")
        self.shown = without_secrets(self.url)
        self.retry = retry or Retry()
        self._opened: tuple[int, Any, str] | None = None

    def __repr__(self) -> str:
        return f"RemoteStore({self.shown!r})"

    def reach(self) -> None:
        """Raise OutputError soon where the store does not answer at all, or the bucket is not there: later
        requests are repeated patiently. What else is wrong, they say themselves.
        """

        def ask() -> None:
            files, root = self._files()
            if self._has_conditions():
                files.call_s3("head_bucket", Bucket=root.split("/", 1)[0])
            else:
                with contextlib.suppress(FileNotFoundError):
                    files.info(root)

        begin, problem = time.monotonic(), ""
        while (left := _FIRST_ANSWER - (time.monotonic() - begin)) > 0:
            try:
                return within(left, ask)
            except FileNotFoundError:
                raise OutputError(
                    f"{self.shown}: there is no such bucket. Create it, or check the name."
                ) from None
            except BtlmError:
                raise
            except PermissionError:
                return None
            except TransientError as error:
                problem = problem or str(error)
            except Exception as error:
                problem = redact(str(error).split("\n")[0] or type(error).__name__)
                words = f"{type(error).__name__} {problem}".lower()
                if "credential" in words:
                    raise _no_permission(self.shown, error, writes=True) from error
                if "connect" not in words:
                    return None
            time.sleep(min(1.0, left))
        raise OutputError(
            f"{self.shown}: the store cannot be reached ({problem}). Check the address and the network "
            "(for other stores than Amazon's: AWS_ENDPOINT_URL)."
        )

    def size(self, name: str) -> int | None:
        """Bytes of an object; None if it is not there."""
        check_name(name)
        try:
            info = self._ask(lambda files, root: files.info(f"{root}/{name}"), name, writes=False)
        except FileNotFoundError:
            return None
        return int(info.get("size") or 0) if info.get("type") != "directory" else None

    def stamp(self, name: str) -> tuple[int, ...] | None:
        """Never known: it would cost a request."""
        return None

    def list(self, prefix: str = "") -> list[Entry]:
        """All objects below `prefix`."""

        def ask(files: Any, root: str) -> dict[str, dict[str, Any]]:
            files.invalidate_cache()
            listing: dict[str, dict[str, Any]] = files.find(
                f"{root}/{prefix}" if prefix else root, detail=True
            )
            return listing

        if prefix:
            check_name(prefix)
        try:
            listing = self._ask(ask, prefix, writes=False)
        except FileNotFoundError:
            return []
        root = self._files()[1]
        entries = []
        for key, info in listing.items():
            name = key[len(root) :].lstrip("/") if key.startswith(root) else ""
            if name and info.get("type") != "directory" and not name.endswith(TEMPORARY_SUFFIX):
                entries.append(Entry(name, int(info.get("size") or 0)))
        return sorted(entries)

    def read(self, name: str, start: int = 0, stop: int | None = None) -> bytes:
        """Bytes [start, stop) of an object."""
        check_name(name)
        if stop is not None and stop <= start:
            return b""
        try:
            data = self._ask(
                lambda files, root: files.cat_file(f"{root}/{name}", start=start or None, end=stop),
                name,
                writes=False,
            )
        except FileNotFoundError:
            raise DataError(
                f"{self.shown}/{name} is missing. Rerun the same command; it is made again."
            ) from None
        if stop is not None and len(data) != stop - start:
            raise DataError(
                f"{self.shown}/{name} ends before byte {stop:,}; it was cut. Rerun the same command; it is made again."
            )
        return cast(bytes, data)

    def entries(self) -> Sequence[RemoteEntry] | None:
        """The entries directly below this prefix, sorted by name, from one listing; None if the prefix does
        not exist.
        """

        def ask(files: Any, root: str) -> Sequence[dict[str, Any]]:
            files.invalidate_cache()
            listing: Sequence[dict[str, Any]] = files.ls(root, detail=True)
            return listing

        try:
            listing = self._ask(ask, "", writes=False)
        except (FileNotFoundError, NotADirectoryError):
            return None
        root = self._files()[1]
        entries = []
        for info in listing:
            key = str(info["name"]).rstrip("/")
            name = key[len(root) :].lstrip("/") if key.startswith(root) else ""
            if name and "/" not in name and not name.endswith(TEMPORARY_SUFFIX):
                is_folder = info.get("type") == "directory"
                entries.append(RemoteEntry(name, int(info.get("size") or 0), _tag(info), is_folder))
        return sorted(entries, key=lambda entry: entry.name)

    def read_unchanged(self, name: str, start: int, stop: int, tag: str) -> bytes | None:
        """Bytes [start, stop) of an object as long as it has `tag` (of `entries`); None where it is gone or
        has another.

        S3 compares as it reads (If-Match); other stores are asked after reading.
        """
        check_name(name)

        def ask(files: Any, root: str) -> bytes | None:
            key = f"{root}/{name}"
            try:
                if self._has_conditions() and tag:
                    data = _read_if_match(files, key, start, stop, tag)
                else:
                    data = files.cat_file(key, start=start, end=stop)
                    files.invalidate_cache()
                    if _tag(files.info(key)) != tag:
                        return None
            except FileNotFoundError:
                return None
            except OSError as error:
                if _is_precondition(error):
                    return None
                raise
            if len(data) != stop - start:
                raise TransientError(f"{len(data):,} bytes arrived of {stop - start:,}")
            return bytes(data)

        return self._ask(ask, name, writes=False)

    def map(self, name: str) -> memoryview:
        """The whole object, read."""
        return memoryview(self.read(name))

    def open(self, name: str) -> BinaryIO:
        """The object for reading, by ranges of some megabytes."""
        size = self.size(name)
        if size is None:
            raise DataError(f"{self.shown}/{name} is missing. Rerun the same command; it is made again.")
        return io.BufferedReader(_Ranges(self, name, size), _READ_AHEAD)

    @contextlib.contextmanager
    def create(self, name: str, *, durable: bool = True) -> Iterator[_Creating]:
        """Write a file on this machine, then put it under its name."""
        check_name(name)
        from btlm_data.storage.local import as_output_error

        try:
            descriptor, temporary = tempfile.mkstemp(prefix="btlm-", suffix=TEMPORARY_SUFFIX)
        except OSError as error:
            raise as_output_error(error, tempfile.gettempdir()) from error
        path = Path(temporary)
        try:
            with cached.from_descriptor(descriptor) as file:
                yield _Creating(file, path)
            self._put(name, path)
        except OSError as error:
            raise as_output_error(error, path) from error
        finally:
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)

    def write(self, name: str, data: bytes, *, durable: bool = True) -> None:
        """Put one small object."""
        check_name(name)
        if self._puts_atomically():
            self._ask(lambda files, root: files.pipe_file(f"{root}/{name}", data), name, writes=True)
            return
        with self.create(name) as creating:
            creating.file.write(data)

    def delete(self, names: Iterable[str]) -> None:
        """Remove objects."""
        chosen = [check_name(name) for name in names]
        for first in range(0, len(chosen), 1000):  # S3 deletes up to a thousand in one request
            part = chosen[first : first + 1000]

            def ask(files: Any, root: str, part: list[str] = part) -> None:
                keys = [f"{root}/{name}" for name in part]
                try:
                    files.rm(keys) if len(keys) > 1 else files.rm_file(keys[0])
                except FileNotFoundError:
                    for key in keys:
                        with contextlib.suppress(FileNotFoundError):
                            files.rm_file(key)

            self._ask(ask, part[0], writes=True)

    def sweep(self) -> int:
        """Nothing to do: what a killed process was writing is on its own machine, or is no object yet."""
        return 0

    def create_new(self, name: str, data: bytes) -> str | None:
        """Put with the condition that no object is there (S3: If-None-Match), where the store has such a
        condition.
        """
        check_name(name)

        def ask(files: Any, root: str) -> bool:
            key = f"{root}/{name}"
            if self._has_conditions():
                try:
                    files.pipe_file(key, data, mode="create")
                except FileExistsError:
                    return False
                return True
            files.invalidate_cache()
            if files.exists(key):
                return False
            files.pipe_file(key, data)
            return bool(files.cat_file(key) == data)  # the last writer has it; the others see that

        if not self._ask(ask, name, writes=True):
            return None
        present = self.read_version(name)
        return present[1] if present is not None and present[0] == data else None

    def replace_version(self, name: str, data: bytes, version: str) -> str | None:
        """Put with the condition that the object is still `version` (S3: If-Match)."""

        def ask(files: Any, root: str) -> bool:
            key = f"{root}/{name}"
            if self._has_conditions():
                try:
                    files.call_s3(
                        "put_object",
                        Bucket=key.split("/", 1)[0],
                        Key=key.split("/", 1)[1],
                        Body=data,
                        IfMatch=version,
                    )
                except OSError as error:
                    if _is_precondition(error):
                        return False
                    raise
                return True
            present = self.read_version(name)
            if present is None or present[1] != version:
                return False
            files.pipe_file(key, data)
            return bool(files.cat_file(key) == data)

        if not self._ask(ask, name, writes=True):
            return None
        present = self.read_version(name)
        return present[1] if present is not None and present[0] == data else None

    def read_version(self, name: str) -> tuple[bytes, str] | None:
        """Content and ETag (or the content's hash, where the store has none)."""
        check_name(name)

        def ask(files: Any, root: str) -> tuple[bytes, str]:
            files.invalidate_cache()
            key = f"{root}/{name}"
            before = files.info(key)
            data = files.cat_file(key)
            tag = str(before.get("ETag") or "")
            return data, tag if self._has_conditions() and tag else hashlib.sha256(data).hexdigest()

        try:
            return self._ask(ask, name, writes=False)
        except FileNotFoundError:
            return None

    def _put(self, name: str, path: Path) -> None:
        size = path.stat().st_size

        def ask(files: Any, root: str) -> None:
            key = f"{root}/{name}"
            if self._puts_atomically():
                files.put_file(str(path), key)
            else:
                folder, _, last = key.rpartition("/")
                files.makedirs(folder, exist_ok=True)
                temporary = f"{folder}/.{last}.{secrets.token_hex(4)}{TEMPORARY_SUFFIX}"
                files.put_file(str(path), temporary)
                files.mv(temporary, key)
            files.invalidate_cache()
            stored = int(files.info(key).get("size") or 0)
            if stored != size:
                raise TransientError(f"{stored:,} bytes arrived of {size:,}")

        self._ask(ask, name, writes=True)

    def _ask(self, ask: Callable[[Any, str], T], name: str, *, writes: bool) -> T:
        """`ask(file system, root)`, repeated while the store has passing faults. FileNotFoundError passes
        through.
        """

        def once() -> T:
            files, root = self._files()
            try:
                return ask(files, root)
            except (BtlmError, FileNotFoundError, TransientError):
                raise
            except PermissionError as error:
                raise _no_permission(f"{self.shown}/{name}", error, writes=writes) from error
            except Exception as error:
                raise TransientError(str(error).split("\n")[0] or type(error).__name__) from error

        try:
            return self.retry.call(once)
        except TransientError as error:
            kind = OutputError if writes else DataError
            raise kind(
                f"{self.shown}/{name} could not be {'written' if writes else 'read'}: {error}. "
                "Check the network and the store, and rerun the same command; it continues from here."
            ) from error

    def _files(self) -> tuple[Any, str]:
        """The file system of this process (a forked child opens its own) and the root in it."""
        if self._opened is None or self._opened[0] != os.getpid():
            filesystem, root = open_filesystem(self.url)
            self._opened = (os.getpid(), filesystem, root.rstrip("/"))
        return self._opened[1], self._opened[2]

    def _protocols(self) -> set[str]:
        protocol = self._files()[0].protocol
        return {protocol} if isinstance(protocol, str) else set(protocol)

    def _puts_atomically(self) -> bool:
        return not _ATOMIC_PUT.isdisjoint(self._protocols())

    def _has_conditions(self) -> bool:
        return not {"s3", "s3a"}.isdisjoint(self._protocols())


class _Ranges(io.RawIOBase):
    """An object as a raw file, each read one range request."""

    def __init__(self, store: RemoteStore, name: str, size: int) -> None:
        self._store, self._name, self._size, self._position = store, name, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._size}[whence]
        self._position = max(0, base + offset)
        return self._position

    def readinto(self, buffer: Any) -> int:
        wanted = min(len(buffer), self._size - self._position)
        if wanted <= 0:
            return 0
        buffer[:wanted] = self._store.read(self._name, self._position, self._position + wanted)
        self._position += wanted
        return wanted


def open_filesystem(url: str) -> tuple[Any, str]:
    """(fsspec file system, path in it). Raises ConfigError for a scheme nothing installed can open."""
    import fsspec

    scheme = url.split("://", 1)[0]
    try:
        filesystem, path = fsspec.core.url_to_fs(url)
    except ImportError as error:
        package = _PACKAGES.get(scheme)
        remedy = f"pip install {package}" if package else "see https://filesystem-spec.readthedocs.io"
        raise ConfigError(
            f"{without_secrets(url)}: {scheme}:// needs a package that is not installed ({error}). Install it: {remedy}."
        ) from None
    except ValueError as error:
        raise ConfigError(
            f"{without_secrets(url)} cannot be opened: {error}. Use s3://, gs://, another scheme of fsspec, or a local path."
        ) from None
    return filesystem, str(path)


def _no_permission(shown: str, error: Exception, *, writes: bool) -> BtlmError:
    kind = OutputError if writes else DataError
    return kind(
        f"{shown}: the store refuses ({error}). Check its credentials (for s3: AWS_PROFILE, or "
        "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY; AWS_ENDPOINT_URL for other stores) and rerun the same command."
    )


def _read_if_match(files: Any, path: str, start: int, stop: int, tag: str) -> bytes:
    """A range of an S3 object, on the condition that it still has the ETag."""
    import fsspec.asyn

    bucket, _, key = path.partition("/")

    async def read() -> bytes:
        answer = await files._call_s3(
            "get_object", Bucket=bucket, Key=key, Range=f"bytes={start}-{stop - 1}", IfMatch=tag
        )
        try:
            return cast(bytes, await answer["Body"].read())
        finally:
            answer["Body"].close()

    return cast(bytes, fsspec.asyn.sync(files.loop, read))


_TAGS = (
    "ETag",
    "etag",
    "generation",
    "blob_id",
    "content_md5",
    "LastModified",
    "last_modified",
    "mtime",
    "created",
)


def _tag(info: dict[str, Any]) -> str:
    """What file systems call the version of an object: a checksum where there is one, else a time (which some
    give as a number in a listing and as a date elsewhere).
    """
    value = next((info[key] for key in _TAGS if info.get(key)), "")
    return str(value.timestamp() if isinstance(value, datetime.datetime) else value)


def _is_precondition(error: OSError) -> bool:
    text = f"{error} {error.__cause__}"
    return "PreconditionFailed" in text or "pre-conditions" in text or "412" in text
