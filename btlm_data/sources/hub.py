"""The Hugging Face hub: which files a data set has, and their bytes, through `huggingface_hub` itself.

    hf://datasets/ORG/NAME[@REVISION][/PATH or GLOB]

Listing and metadata are HfApi's. Bodies are read with huggingface_hub's own HTTP session and headers (so
proxies, certificates, HF_ENDPOINT, HF_TOKEN and HF_HOME hold), but into our bounded folder: its own cache has
no bound and does not check SHA-256. A listing is pinned to the commit it was made at, so a data set that
changes during a run is still read whole.
"""

from __future__ import annotations

import functools
import itertools
import logging
import re
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import quote, unquote

from btlm_data.errors import ConfigError
from btlm_data.records.formats import classify
from btlm_data.sources.base import MAX_ENTRIES, Access, Entry, Query, SchemeListing, SourceFile
from btlm_data.sources.globs import enclosing_folders, is_pattern, matcher, split_pattern
from btlm_data.sources.http import (
    RETRIED_STATUS,
    hub_session,
    reason_of,
    retry_after,
    stop_asking_after,
    stream_bytes,
)
from btlm_data.sources.hub_errors import NO_LISTING, endpoint, explain, refuse
from btlm_data.sources.names import is_safe_name, shown
from btlm_data.storage.retry import FIRST_ANSWER, Retry, TransientError, within

if TYPE_CHECKING:
    from huggingface_hub import HfApi

logger = logging.getLogger(__name__)
MAX_TEXT_BYTES = 64 * 2**20  # of a list of files
_SILENT_RETRIES = 2  # of a request that had no answer at all: each has waited for `timeout`
_LISTERS = 4  # folders listed at once
_URL = re.compile(
    r"hf://datasets/(?P<repository>[^/@]+/[^/@]+)"
    r"(?:@(?P<revision>refs/(?:convert|pr)/[^/]+|[^/]+))?(?:/(?P<path>.+))?"
)


class HubAddress(NamedTuple):
    """A data set on the hub, or a part of it. path: below its root; may be a glob."""

    repository: str
    revision: str | None
    path: str | None

    def file_url(self, name: str) -> str:
        """The hf:// URL of one file."""
        revision = quote(self.revision or "main", safe="")
        return f"hf://datasets/{self.repository}@{revision}/{name}"


def parse_url(url: str) -> HubAddress:
    """The parts of hf://datasets/ORG/NAME[@REVISION][/PATH].

    A `/` in a revision is written %2F, or as it is in `refs/convert/parquet` and `refs/pr/7`. Raises
    ConfigError.
    """
    match = _URL.fullmatch(url.rstrip("/"))
    if match is None:
        rest = url.removeprefix("hf://").strip("/")
        meant = f"hf://datasets/{rest}" if _URL.fullmatch(f"hf://datasets/{rest}") else ""
        example = meant or "hf://datasets/DKYoon/SlimPajama-6B/data/*.parquet"
        raise ConfigError(
            f"{shown(url)!r} is no data set on the hub. The form is hf://datasets/ORG/NAME[@REVISION][/GLOB], "
            f"for example {shown(example)}."
        )
    revision = match["revision"]
    return HubAddress(match["repository"], unquote(revision) if revision else None, match["path"])


def list_entries(query: Query) -> SchemeListing:
    """List a data set's files at one commit.

    Raises SourceUnavailable in plain words when the hub refuses or cannot be reached, or the listing cannot
    be trusted.
    """
    address = parse_url(query.url)
    asked = query.revision or address.revision
    hub = _Hub(address.repository, asked, query.access)
    info = hub.info()
    commit = str(info.sha)
    if not re.fullmatch(r"[0-9a-f]{40}", commit):
        refuse(address.repository, f"the hub gave {shown(commit)!r} as its revision, which is no commit id")
    root, glob = _root_and_glob(address.path)
    globs = list(query.globs) if query.globs is not None else [glob or "**"]
    prefix = f"{root}/" if root else ""
    wanted = [f"{prefix}{pattern}" for pattern in globs]
    if query.globs is None:
        wanted += [
            f"{pattern}/**" for pattern in wanted if not pattern.endswith("**")
        ]  # a pattern may match folders
    entries = hub.tree(commit, wanted)
    single = address.path is not None and [entry.path for entry in entries] == [address.path]
    if (
        not single and address.path is not None and not is_pattern(address.path)
    ):  # a folder, whatever it is called
        prefix, glob = f"{address.path}/", None
    pinned = address._replace(revision=commit)
    listed = [_entry(entry, prefix, pinned) for entry in entries if entry.path.startswith(prefix)]
    gated = bool(getattr(info, "gated", False))
    readable = (
        entry for entry in sorted(listed) if classify(entry.name) is not None and is_safe_name(entry.name)
    )
    first = next(readable, None)
    if first is not None:
        hub.check_access(first.url, gated=gated)
    provenance = {
        "kind": "hub",
        "endpoint": endpoint(),
        "repository": address.repository,
        "revision": commit,
        "asked_revision": asked,
        "gated": gated,
    }
    logger.info("hub: %s at %s: %d files", address.repository, commit[:12], len(listed))
    return SchemeListing(listed, provenance, None if single else glob, single=single)


