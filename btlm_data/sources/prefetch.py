"""A few threads that download files before they are needed."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from types import TracebackType

from btlm_data.errors import BtlmError
from btlm_data.sources.base import Access, SourceFile
from btlm_data.sources.fetch import Fetcher, Stopped, check, key, pauses
from btlm_data.sources.local import is_local
from btlm_data.sources.pool import Partial, Pool, Whole
from btlm_data.storage.retry import Retry

logger = logging.getLogger(__name__)
_RETRIES = 2  # of a download that no reader waits for yet


class Prefetcher:
    """Downloads `files` in their order, ahead of those who read them, as far as there is room.

    with Prefetcher(fetcher, files_still_needed): ...  A file that has been read already is skipped; a failure
    is left to the reader, who meets it again and reports it. On leaving the block (also by Ctrl-C) the
    threads end.
    """

    def __init__(self, fetcher: Fetcher, files: Sequence[SourceFile], threads: int = 4) -> None:
        retry = fetcher.access.retry
        access = Access(fetcher.access.timeout, Retry(min(retry.retries, _RETRIES), retry.pause))
        self._fetcher = replace(fetcher, access=access)
        self._files = list({file.url: file for file in files if not is_local(file.url)}.values())
        self._keys = frozenset(map(key, self._files))
        self._pending = iter(self._files)
        # Held while waiting for room, so that room is given in the order of need.
        self._turn = threading.Lock()
        self._stop = threading.Event()
        self._num_done = 0
        self._threads = [
            threading.Thread(target=self._work, args=(n,), name=f"prefetch-{n}", daemon=True)
            for n in range(min(threads, len(self._files)))
        ]

    def __enter__(self) -> Prefetcher:
        """Start downloading. Raises OutputError if a file (or, if all are to be kept, their sum) does not
        fit.
        """
        self._fetcher.check_room(self._files)
        if self._files:
            self._fetcher.begin()
            pool = self._fetcher.pool()
            for held_key in self._keys:
                pool.forget_use(held_key)
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop downloading; a thread that waits for a silent server is left behind (it is a daemon and owns
        only its part).
        """
        self._stop.set()
        end = time.monotonic() + 2.0
        for thread in self._threads:
            thread.join(max(0.0, end - time.monotonic()))

    def _work(self, number: int) -> None:
        """Thread `number` joins in when so many files are there: the first ones come alone, so that the
        readers can begin early.
        """
        pool = self._fetcher.pool()
        while True:
            try:
                while number > self._num_done:
                    check(self._stop)
                    time.sleep(0.05)
                with self._turn:
                    file, held = self._next_held(pool)
                if isinstance(held, Partial):
                    held = self._fetcher.complete(file, held, self._stop)
                held.release(used=False)
                self._num_done += 1
            except (Stopped, StopIteration):
                return
            except BtlmError as error:
                logger.info("downloading ahead: %s", str(error).split("\n")[0])
            except Exception:
                logger.exception("downloading ahead failed; the file is downloaded when it is needed")

    def _next_held(self, pool: Pool) -> tuple[SourceFile, Whole | Partial]:
        """The next file that is worth downloading, and the right and the room to do so. Raises StopIteration
        at the end, Stopped.
        """
        while True:
            check(self._stop)
            file = next(self._pending)
            if self._fetcher.has_elsewhere(file):
                continue
            for pause in pauses(self._stop):
                if pool.was_used(key(file)):  # by a reader that did not wait
                    break
                held = pool.obtain(key(file), file.size, lambda held_key: held_key not in self._keys)
                if held is not None:
                    return file, held
                time.sleep(pause)
