"""Bytes over HTTP: ranges, pauses, and what counts as a passing fault. Uses huggingface_hub's session for every host."""

from __future__ import annotations

import email.utils
import random
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

RETRIED_STATUS = frozenset({408, 425, 429, 500, 502, 503, 504, 520, 522, 524})
LONGEST_PAUSE = 60.0  # seconds between two attempts, unless the server asks for more
LONGEST_RETRY_AFTER = 3600.0  # a server that wants more than an hour is treated as unavailable


class TransientError(Exception):
    """A fault that may pass.

    wait: seconds the server asked to wait, if it did. status: the HTTP status, if there was one. restart: what has been
    received so far is of no use.
    """

    def __init__(
        self, reason: str, wait: float | None = None, status: int | None = None, *, restart: bool = False
    ) -> None:
        super().__init__(reason)
        self.wait = wait
        self.status = status
        self.restart = restart


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds that a response asks to wait: Retry-After as seconds or as a date (RFC 9110, 10.2.3), or the hub's RateLimit."""
    value = headers.get("retry-after")
    if value is not None:
        value = value.strip()
        if value.isdigit():
            return float(value)
        date = email.utils.parsedate_tz(value)
        if date is not None:
            return max(0.0, float(email.utils.mktime_tz(date)) - time.time())
    from huggingface_hub.utils import parse_ratelimit_headers  # type: ignore[attr-defined]  # loaded lazily, its stub forgets it

    limits = parse_ratelimit_headers(headers)
    return float(limits.reset_in_seconds) if limits is not None and limits.remaining == 0 else None


def backoff(attempt: int, base: float, asked: float | None) -> float:
    """Seconds to pause before attempt number `attempt + 1`: what the server asked for, else base * 2**attempt, each with some jitter.

    The jitter keeps many workers from asking again in the same moment; it never shortens what the server asked for.
    """
    if asked is not None:
        return min(asked, LONGEST_RETRY_AFTER) + random.uniform(0, base)
    return min(LONGEST_PAUSE, base * 2.0 ** min(attempt, 16)) * random.uniform(0.5, 1.0)


def stream_bytes(
    address: str, headers: Mapping[str, str], offset: int, timeout: float, check_status: Callable[[Any], None]
) -> Iterator[bytes]:
    """Yield a body from byte `offset` on, also from a server that ignores ranges.

    Raises TransientError for whatever the network does; what `check_status` raises passes through.
    """
    import httpx2
    from huggingface_hub import get_session

    asked = dict(headers)
    if offset:
        asked["Range"] = f"bytes={offset}-"
    try:
        with get_session().stream(
            "GET", address, headers=asked, timeout=httpx2.Timeout(timeout), follow_redirects=True
        ) as response:
            if response.status_code == 416:
                raise TransientError(
                    "the server has no bytes where the rest should be (416)", status=416, restart=True
                )
            check_status(response)
            skip = offset if offset and response.status_code != 206 else 0
            if response.status_code == 206 and not _starts_at(
                response.headers.get("content-range", ""), offset
            ):
                raise TransientError(
                    f"asked for bytes from {offset}, got {response.headers.get('content-range')!r}"
                )
            for received in response.iter_bytes():
                piece = received
                if skip:
                    dropped = min(skip, len(piece))
                    piece, skip = piece[dropped:], skip - dropped
                if piece:
                    yield piece
    except httpx2.RequestError as error:
        raise TransientError(str(error) or type(error).__name__) from error


def _starts_at(content_range: str, offset: int) -> bool:
    return content_range.startswith(f"bytes {offset}-") or not content_range