def stream(file: SourceFile, url: str, offset: int, access: Access) -> Iterator[bytes]:
    """The bytes of a file from `offset` on."""
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    address, headers = request_of(url)
    try:
        yield from stream_bytes(
            hub_session(access.timeout), address, headers, offset, access.timeout, check_status
        )
    except (HfHubHTTPError, OfflineModeIsEnabled) as error:
        raise explain(error, url.removeprefix("hf://datasets/"), url) from error


def local_path(file: SourceFile) -> str | None:
    """Where `huggingface_hub` itself already keeps this very file (after `hf download`), or None."""
    from huggingface_hub import try_to_load_from_cache

    address = parse_url(file.url)
    assert address.path is not None
    kept = try_to_load_from_cache(
        address.repository, address.path, revision=address.revision, repo_type="dataset"
    )
    return kept if isinstance(kept, str) else None


def commit_of(url: str, revision: str | None, access: Access) -> HubAddress:
    """A data set with the commit that its revision stands for now. Raises SourceUnavailable."""
    address = parse_url(url)
    info = _Hub(address.repository, revision or address.revision, access).info()
    return address._replace(revision=str(info.sha))


def read_text_file(pinned: HubAddress, path: str, access: Access) -> str:
    """A small text file of a data set (a list of URLs, checksums): at most 64 MiB. Raises SourceUnavailable."""

    def ask() -> str:
        address, headers = request_of(pinned.file_url(path))
        pieces, size = [], 0
        for piece in stream_bytes(
            hub_session(access.timeout), address, headers, 0, access.timeout, check_status
        ):
            pieces.append(piece)
            size += len(piece)
            if size > MAX_TEXT_BYTES:
                refuse(pinned.repository, f"{path} is larger than 64 MiB, which is no list of files")
        return b"".join(pieces).decode("utf-8", "replace")

    return str(_Hub(f"{pinned.repository}/{path}", pinned.revision, access).answer(ask))


def request_of(url: str) -> tuple[str, dict[str, str]]:
    """Address and headers to get the bytes of an hf:// file URL."""
    from huggingface_hub import hf_hub_url
    from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]  # loaded lazily

    parts = parse_url(url)
    assert parts.path is not None
    address = hf_hub_url(
        parts.repository, parts.path, repo_type="dataset", revision=parts.revision, endpoint=endpoint()
    )
    headers = build_hf_headers(library_name="btlm-data")
    headers["Accept-Encoding"] = "identity"  # sizes and ranges must mean the file's own bytes
    return address, headers


def check_status(response: Any) -> None:
    """Raise for a refusal: TransientError where asking again may help, huggingface_hub's own error otherwise."""
    from huggingface_hub import hf_raise_for_status

    if response.status_code in RETRIED_STATUS:
        raise TransientError(
            f"status {response.status_code}", retry_after(response.headers), response.status_code
        )
    hf_raise_for_status(response)


