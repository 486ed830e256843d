"""Remote files on local disk: verified, bounded, continued inside a file after a kill."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import random
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from btlm_data.advance import reading
from btlm_data.errors import DataError, OutputError, SourceUnavailable
from btlm_data.recipe.models import Run
from btlm_data.sources.base import Access, Listing, SourceFile
from btlm_data.sources.local import is_lfs_pointer, is_local, path_of, unchanged
from btlm_data.sources.pool import Partial, Pool, Whole, key_of, remove_abandoned
from btlm_data.sources.schemes import SCHEMES, scheme_of
from btlm_data.storage.retry import TransientError

logger = logging.getLogger(__name__)
SLOWEST = 1000.0  # bytes a second; a connection slower than this for a whole timeout is cut and made again
_PATIENCE = 0.5  # seconds that a reader waits for room before files downloaded ahead are removed to make it
_PROGRESS = 2**16  # new bytes that make an attempt count as progress
_ABANDONED = 7 * 86_400.0  # seconds; an unfinished run's downloads are removed after a week without use


class Stopped(Exception):
    """Downloading ahead is to end."""


def default_folder() -> Path:
    """Where downloads go without --cache-dir: beside the hub's own cache, in the user's cache folder, or
    where one can write.
    """
    candidates = [
        Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "btlm-data",
        Path(tempfile.gettempdir()) / f"btlm-data-{os.getuid()}",
    ]
    if home := os.environ.get("HF_HOME"):
        candidates.insert(0, Path(home).expanduser() / "btlm-data")
    return next((folder for folder in candidates if _can_write(folder)), candidates[0])


@dataclass(frozen=True)
class Fetcher:
    """Gives local copies of source files, in any process and any working directory. Picklable: it holds
    settings only.

    folder: absolute; this run's own. limit: bytes in it at once. kept: absolute; where downloads stay for
    good (--keep-downloads), or None. access: how servers are asked. secrets: URL of a file -> the URL with
    its signature. schemes: URL scheme -> module, as in schemes.SCHEMES where this was made.
    """

    folder: str
    limit: int
    kept: str | None = None
    access: Access = field(default_factory=Access)
    secrets: tuple[tuple[str, str], ...] = field(default=(), repr=False)
    schemes: tuple[tuple[str, str], ...] = tuple(SCHEMES.items())

    @staticmethod
    def of(run: Run, listing: Listing | None = None) -> Fetcher:
        """As the run's options say. listing: what is to be fetched; needed where its addresses are signed."""
        base = path_of(run.cache_dir) if run.cache_dir else default_folder()
        folder = run.work_dir or run.out
        absolute = str(path_of(folder)) if is_local(folder) else folder
        name = f"run-{hashlib.sha256(absolute.encode('utf-8', 'surrogatepass')).hexdigest()[:16]}"
        return Fetcher(
            folder=str(base / name),
            limit=run.cache_size,
            kept=str(base / "kept") if run.keep_downloads else None,
            access=Access.of(run),
            secrets=tuple(sorted(listing.secrets.items())) if listing is not None else (),
            schemes=tuple(SCHEMES.items()),
        )

    @contextlib.contextmanager
    def local_copy(self, file: SourceFile) -> Iterator[Path]:
        """The path of `file`'s bytes, good for the length of the block; downloaded first where that is
        needed.

        Hold one file at a time: who waits for room while another file is in use may wait forever. Raises
        SourceUnavailable if it cannot be downloaded, DataError if its bytes are wrong twice, InputError if it
        is no longer what was listed (before the block, and for a local file after it too), OutputError if it
        does not fit.
        """
        reading(file.name)
        if is_local(file.url):
            unchanged(file)
            yield Path(file.url.removeprefix("file://"))
            unchanged(file)
            return
        if (copy := self._copy_elsewhere(file)) is not None:
            yield copy
            return
        whole = self.fetch(file)
        try:
            if is_lfs_pointer(_head(whole.path)):
                raise DataError(
                    f"{file.name} is a Git LFS pointer, not the data itself. Ask the owner of {file.url} to upload the data, or leave the file out."
                )
            yield whole.path
        finally:
            whole.release()

    def release(self, files: Sequence[SourceFile]) -> None:
        """The run is over: remove the copies of its files, except those that are to be kept."""
        if any(not is_local(file.url) for file in files) and Path(self.folder).exists():
            self.pool().remove()

    def check_room(self, files: Sequence[SourceFile]) -> None:
        """Before any work: can each file, and all of those to be kept, fit? Raises OutputError saying how
        much is needed.
        """
        remote = [file for file in files if not is_local(file.url)]
        if not remote:
            return
        largest = max(remote, key=lambda file: file.size)
        if largest.size > self.limit:
            raise OutputError(
                f"{largest.name} has {largest.size / 1e9:.3f} GB, more than --cache-size allows ({self.limit / 1e9:.3f} GB). "
                f"Set --cache-size to at least {largest.size * 1.05 / 1e9 + 0.001:.3f}GB."
            )
        total = sum(file.size for file in remote)
        if min(self.limit, total) > (room := self._room()):
            logger.warning(
                "Downloads may take %.3f GB at once (--cache-size), and their disk has room for %.3f GB: %s. Lower it, or choose another --cache-dir.",
                min(self.limit, total) / 1e9,
                room / 1e9,
                self.folder,
            )
        if self.kept is not None and total > self.limit:
            raise OutputError(
                f"--keep-downloads would keep {total / 1e9:.3f} GB, and --cache-size allows {self.limit / 1e9:.3f} GB. "
                f"Set --cache-size to at least {total * 1.01 / 1e9 + 0.001:.3f}GB, or leave --keep-downloads out."
            )

    def begin(self) -> None:
        """Before the first download of a run: remove what runs that were never finished left a week ago."""
        remove_abandoned(Path(self.folder).parent, time.time() - _ABANDONED)

    def pool(self) -> Pool:
        """The folder of this run's downloads."""
        return Pool(Path(self.folder), self.limit, Path(self.kept) if self.kept else None)

    def fetch(self, file: SourceFile) -> Whole:
        """The file in the folder, in use. Raises as `local_copy`."""
        pool = self.pool()
        patient_until = time.monotonic() + _PATIENCE
        for pause in pauses(None):
            held = pool.obtain(key(file), file.size, lambda _: time.monotonic() > patient_until)
            if held is not None:
                break
            time.sleep(pause)
        assert held is not None
        return held if isinstance(held, Whole) else self.complete(file, held, None)

    def complete(self, file: SourceFile, partial: Partial, stop: threading.Event | None) -> Whole:
        """Download and verify what Pool.obtain gave the right to; whatever happens, nothing stays taken.
        Raises as `local_copy`; Stopped.
        """
        try:
            problem = None
            for _ in range(2):  # once more from the start if it is wrong
                self._fill(file, partial, stop)
                problem = _problem(file, partial.pieces())
                if problem is None:
                    return partial.finish()
                partial.restart()
                logger.warning("%s: %s", file.name, problem)
            raise DataError(  # noqa: TRY301
                f"{file.name} was downloaded twice from {file.url} and is not what its listing says: {problem}. "
                "The copy on the server or something between is damaged: try again later, or read a mirror (docs/sources.md)."
            )
        except BaseException:
            partial.leave()
            raise

    def has_elsewhere(self, file: SourceFile) -> bool:
        """Whether another program keeps the file on this machine, so that it need not be downloaded."""
        return self._copy_elsewhere(file) is not None

    def _fill(self, file: SourceFile, partial: Partial, stop: threading.Event | None) -> None:
        """Append to `partial` until it has all its bytes. Raises SourceUnavailable after too many attempts
        without progress.
        """
        attempts = self.access.retry.attempts()
        most = partial.received
        if most > file.size:
            partial.restart()
            most = 0
        while partial.received < file.size:
            try:
                self._receive(file, partial, stop)
            except TransientError as error:
                if error.restart:
                    partial.restart()
                progress = partial.received >= most + min(_PROGRESS, max(1, file.size // 8))
                most = max(most, partial.received)
                pause = attempts.failed(error, progress=progress)
                if pause is None:
                    raise SourceUnavailable(
                        f"{file.name} could not be downloaded from {file.url}: {error}, and {self.access.retry.retries} repeats did not help. "
                        "Check the network and the server, and run the same command again: it continues from here. "
                        "For slow or strict servers raise --set run.retries=N or --set run.timeout=SECONDS."
                    ) from error
                logger.info("%s: %s; asking again in %.1f s", file.name, error, pause)
                end = time.monotonic() + pause
                while (left := end - time.monotonic()) > 0:
                    check(stop)
                    time.sleep(min(left, 0.1))

    def _receive(self, file: SourceFile, partial: Partial, stop: threading.Event | None) -> None:
        """One attempt: append pieces as they come; cut a connection that only trickles."""
        url = dict(self.secrets).get(file.url, file.url)
        pieces = scheme_of(file.url, dict(self.schemes)).stream(file, url, partial.received, self.access)
        timeout = self.access.timeout
        window_start, window_bytes = time.monotonic(), 0
        try:
            for piece in pieces:
                check(stop)
                room = file.size - partial.received
                partial.append(piece[:room] if len(piece) > room else piece)
                if len(piece) > room:
                    raise TransientError(
                        f"the server sends more than the {file.size:,} bytes listed", restart=True
                    )
                window_bytes += len(piece)
                now = time.monotonic()
                if now - window_start >= timeout:
                    if window_bytes < SLOWEST * timeout and partial.received < file.size:
                        raise TransientError(
                            f"only {window_bytes:,} bytes came in {now - window_start:.0f} s"
                        )
                    window_start, window_bytes = now, 0
        finally:
            close = getattr(pieces, "close", None)
            if close is not None:
                close()
        if partial.received < file.size:
            raise TransientError(f"the connection ended after {partial.received:,} of {file.size:,} bytes")

    def _copy_elsewhere(self, file: SourceFile) -> Path | None:
        """The copy that another program keeps (as `hf download` does), if it is right."""
        path = scheme_of(file.url, dict(self.schemes)).local_path(file)
        if path is None or not os.path.isfile(path) or os.path.getsize(path) != file.size:
            return None
        with open(path, "rb") as stream:
            return Path(path) if _problem(file, iter(lambda: stream.read(2**20), b"")) is None else None

    def _room(self) -> int:
        """Bytes the folder could grow to before its disk is full. Makes no folder: `--plan` asks too."""
        folder = Path(self.folder)
        taken = self.pool().usage() if folder.is_dir() else 0
        return shutil.disk_usage(_existing(folder)).free + taken


def key(file: SourceFile) -> str:
    """The name under which a file is held."""
    return key_of(file.url, file.size, file.version)


def check(stop: threading.Event | None) -> None:
    """Raises Stopped if it is time to."""
    if stop is not None and stop.is_set():
        raise Stopped


def pauses(stop: threading.Event | None) -> Iterator[float]:
    """Seconds to sleep between two looks at the folder, growing from 5 to 50 ms, without end. Raises Stopped.

    They differ by chance, so that two processes that were in each other's way are not again.
    """
    pause = 0.005
    while True:
        check(stop)
        yield pause * random.uniform(0.5, 1.5)
        pause = min(pause * 1.5, 0.05)


def _problem(file: SourceFile, pieces: Iterator[bytes]) -> str | None:
    """What is wrong with these bytes, by what a listing lets us check; None: nothing.

    That is SHA-256 (LFS), git's own hash (small files on the hub), else the size alone.
    """
    sha256 = hashlib.sha256()
    git: Any = None
    if file.sha256 is None and file.version.startswith("git:"):
        git = hashlib.sha1(b"blob %d\0" % file.size, usedforsecurity=False)
    size = 0
    for piece in pieces:
        if file.sha256 is not None:
            sha256.update(piece)
        if git is not None:
            git.update(piece)
        size += len(piece)
    if size != file.size:
        return f"{size:,} bytes, {file.size:,} are listed"
    if file.sha256 is not None and sha256.hexdigest() != file.sha256:
        return f"its SHA-256 is {sha256.hexdigest()}, listed is {file.sha256}"
    if git is not None and git.hexdigest() != file.version.removeprefix("git:"):
        return f"its git hash is {git.hexdigest()}, listed is {file.version.removeprefix('git:')}"
    return None


def _head(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(64)


def _existing(folder: Path) -> Path:
    """The folder, or the nearest one above that is there."""
    return next(above for above in (folder, *folder.parents) if above.exists())


def _can_write(folder: Path) -> bool:
    return os.access(_existing(folder.absolute()), os.W_OK | os.X_OK)
