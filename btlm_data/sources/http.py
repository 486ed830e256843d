"""Bytes over HTTP: ranges, what counts as a passing fault, and how long an answer is waited for."""

from __future__ import annotations

import atexit
import contextlib
import email.utils
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from btlm_data.redact import redact
from btlm_data.storage.retry import TransientError

if TYPE_CHECKING:
    import httpx2

RETRIED_STATUS = frozenset({408, 425, 429, 500, 502, 503, 504, 520, 522, 524})


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds that a response asks to wait: Retry-After as seconds or as a date (RFC 9110, 10.2.3), or the
    hub's RateLimit.
    """
    value = headers.get("retry-after")
    if value is not None:
        value = value.strip()
        if value.isascii() and value.isdigit():
            return float(value[:9])
        date = email.utils.parsedate_tz(value)
        if date is not None:
            with contextlib.suppress(ValueError, OverflowError):
                return max(0.0, float(email.utils.mktime_tz(date)) - time.time())
    from huggingface_hub.utils import parse_ratelimit_headers  # type: ignore[attr-defined]  # loaded lazily

    limits = parse_ratelimit_headers(headers)
    return float(limits.reset_in_seconds) if limits is not None and limits.remaining == 0 else None


def hub_session(timeout: float) -> httpx2.Client:
    """huggingface_hub's own session (so its proxies, certificates and offline mode hold), no request of which
    waits forever.

    timeout: seconds without a byte, for requests that set no limit themselves. Some of the library's own do
    not.
    """
    from huggingface_hub import get_session

    client = get_session()
    hooks = client.event_hooks
    kept = [hook for hook in hooks.get("request", []) if not isinstance(hook, _Limit)]
    client.event_hooks = {**hooks, "request": [*kept, _Limit(timeout)]}
    return client


class Abandoned(Exception):
    """Nobody waits for the answer any more."""


_thread = threading.local()


def stop_asking_after(ended: threading.Event) -> None:
    """Have every later request of this thread raise Abandoned once `ended` is set: huggingface_hub repeats
    its requests by itself, and would do so long after a listing was given up.
    """
    _thread.ended = ended


class _Limit:
    """A request hook that gives a limit to requests without one, and refuses those that nobody waits for."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds

    def __call__(self, request: httpx2.Request) -> None:
        ended: threading.Event | None = getattr(_thread, "ended", None)
        if ended is not None and ended.is_set():
            raise Abandoned
        limits = request.extensions.get("timeout") or {}
        request.extensions["timeout"] = {
            kind: self._seconds if limits.get(kind) is None else limits[kind]
            for kind in ("connect", "read", "write", "pool")
        }


_web_clients: dict[int, httpx2.Client] = {}  # by process id: a forked child opens its own
_web_clients_guard = threading.Lock()


def web_session() -> httpx2.Client:
    """The session of this process for plain web servers: the hub's token and offline mode mean nothing there."""
    import httpx2

    with _web_clients_guard:
        if (client := _web_clients.get(os.getpid())) is None:
            client = _web_clients[os.getpid()] = httpx2.Client(follow_redirects=True)
        return client


def close_web_session() -> None:
    """Close what web_session opened in this process."""
    with _web_clients_guard:
        if (client := _web_clients.pop(os.getpid(), None)) is not None:
            client.close()


atexit.register(close_web_session)


def stream_bytes(
    client: httpx2.Client,
    address: str,
    headers: Mapping[str, str],
    offset: int,
    timeout: float,
    check_status: Callable[[Any], None],
) -> Iterator[bytes]:
    """Yield a body, as it is stored, from byte `offset` on; also from a server that ignores ranges.

    A Content-Encoding that a server adds to a stored .gz is not undone: sizes, ranges and checksums mean the
    stored bytes. Raises TransientError for whatever the network does; what `check_status` raises passes
    through.
    """
    import httpx2

    asked = {**headers, "Accept-Encoding": "identity"}
    if offset:
        asked["Range"] = f"bytes={offset}-"
    try:
        with client.stream(
            "GET", address, headers=asked, timeout=httpx2.Timeout(timeout), follow_redirects=True
        ) as response:
            if response.status_code == 416:
                raise TransientError(
                    "the server has no bytes where the rest should be (416)", status=416, restart=True
                )
            check_status(response)
            skip = offset if offset and response.status_code != 206 else 0
            content_range = response.headers.get("content-range", "")
            if response.status_code == 206 and not _starts_at(content_range, offset):
                raise TransientError(f"requested bytes from {offset}, got {content_range!r}")
            for received in response.iter_raw():
                piece = received
                if skip:
                    dropped = min(skip, len(piece))
                    piece, skip = piece[dropped:], skip - dropped
                if piece:
                    yield piece
    except httpx2.RequestError as error:
        raise TransientError(reason_of(error)) from error


def reason_of(error: BaseException) -> str:
    """What another library's error says: its first line, without secrets; the error's kind where it says
    nothing.
    """
    lines = str(error).strip().splitlines()
    return redact(lines[0])[:300] if lines else type(error).__name__


def _starts_at(content_range: str, offset: int) -> bool:
    return content_range.startswith(f"bytes {offset}-") or not content_range
