"""Remote files on local disk: verified, bounded, resumed; and a few threads that fetch them before they are needed."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from btlm_data.errors import BtlmError, DataError, SourceUnavailable
from btlm_data.recipe.models import Run
from btlm_data.sources.base import SourceFile
from btlm_data.sources.cache import Cache, Partial, Pin, key_of
from btlm_data.sources.http import LONGEST_RETRY_AFTER, TransientError, backoff

logger = logging.getLogger(__name__)
SLOWEST = 1000.0  # bytes a second; a connection slower than this for a whole timeout is cut and made anew
_PATIENCE = 0.5  # seconds that a reader waits for room before files fetched ahead are dropped for him
_FRESH = 2**16  # new bytes that make an attempt count as progress


class Stopped(Exception):
    """Fetching ahead is to end."""


def is_remote(url: str) -> bool:
    """Whether the bytes have to be fetched."""
    return "://" in url and not url.startswith("file://")


def default_cache_folder() -> Path:
    """Beside the hub's own cache (HF_HOME), or in the user's cache folder."""
    if home := os.environ.get("HF_HOME"):
        return Path(home).expanduser() / "btlm-data"
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "btlm-data"


@dataclass(frozen=True)
class Fetcher:
    """Gives local copies of source files, in any process. Picklable: it holds settings only.

    cache_size: bytes. timeout: seconds without a byte. retries: attempts without progress after the first. pause:
    seconds before the first repeat.
    """

    cache_dir: str
    cache_size: int
    keep: bool = False
    timeout: float = 60.0
    retries: int = 8
    pause: float = 1.0

    @staticmethod
    def of(run: Run) -> Fetcher:
        """As the run's options say."""
        folder = run.cache_dir or str(default_cache_folder())
        return Fetcher(folder, run.cache_size, run.keep_downloads, run.timeout, run.retries, run.retry_pause)

    @contextlib.contextmanager
    def local_copy(self, file: SourceFile) -> Iterator[Path]:
        """The path of `file`'s bytes, good for the length of the block; fetched first where that is needed.

        Hold one file at a time: whoever waits for room while pinning another file may wait for himself. Raises
        SourceUnavailable if it cannot be fetched, DataError if its bytes are wrong twice, InputError if it has changed since it was listed,
        OutputError if it does not fit.
        """
        if not is_remote(file.url):
            yield Path(file.url.removeprefix("file://"))
            return
        if (kept := self._already_downloaded(file)) is not None:
            yield kept
            return
        pin = self.fetch(file)
        try:
            yield pin.path
        finally:
            pin.release()

    def checksum(self, file: SourceFile) -> str | None:
        """SHA-256 of a remote file: as listed, or as found when it was fetched (ask while inside `local_copy`). None for a local file."""
        if not is_remote(file.url) or file.sha256:
            return file.sha256
        return self._cache().checksum(_key(file))

    def release(self, files: Sequence[SourceFile]) -> None:
        """The run is over: remove the copies of its files, unless they are to be kept."""
        if self.keep or not any(is_remote(file.url) for file in files):
            return
        cache = self._cache()
        for file in files:
            if is_remote(file.url):
                cache.drop(_key(file), file.size)

    def check_room(self, files: Sequence[SourceFile]) -> None:
        """Before any work: can each file, and with `keep` all of them, fit? Raises OutputError saying how much is needed."""
        from btlm_data.errors import OutputError
        from btlm_data.sources.cache import CHECKSUM_BYTES

        remote = [file for file in files if is_remote(file.url)]
        if not remote:
            return
        largest = max(remote, key=lambda file: file.size)
        if largest.size + CHECKSUM_BYTES > self.cache_size:
            raise OutputError(
                f"{largest.name} has {largest.size / 1e9:.3f} GB, more than --cache-size allows ({self.cache_size / 1e9:.3f} GB). "
                f"Set --cache-size to at least {largest.size * 1.05 / 1e9 + 0.001:.3f}GB."
            )
        total = sum(file.size + CHECKSUM_BYTES for file in remote)
        if min(self.cache_size, total) > (room := self._room()):
            logger.warning(
                "The cache may grow to %.3f GB (--cache-size), and its disk has room for %.3f GB: %s. Lower it, or choose another --cache-dir.",
                min(self.cache_size, total) / 1e9,
                room / 1e9,
                self.cache_dir,
            )
        if self.keep and total > self.cache_size:
            raise OutputError(
                f"--keep-downloads would keep {total / 1e9:.3f} GB, and --cache-size allows {self.cache_size / 1e9:.3f} GB. "
                f"Set --cache-size to at least {total * 1.01 / 1e9 + 0.001:.3f}GB, or leave --keep-downloads out."
            )

    def _room(self) -> int:
        """Bytes the cache could grow to before its disk is full. Makes no folder: `--plan` asks too."""
        folder = Path(self.cache_dir).absolute()
        if (folder / "files").is_dir():
            return shutil.disk_usage(folder).free + self._cache().usage()
        return shutil.disk_usage(next(above for above in folder.parents if above.exists())).free

    def fetch(self, file: SourceFile) -> Pin:
        """The file in the cache, pinned. Raises as `local_copy`."""
        cache = self._cache()
        patient_until = time.monotonic() + _PATIENCE
        for pause in _pauses(None):
            held = cache.obtain(_key(file), file.size, lambda _: time.monotonic() > patient_until)
            if held is not None:
                break
            time.sleep(pause)
        assert held is not None
        return held if isinstance(held, Pin) else self.complete(cache, file, held, None)

    def complete(self, cache: Cache, file: SourceFile, partial: Partial, stop: threading.Event | None) -> Pin:
        """Fetch and verify what Cache.obtain gave the right to; whatever happens, nothing stays locked. Raises as `local_copy`; Stopped."""
        try:
            return self._complete(cache, file, partial, stop)
        except BaseException:
            partial.leave()
            raise

    def _complete(
        self, cache: Cache, file: SourceFile, partial: Partial, stop: threading.Event | None
    ) -> Pin:
        """Fetch what lacks, verify the whole, and once more from the start if it is wrong."""
        problem = None
        for _ in range(2):
            self._fill(cache, file, partial, stop)
            found = _verify(file, partial)
            problem = found.problem
            if problem is None:
                return partial.finish(found.sha256)
            partial.restart()
            logger.warning("%s: %s", file.name, problem)
        raise DataError(
            f"{file.name} was fetched twice from {file.url} and is not what its listing says: {problem}. "
            "The copy on the server or something between is damaged: try again later, or read a mirror (docs/sources.md)."
        )

    def _fill(self, cache: Cache, file: SourceFile, partial: Partial, stop: threading.Event | None) -> None:
        """Append to `partial` until it has all its bytes. Raises SourceUnavailable after too many attempts without progress."""
        best = partial.have
        failures = 0
        if best > file.size:
            partial.restart()
            best = 0
        while partial.have < file.size:
            _wait(cache.pause_left, stop)
            try:
                with cache.connection(lambda: _check(stop)):
                    self._receive(file, partial, stop)
            except TransientError as error:
                if error.restart:
                    partial.restart()
                if partial.have >= best + min(_FRESH, max(1, file.size // 8)):
                    failures = 0
                best = max(best, partial.have)
                failures += 1
                if failures > self.retries or (error.wait or 0) > LONGEST_RETRY_AFTER:
                    raise self._give_up(file, error) from error
                pause = backoff(failures - 1, self.pause, error.wait)
                if error.wait is not None:
                    cache.ask_to_pause(pause)
                logger.info("%s: %s; asking again in %.1f s", file.name, error, pause)
                end = time.monotonic() + pause
                _wait(lambda end=end: end - time.monotonic(), stop)  # type: ignore[misc]

    def _receive(self, file: SourceFile, partial: Partial, stop: threading.Event | None) -> None:
        """One attempt: append pieces as they come; cut a connection that only trickles."""
        window_start, window_bytes = time.monotonic(), 0
        pieces = self._open(file, partial.have)
        try:
            for piece in pieces:
                _check(stop)
                room = file.size - partial.have
                partial.append(piece[:room] if len(piece) > room else piece)
                if len(piece) > room:
                    raise TransientError(
                        f"the server sends more than the {file.size:,} bytes listed", restart=True
                    )
                window_bytes += len(piece)
                now = time.monotonic()
                if now - window_start >= self.timeout:
                    if window_bytes < SLOWEST * self.timeout and partial.have < file.size:
                        raise TransientError(
                            f"only {window_bytes:,} bytes came in {now - window_start:.0f} s"
                        )
                    window_start, window_bytes = now, 0
        finally:
            close = getattr(pieces, "close", None)
            if close is not None:
                close()
        if partial.have < file.size:
            raise TransientError(f"the connection ended after {partial.have:,} of {file.size:,} bytes")

    def _open(self, file: SourceFile, offset: int) -> Iterator[bytes]:
        """The bytes of a remote file from `offset` on; a final refusal becomes SourceUnavailable."""
        if file.url.startswith("hf://"):
            from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

            from btlm_data.sources import hub

            try:
                yield from hub.stream(file.url, offset, self.timeout)
            except (HfHubHTTPError, OfflineModeIsEnabled) as error:
                raise hub.explain(error, file.url.removeprefix("hf://datasets/"), file.url) from error
        else:
            from btlm_data.sources import objects

            yield from objects.stream(file, offset, self.timeout)

    def _give_up(self, file: SourceFile, error: TransientError) -> SourceUnavailable:
        return SourceUnavailable(
            f"{file.name} could not be fetched from {file.url}: {error}, and {self.retries} repeats did not help. "
            "Check the network and the server, and run the same command again: it goes on from here. "
            "For slow or strict servers raise --set run.retries=N or --set run.timeout=SECONDS."
        )

    def _already_downloaded(self, file: SourceFile) -> Path | None:
        """The copy that `hf download` keeps, if it is right."""
        if not file.url.startswith("hf://"):
            return None
        from btlm_data.sources import hub

        found = hub.downloaded(file)
        if found is None or Path(found).stat().st_size != file.size:
            return None
        hasher = _Hasher(file)
        with Path(found).open("rb") as stream:
            while piece := stream.read(2**20):
                hasher.update(piece)
        return Path(found) if hasher.problem() is None else None

    def _cache(self) -> Cache:
        return Cache(Path(self.cache_dir), self.cache_size, keep=self.keep)


class Prefetcher:
    """Fetches `files` into the cache in their order, ahead of those who read them, as far as there is room.

    with Prefetcher(fetcher, files_still_needed): ...  A file that has been read already is skipped; a failure is left to
    the reader, who meets it again and reports it. On leaving the block (also by Ctrl-C) the threads end.
    """

    def __init__(self, fetcher: Fetcher, files: Sequence[SourceFile], threads: int = 4) -> None:
        self._fetcher = Fetcher(**{**fetcher.__dict__, "retries": min(fetcher.retries, 2)})
        self._files = list({file.url: file for file in files if is_remote(file.url)}.values())
        self._keys = frozenset(map(_key, self._files))
        self._pending = iter(self._files)
        self._turn = (
            threading.Lock()
        )  # held while waiting for room, so that room is given in the order of need
        self._stop = threading.Event()
        self._num_done = 0
        self._threads = [
            threading.Thread(target=self._work, args=(n,), name=f"prefetch-{n}", daemon=True)
            for n in range(min(threads, len(self._files)))
        ]

    def __enter__(self) -> Prefetcher:
        """Start fetching. Raises OutputError if a file (or, if all are to be kept, their sum) does not fit the cache."""
        self._fetcher.check_room(self._files)
        if self._files:
            cache = self._fetcher._cache()
            for key in self._keys:
                cache.forget_use(key)
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop fetching; a thread that waits for a silent server is left behind (it is a daemon and holds nothing but its flocks)."""
        self._stop.set()
        end = time.monotonic() + 2.0
        for thread in self._threads:
            thread.join(max(0.0, end - time.monotonic()))
        if self._files:
            cache = self._fetcher._cache()
            for key in self._keys:
                if not (cache.folder / "files" / key).exists():
                    cache.forget_use(key)

    def _work(self, number: int) -> None:
        """Thread `number` joins in when so many files are there: the first ones come alone, so that the readers can begin early."""
        cache = self._fetcher._cache()
        while True:
            try:
                _wait(lambda: float(number > self._num_done), self._stop)
                with self._turn:
                    file, held = self._next_held(cache)
                if isinstance(held, Partial):
                    held = self._fetcher.complete(cache, file, held, self._stop)
                held.release(used=False)
                self._num_done += 1
            except (Stopped, StopIteration):
                return
            except BtlmError as error:
                logger.info("fetching ahead: %s", str(error).split("\n")[0])
            except Exception:
                logger.exception("fetching ahead failed; the file is fetched when it is needed")

    def _next_held(self, cache: Cache) -> tuple[SourceFile, Pin | Partial]:
        """The next file that is worth fetching, and the right and the room to do so. Raises StopIteration at the end, Stopped."""
        while True:
            _check(self._stop)
            file = next(self._pending)
            key = _key(file)
            if self._fetcher._already_downloaded(file) is not None:
                continue
            for pause in _pauses(self._stop):
                if cache.was_used(key):  # by a reader that did not wait
                    break
                held = cache.obtain(key, file.size, lambda other: other not in self._keys)
                if held is not None:
                    return file, held
                time.sleep(pause)


@dataclass(frozen=True)
class _Verified:
    problem: str | None
    sha256: str


class _Hasher:
    """What a listing lets us check: SHA-256 (LFS), git's own hash (small files on the hub), else the size alone."""

    def __init__(self, file: SourceFile) -> None:
        self._file = file
        self._sha256 = hashlib.sha256()
        self._git: Any = None
        if file.sha256 is None and file.version.startswith("git:"):
            self._git = hashlib.sha1(b"blob %d\0" % file.size, usedforsecurity=False)
        self._size = 0

    def update(self, piece: bytes) -> None:
        self._sha256.update(piece)
        if self._git is not None:
            self._git.update(piece)
        self._size += len(piece)

    def hexdigest(self) -> str:
        return self._sha256.hexdigest()

    def problem(self) -> str | None:
        if self._size != self._file.size:
            return f"{self._size:,} bytes, {self._file.size:,} are listed"
        if self._file.sha256 is not None and self.hexdigest() != self._file.sha256:
            return f"its SHA-256 is {self.hexdigest()}, listed is {self._file.sha256}"
        if self._git is not None and self._git.hexdigest() != self._file.version.removeprefix("git:"):
            return f"its git hash is {self._git.hexdigest()}, listed is {self._file.version.removeprefix('git:')}"
        return None


def _verify(file: SourceFile, partial: Partial) -> _Verified:
    hasher = _Hasher(file)
    for piece in partial.pieces():
        hasher.update(piece)
    return _Verified(hasher.problem(), hasher.hexdigest())


def _key(file: SourceFile) -> str:
    return key_of(file.url, file.size, file.version)


def _check(stop: threading.Event | None) -> None:
    if stop is not None and stop.is_set():
        raise Stopped


def _pauses(stop: threading.Event | None) -> Iterator[float]:
    """Seconds to sleep between two looks at the cache, growing from 5 to 50 ms, without end. Raises Stopped."""
    pause = 0.005
    while True:
        _check(stop)
        yield pause
        pause = min(pause * 1.5, 0.05)


def _wait(left: Callable[[], float], stop: threading.Event | None) -> None:
    """Sleep until `left()` is 0, in short steps, so that a stop is seen."""
    while (seconds := left()) > 0:
        _check(stop)
        time.sleep(min(seconds, 0.1))