class _Hub:
    """Requests about one data set at one revision, with the retries that each deserves."""

    def __init__(self, repository: str, revision: str | None, access: Access) -> None:
        self.repository, self.revision, self.access = repository, revision, access

    def info(self) -> Any:
        """The data set's commit and whether it is gated: the first request, so a hub that cannot be reached
        is known soon.
        """
        seconds = min(self.access.timeout, FIRST_ANSWER)

        def ask() -> Any:
            return within(
                seconds + 1,
                lambda: self._api().dataset_info(
                    self.repository, revision=self.revision, timeout=seconds, expand=["sha", "gated"]
                ),
            )

        return self.answer(ask, patience=FIRST_ANSWER / 2)

    def tree(self, commit: str, globs: Sequence[str]) -> list[Any]:
        """The files at a commit that match any glob, only the folders listed that can hold them."""
        # huggingface_hub repeats each page of a listing by itself
        patient = Access(
            self.access.timeout, Retry(min(self.access.retry.retries, 1), self.access.retry.pause)
        )
        lister = _Hub(self.repository, self.revision, patient)
        matchers = [matcher(glob) for glob in globs]

        def ask(folder: str) -> list[Any]:
            return list(lister.answer(functools.partial(lister._folder, commit, folder, matchers)))

        return list(itertools.chain.from_iterable(_side_by_side(ask, enclosing_folders(globs))))

    def check_access(self, url: str, *, gated: bool) -> None:
        """Ask for the head of one file: a gated data set may be listed by everyone, and read by few."""
        from huggingface_hub import get_hf_file_metadata

        address, headers = request_of(url)
        hub = _Hub(f"{self.repository}{' (gated)' if gated else ''}", None, self.access)
        hub.answer(
            lambda: get_hf_file_metadata(
                address, headers=headers, timeout=self.access.timeout, endpoint=endpoint()
            )
        )

    def answer(self, ask: Callable[[], Any], patience: float | None = None) -> Any:
        """Ask until there is an answer, at most twice again where there is none at all. Raises
        SourceUnavailable.

        patience: seconds after which a hub that has not answered at all is not asked again.
        """
        import httpx2
        from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled

        attempts = self.access.retry.attempts()
        silent, begin = 0, time.monotonic()
        while True:
            try:
                return ask()
            except (HFValidationError, OfflineModeIsEnabled) as error:
                raise explain(error, self.repository, self.revision) from None
            except TransientError as error:
                cause: Exception = error
                fault = error
            except HfHubHTTPError as error:
                status = error.response.status_code if error.response is not None else None
                if status not in RETRIED_STATUS:
                    raise explain(error, self.repository, self.revision) from None
                cause, fault = error, TransientError(f"status {status}", retry_after(error.response.headers))
            except NO_LISTING as error:
                problem = f"an answer that is no listing: {reason_of(error)}"
                cause, fault = error, TransientError(problem, status=200)
            except (httpx2.RequestError, OSError, RuntimeError) as error:
                # RuntimeError: another thread's fault made huggingface_hub close the session that both use.
                cause, fault = error, TransientError(reason_of(error))
            if fault.status is None and fault.wait is None and not isinstance(cause, HfHubHTTPError):
                silent += 1
            pause = attempts.failed(fault)
            waited = time.monotonic() - begin
            gone = silent > _SILENT_RETRIES or (
                silent > 0 and patience is not None and waited + (pause or 0) > patience
            )
            if pause is None or gone:
                raise explain(cause, self.repository, self.revision) from cause
            level = logging.INFO if patience is None else logging.DEBUG  # soon there is an answer, or the end
            logger.log(level, "hub: %s: %s; asking again in %.1f s", self.repository, fault, pause)
            time.sleep(pause)

    def _api(self) -> HfApi:
        from huggingface_hub import HfApi

        hub_session(self.access.timeout)  # no request of the library waits forever
        return HfApi(endpoint=endpoint(), library_name="btlm-data")

    def _folder(self, commit: str, folder: str, matchers: Sequence[Callable[[str], bool]]) -> list[Any]:
        """The files of one folder that match; a folder that is not there has none."""
        from huggingface_hub import RepoFile
        from huggingface_hub.errors import EntryNotFoundError

        files: list[Any] = []
        entries: Iterable[Any] = self._api().list_repo_tree(
            self.repository, folder or None, recursive=True, revision=commit, repo_type="dataset"
        )
        try:
            for number, entry in enumerate(entries):
                if number >= MAX_ENTRIES:
                    refuse(self.repository, f"its listing does not end after {MAX_ENTRIES:,} entries")
                if (
                    isinstance(entry, RepoFile)
                    and isinstance(entry.path, str)
                    and any(matches(entry.path) for matches in matchers)
                ):
                    files.append(entry)
        except EntryNotFoundError:
            if not folder:
                raise
        return files


def _root_and_glob(path: str | None) -> tuple[str, str | None]:
    """The folder that names are relative to, and the pattern below it.

    A path without a pattern may be a folder or a file (either can be called x.parquet): both are requested.
    """
    if path is None:
        return "", None
    if is_pattern(path):
        return split_pattern(path)
    if classify(path) is None:
        return path, None
    folder, _, last = path.rpartition("/")
    return folder, last


def _entry(entry: Any, prefix: str, pinned: HubAddress) -> Entry:
    size = entry.lfs.size if entry.lfs is not None else entry.size
    if not isinstance(size, int) or size < 0:
        refuse(pinned.repository, f"its listing gives {shown(entry.path)} the size {shown(str(size))!r}")
    sha256 = entry.lfs.sha256 if entry.lfs is not None else None
    if sha256 is not None and not (isinstance(sha256, str) and re.fullmatch(r"[0-9a-f]{64}", sha256)):
        refuse(pinned.repository, f"its listing gives {shown(entry.path)} the SHA-256 {shown(str(sha256))!r}")
    return Entry(
        name=entry.path[len(prefix) :],
        url=pinned.file_url(entry.path),
        size=size,
        version=f"sha256:{sha256}" if sha256 else f"git:{entry.blob_id}",
        sha256=sha256,
    )


def _side_by_side(ask: Callable[[str], list[Any]], folders: Sequence[str]) -> list[list[Any]]:
    """ask(folder) for each, a few at once, in order: a page is a round trip, and SlimPajama has 70 of them.

    The threads are daemons, so that neither an error nor Ctrl-C waits for those that hang on a silent hub.
    """
    pending = deque((folder, Future[list[Any]]()) for folder in folders)
    answers = [answer for _, answer in pending]

    ended = threading.Event()

    def work() -> None:
        stop_asking_after(ended)
        while pending:
            try:
                folder, answer = pending.popleft()
            except IndexError:
                return
            try:
                answer.set_result(ask(folder))
            except BaseException as error:
                answer.set_exception(error)

    for number in range(min(_LISTERS, len(folders))):
        threading.Thread(target=work, name=f"list-{number}", daemon=True).start()
    try:
        return [answer.result() for answer in answers]
    finally:
        ended.set()
        pending.clear()
