"""One file on a web server: https://HOST/PATH/FILE.jsonl.zst. A signature in the query is used, and shown
nowhere.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any, NoReturn
from urllib.parse import unquote, urlsplit

from btlm_data.errors import BtlmError, ConfigError, InputError, SourceUnavailable
from btlm_data.records.formats import classify
from btlm_data.redact import redact, without_secrets
from btlm_data.sources.base import Access, Entry, Query, SchemeListing, SourceFile
from btlm_data.sources.globs import is_pattern
from btlm_data.sources.http import RETRIED_STATUS, reason_of, retry_after, stream_bytes, web_session
from btlm_data.storage.retry import FIRST_ANSWER, TransientError, within

MAX_TEXT_BYTES = 64 * 2**20


def list_entries(query: Query) -> SchemeListing:
    """The one file at a URL. What is no corpus file by its name is taken for a folder, and listed as fsspec
    can.

    Raises SourceUnavailable if the server refuses, cannot be reached, or answers with a web page.
    """
    _refuse_pages_of_the_hub(query.url)
    name = _last_part(query.url)
    if query.globs is not None or is_pattern(urlsplit(query.url).path) or classify(name) is None:
        return _list_folder(query)
    clean = without_secrets(query.url)
    entry = head_of(query.url, name, query.access)
    secrets = {clean: query.url} if clean != query.url else {}
    return SchemeListing([entry], {"kind": "url", "url": clean}, single=True, secrets=secrets)


def head_of(url: str, name: str, access: Access, sha256: str | None = None, *, first: bool = True) -> Entry:
    """Size and version of one file. first: nothing has been asked of this server yet, so be quick to find it
    gone.

    Raises SourceUnavailable.
    """
    import httpx2

    seconds = min(access.timeout, FIRST_ANSWER) if first else access.timeout

    def ask() -> Any:
        headers = {"Accept-Encoding": "identity"}
        response = web_session().head(url, headers=headers, timeout=seconds)
        # Addresses signed for GET refuse HEAD, and so do some servers.
        if response.status_code in (403, 405, 501) or "content-length" not in response.headers:
            with web_session().stream("GET", url, headers=headers, timeout=seconds) as answer:
                response = answer
        return response

    def attempt() -> Any:
        try:
            response = within(2 * seconds, ask) if not first else within(seconds + 1, ask)
        except httpx2.RequestError as error:
            raise TransientError(reason_of(error)) from error
        _check_status(response, url)
        return response

    response = _retrying(attempt, url, access, answered=not first)
    length = response.headers.get("content-length")
    if length is None or not (length.isascii() and length.isdigit()) or len(length) > 15:
        _refuse(url, "the server does not say how long it is (no Content-Length)")
    if response.headers.get("content-type", "").startswith("text/html"):
        _refuse(url, "the server answers with a web page, not with data; a login may be needed")
    encoding = response.headers.get("content-encoding", "").strip().lower()
    form = classify(name)
    compression = (
        {"gzip": "gzip", "x-gzip": "gzip", "zstd": "zstd"}.get(encoding)
        if form is not None and form[1] == "none"
        else None
    )
    return Entry(
        name=name,
        url=without_secrets(url),
        size=int(length),
        version=f"sha256:{sha256}" if sha256 else _version(response.headers),
        sha256=sha256,
        compression=compression,
    )


def stream(file: SourceFile, url: str, offset: int, access: Access) -> Iterator[bytes]:
    """The bytes of the file from `offset` on."""

    def check(response: Any) -> None:
        _check_status(response, url)
        now = _version(response.headers)
        if file.version.startswith("etag:") and now.startswith("etag:") and now != file.version:
            raise InputError(
                f"{file.url} has changed since the run listed it (then {redact(file.version)}). "
                "Run the same command again: it lists the source again and repeats what depends on this file."
            )

    yield from stream_bytes(web_session(), url, {}, offset, access.timeout, check)


def local_path(file: SourceFile) -> str | None:
    """Nowhere: it has to be fetched."""
    return None


def read_text_file(url: str, access: Access) -> str:
    """A small text file: at most 64 MiB. Raises SourceUnavailable."""

    def attempt() -> str:
        pieces, size = [], 0
        for piece in stream_bytes(
            web_session(), url, {}, 0, access.timeout, lambda response: _check_status(response, url)
        ):
            pieces.append(piece)
            size += len(piece)
            if size > MAX_TEXT_BYTES:
                _refuse(url, "it is larger than 64 MiB, which is no list of files")
        return b"".join(pieces).decode("utf-8", "replace")

    return str(_retrying(attempt, url, access, answered=True))


def _refuse_pages_of_the_hub(url: str) -> None:
    """The address of a data set's page, copied from a browser, is not the address of its data. Raises
    ConfigError.
    """
    parts = urlsplit(url)
    path = parts.path.strip("/").split("/")
    if (
        parts.hostname in ("huggingface.co", "hf.co")
        and path[:1] == ["datasets"]
        and path[3:4] != ["resolve"]
    ):
        kind, revision, rest = path[3:4], path[4:5], path[5:]
        if len(path) > 3 and kind[0] in ("blob", "tree") and revision:
            at = "" if revision == ["main"] else f"@{revision[0]}"
            data = "/".join([f"hf://datasets/{'/'.join(path[1:3])}{at}", *rest])
        else:
            data = f"hf://datasets/{'/'.join(path[1:3])}"
        raise ConfigError(
            f"{without_secrets(url)} is a page about a data set, not the data. Write --source {data}."
        )


def _list_folder(query: Query) -> SchemeListing:
    from btlm_data.sources import bucket

    def touch() -> None:
        import httpx2

        try:
            web_session().head(query.url, timeout=min(query.access.timeout, FIRST_ANSWER))
        except httpx2.RequestError as error:
            raise TransientError(reason_of(error)) from error

    _retrying(lambda: within(FIRST_ANSWER + 1, touch), query.url, query.access, answered=False)
    return bucket.list_entries(query)


def _retrying(attempt: Callable[[], Any], url: str, access: Access, *, answered: bool) -> Any:
    """`attempt()`, repeated by the policy; a server that has never answered is not asked twice. Raises
    SourceUnavailable.
    """
    attempts = access.retry.attempts()
    while True:
        try:
            return attempt()
        except BtlmError:
            raise
        except TransientError as error:
            silent = error.status is None and not answered
            pause = None if silent else attempts.failed(error)
            if pause is None:
                problem = "it cannot be reached" if silent else "the server does not answer as it should"
                _refuse(url, f"{problem} ({error})")
            time.sleep(pause)


def _check_status(response: Any, url: str) -> None:
    status = response.status_code
    if status in RETRIED_STATUS:
        raise TransientError(f"status {status}", retry_after(response.headers), status)
    if status in (401, 403):
        raise SourceUnavailable(
            f"{without_secrets(url)} may not be read (status {status}). If the address is signed, its signature may "
            "have expired: get a new one, or give --source a local folder with the files."
        )
    if status >= 400:
        _refuse(url, "it is not there (404)" if status == 404 else f"the server answers {status}")


def _version(headers: Any) -> str:
    tag, modified = headers.get("etag"), headers.get("last-modified")
    if tag:
        return f"etag:{tag}".replace('"', "")[:300]
    return f"modified:{modified}"[:300] if modified else f"size:{headers.get('content-length')}"[:300]


def _last_part(url: str) -> str:
    return unquote(urlsplit(url).path).rsplit("/", 1)[-1]


def _refuse(url: str, problem: str) -> NoReturn:
    raise SourceUnavailable(
        f"{without_secrets(url)} cannot be used: {redact(problem)}. "
        "Check the address, or give --source a local folder with the files."
    )
