"""The Hugging Face hub: which files a data set has, and their bytes, through `huggingface_hub` itself.

Listing and metadata are HfApi's. Bodies are read with huggingface_hub's own HTTP session and headers (so proxies,
certificates, HF_ENDPOINT, HF_TOKEN and HF_HOME hold), but into our bounded cache: its own cache has no bound and does
not check SHA-256. A listing is pinned to the commit it was made at, so a data set that changes during a run is still read whole.
"""

from __future__ import annotations

import functools
import itertools
import logging
import os
import re
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any, NoReturn
from urllib.parse import unquote

from btlm_data.errors import ConfigError, SourceUnavailable
from btlm_data.recipe.models import Run
from btlm_data.records.formats import classify
from btlm_data.sources.base import SourceFile
from btlm_data.sources.http import RETRIED_STATUS, TransientError, backoff, retry_after
from btlm_data.sources.patterns import fixed_folder, is_pattern, is_safe_name, matcher, splits_of

if TYPE_CHECKING:
    from huggingface_hub import HfApi

    from btlm_data.sources.listing import Listing

logger = logging.getLogger(__name__)
MAX_ENTRIES = (
    5_000_000  # the largest data sets on the hub have under a million files; beyond this a listing is broken
)
_SILENT_RETRIES = 2  # of a listing whose hub does not answer: each has waited for `run.timeout`, and somebody waits for the run to begin
_LISTERS = 4  # folders listed at once
_URL = re.compile(r"hf://datasets/(?P<repository>[^/@]+/[^/@]+)(?:@(?P<revision>[^/]+))?(?:/(?P<path>.+))?")
_UNAVAILABLE = "Check the name, set HF_TOKEN if it is private or gated, or name a mirror, a local folder or another source."


def endpoint() -> str:
    """The hub's address: HF_ENDPOINT as it is now, or the public hub."""
    from huggingface_hub import constants

    return (os.environ.get("HF_ENDPOINT") or constants.ENDPOINT).rstrip("/")


def parse_url(url: str) -> tuple[str, str | None, str | None]:
    """(repository, revision, path or glob) of hf://datasets/ORG/NAME[@REV][/PATH]. A `/` in a revision is written %2F."""
    match = _URL.fullmatch(url.rstrip("/"))
    if match is None:
        raise ConfigError(
            f"{url!r} is no data set on the hub. The form is hf://datasets/ORG/NAME[@REVISION][/GLOB], "
            "for example hf://datasets/DKYoon/SlimPajama-6B/data/*.parquet."
        )
    revision = match["revision"]
    return match["repository"], unquote(revision) if revision else None, match["path"]


def list_hub(
    url: str, revision: str | None, run: Run, patterns: Mapping[str, Sequence[str]] | None
) -> Listing:
    """List a data set's input files at one commit.

    patterns: split -> globs; without them the URL's glob (or everything) and the usual folder names decide. Raises
    SourceUnavailable in plain words when the hub refuses or cannot be reached, or the listing cannot be trusted.
    """
    from btlm_data.sources.listing import Listing

    repository, pinned, path = parse_url(url)
    api = _api(run.timeout)
    wanted = revision or pinned

    def ask() -> Any:
        return api.dataset_info(repository, revision=wanted, timeout=run.timeout)

    info = _answer(ask, repository, wanted, run)
    commit = str(info.sha)
    if not re.fullmatch(r"[0-9a-f]{40}", commit):
        _refuse(repository, f"the hub gave {commit!r} as its revision, which is no commit id")
    glob = path
    if path and not is_pattern(path) and classify(path) is None:
        glob = f"{path}/**"
    globs = [*itertools.chain.from_iterable(patterns.values())] if patterns is not None else [glob or "**"]
    folders = _folders(globs)
    patient = run.model_copy(
        update={"retries": min(run.retries, 1)}
    )  # huggingface_hub repeats each page of a listing by itself

    def tree(folder: str) -> list[Any]:
        return list(
            _answer(
                functools.partial(_tree, api, repository, commit, folder, globs), repository, wanted, patient
            )
        )

    entries = list(itertools.chain.from_iterable(_side_by_side(tree, folders)))
    files: dict[str, SourceFile] = {}
    splits = splits_of([entry.path for entry in entries], patterns, glob)
    for entry in entries:
        split = splits.get(entry.path)
        if split is None:
            continue
        if not is_safe_name(entry.path):
            _refuse(
                repository,
                f"its listing names the file {entry.path[:200]!r}, which is no plain relative path",
            )
        size = entry.lfs.size if entry.lfs is not None else entry.size
        if not isinstance(size, int) or size < 0:
            _refuse(repository, f"its listing gives {entry.path} the size {size!r}")
        files[entry.path] = _source_file(repository, commit, entry, split)
    if not files:
        looked = ", ".join(globs[:4]) + (" ..." if len(globs) > 4 else "")
        _refuse(
            repository,
            f"at revision {commit[:12]} it has no .jsonl, .parquet or .txt file that matches {looked}",
        )
    gated = bool(getattr(info, "gated", False))
    _check_access(api, next(iter(sorted(files.items())))[1], repository, gated, run)
    total = sum(file.size for file in files.values())
    logger.info(
        "hub: %s at %s: %d files, %.1f GB%s",
        repository,
        commit[:12],
        len(files),
        total / 1e9,
        ", gated" if gated else "",
    )
    provenance = {
        "kind": "hub",
        "endpoint": endpoint(),
        "repository": repository,
        "revision": commit,
        "asked_revision": wanted,
        "gated": gated,
        "files": len(files),
        "bytes": total,
    }
    return Listing(tuple(files.values()), provenance)


def read_text_file(repository: str, revision: str, path: str, run: Run) -> str:
    """A small text file of a data set (a list of URLs, checksums): at most 64 MiB. Raises SourceUnavailable."""
    from huggingface_hub import get_session

    def ask() -> str:
        address, headers = request_of(f"hf://datasets/{repository}@{revision}/{path}")
        pieces: list[bytes] = []
        with get_session().stream("GET", address, headers=headers, timeout=run.timeout) as response:
            check_status(response)
            for piece in response.iter_bytes():
                pieces.append(piece)
                if sum(map(len, pieces)) > 64 * 2**20:
                    _refuse(repository, f"{path} is larger than 64 MiB, which is no list of files")
        return b"".join(pieces).decode("utf-8", "replace")

    return str(_answer(ask, f"{repository}/{path}", revision, run))


def commit_of(url: str, revision: str | None, run: Run) -> tuple[str, str]:
    """(repository, commit id) of a data set. Raises SourceUnavailable."""
    repository, pinned, _ = parse_url(url)
    wanted = revision or pinned
    info = _answer(
        lambda: _api(run.timeout).dataset_info(repository, revision=wanted, timeout=run.timeout),
        repository,
        wanted,
        run,
    )
    return repository, str(info.sha)


def request_of(url: str) -> tuple[str, dict[str, str]]:
    """Address and headers to get the bytes of an hf:// file URL made by `list_hub`."""
    from huggingface_hub import hf_hub_url
    from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]  # loaded lazily, its stub forgets it

    repository, revision, path = parse_url(url)
    assert path is not None
    address = hf_hub_url(repository, path, repo_type="dataset", revision=revision, endpoint=endpoint())
    headers = build_hf_headers(library_name="btlm-data")
    headers["Accept-Encoding"] = "identity"  # sizes and ranges must mean the file's own bytes
    return address, headers


def downloaded(file: SourceFile) -> str | None:
    """Where `huggingface_hub` itself already keeps this very file (after `hf download`), or None."""
    from huggingface_hub import try_to_load_from_cache

    repository, revision, path = parse_url(file.url)
    assert path is not None
    found = try_to_load_from_cache(repository, path, revision=revision, repo_type="dataset")
    return found if isinstance(found, str) else None


def check_status(response: Any) -> None:
    """Raise for a refusal: TransientError where asking again may help, huggingface_hub's own error otherwise."""
    from huggingface_hub import hf_raise_for_status

    if response.status_code in RETRIED_STATUS:
        raise TransientError(
            f"status {response.status_code}", retry_after(response.headers), response.status_code
        )
    hf_raise_for_status(response)


def explain(error: Exception, what: str, revision: str | None = None) -> SourceUnavailable:
    """A hub error in plain words."""
    from huggingface_hub.errors import GatedRepoError, OfflineModeIsEnabled, RevisionNotFoundError

    status = getattr(error, "status", None) or getattr(getattr(error, "response", None), "status_code", None)
    address = endpoint()
    if isinstance(error, OfflineModeIsEnabled):
        kept = _kept_snapshot(what, revision)
        advice = (
            f"It was downloaded before: give --source {kept}"
            if kept
            else "Unset HF_HUB_OFFLINE, or give --source a local folder with the files"
        )
        return SourceUnavailable(f"{what} is on the hub, and HF_HUB_OFFLINE forbids to go there. {advice}.")
    if isinstance(error, GatedRepoError) or status == 403:
        return SourceUnavailable(
            f"{what} is gated: {address} wants to know who reads it. "
            f"Open its page, accept its terms, then set HF_TOKEN to a token of that account (yours is {_token_state()}) and run again."
        )
    if isinstance(error, RevisionNotFoundError):
        return SourceUnavailable(
            f"{what} has no revision {revision!r} at {address}. Leave --set source.revision out to read the newest, or name a branch, tag or commit it has."
        )
    if status == 401:
        return SourceUnavailable(
            f"{what} was refused by {address} (401, not authorised): it is private, gated, gone, or the token is wrong (it is {_token_state()}). "
            f"{_UNAVAILABLE}"
        )
    if status == 404:
        return SourceUnavailable(f"{what} was not found at {address} (404). {_UNAVAILABLE}")
    if status == 429:
        return SourceUnavailable(
            f"{what}: {address} still answers 429 (too many requests) after every pause it asked for. "
            "Wait an hour and run the same command again (it goes on from here), or set HF_TOKEN: known users may ask more often."
        )
    reason = f"status {status}" if status else (str(error).strip().split("\n")[0] or type(error).__name__)
    return SourceUnavailable(
        f"{what} cannot be read: {address} does not answer as it should ({reason}). "
        "Check the network (HTTPS_PROXY, HF_ENDPOINT), and run the same command again: it goes on from here."
    )


def _kept_snapshot(repository: str, revision: str | None) -> str | None:
    """The folder in which `hf download` keeps a data set, or None. Asks nobody."""
    from huggingface_hub import snapshot_download

    try:
        return str(
            snapshot_download(repository, repo_type="dataset", revision=revision, local_files_only=True)
        )
    except (OSError, ValueError):  # not there, or `repository` is no name of one
        return None


def _token_state() -> str:
    from huggingface_hub import get_token

    return "set" if get_token() else "not set"


def _refuse(repository: str, found: str) -> NoReturn:
    raise SourceUnavailable(f"The data set {repository} cannot be used: {found}. {_UNAVAILABLE}")


def _api(timeout: float) -> HfApi:
    from huggingface_hub import HfApi

    limit_waiting(timeout)
    return HfApi(endpoint=endpoint(), library_name="btlm-data")


_waiting_limit = 60.0
_limited = False


def limit_waiting(timeout: float) -> None:
    """Bound how long any huggingface_hub request of this process waits without a byte (by default some wait for ever)."""
    global _waiting_limit, _limited
    _waiting_limit = timeout
    if _limited:
        return
    from huggingface_hub import set_client_factory
    from huggingface_hub.utils import _http

    factory: Callable[[], Any] = getattr(_http, "_GLOBAL_CLIENT_FACTORY", _http.default_client_factory)

    def limited() -> Any:
        client = factory()
        hooks = client.event_hooks
        hooks["request"].append(_set_limit)
        client.event_hooks = hooks
        return client

    set_client_factory(limited)
    _limited = True


def _set_limit(request: Any) -> None:
    """Give a request without time limits ours (an httpx event hook)."""
    limits = request.extensions.get("timeout") or {}
    request.extensions["timeout"] = {
        kind: _waiting_limit if limits.get(kind) is None else limits[kind]
        for kind in ("connect", "read", "write", "pool")
    }


def _answer(ask: Callable[[], Any], what: str, revision: str | None, run: Run) -> Any:
    """Ask until there is an answer, at most `run.retries` times more, or _SILENT_RETRIES where there is none at all. Raises SourceUnavailable."""
    import httpx2
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled

    for attempt in itertools.count():
        try:
            return ask()
        except (HFValidationError, OfflineModeIsEnabled) as error:
            raise explain(error, what, revision) from None
        except TransientError as error:
            failure: Exception = error
            wait = error.wait
        except HfHubHTTPError as error:
            status = error.response.status_code if error.response is not None else None
            if status not in RETRIED_STATUS:
                raise explain(error, what, revision) from None
            failure, wait = error, retry_after(error.response.headers)
        except (httpx2.RequestError, OSError) as error:
            if attempt >= _SILENT_RETRIES:
                raise explain(error, what, revision) from error
            failure, wait = error, None
        except (ValueError, KeyError, TypeError) as error:  # an answer that is no listing
            failure, wait = error, None
        if attempt >= run.retries:
            raise explain(failure, what, revision) from failure
        pause = backoff(attempt, run.retry_pause, wait)
        logger.info("hub: %s: %s; asking again in %.1f s", what, str(failure).split("\n")[0], pause)
        time.sleep(pause)
    raise AssertionError("unreachable")


def _tree(api: HfApi, repository: str, commit: str, folder: str, globs: Sequence[str]) -> list[Any]:
    """The files of one folder that match any glob; a folder that is not there has none."""
    from huggingface_hub import RepoFile
    from huggingface_hub.errors import EntryNotFoundError

    matchers = [matcher(glob) for glob in globs]
    found: list[Any] = []
    entries: Iterable[Any] = api.list_repo_tree(
        repository, folder or None, recursive=True, revision=commit, repo_type="dataset"
    )
    try:
        for number, entry in enumerate(entries):
            if number >= MAX_ENTRIES:
                _refuse(repository, f"its listing does not end after {MAX_ENTRIES:,} entries")
            if (
                isinstance(entry, RepoFile)
                and isinstance(entry.path, str)
                and any(matches(entry.path) for matches in matchers)
            ):
                found.append(entry)
    except EntryNotFoundError:
        if not folder:
            raise
    return found


def _side_by_side(ask: Callable[[str], list[Any]], folders: Sequence[str]) -> list[list[Any]]:
    """ask(folder) for each, a few at once, in order: a page is a round trip, and SlimPajama has 70 of them.

    The threads are daemons, so that neither an error nor Ctrl-C waits for those that hang on a silent hub.
    """
    pending = deque((folder, Future[list[Any]]()) for folder in folders)
    answers = [answer for _, answer in pending]

    def work() -> None:
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
        pending.clear()


def _folders(globs: Sequence[str]) -> list[str]:
    """The fewest folders that hold every match: listing two chunks of ten asks for two chunks only."""
    folders = sorted({fixed_folder(glob) for glob in globs})
    return [
        folder
        for folder in folders
        if not any(folder != other and (not other or folder.startswith(other + "/")) for other in folders)
    ]


def _source_file(repository: str, commit: str, entry: Any, split: str) -> SourceFile:
    form = classify(entry.path)
    assert form is not None
    sha256 = entry.lfs.sha256 if entry.lfs is not None else None
    if sha256 is not None and not re.fullmatch(r"[0-9a-f]{64}", sha256):
        _refuse(repository, f"its listing gives {entry.path} the SHA-256 {sha256[:80]!r}")
    return SourceFile(
        name=entry.path,
        url=f"hf://datasets/{repository}@{commit}/{entry.path}",
        size=entry.lfs.size if entry.lfs is not None else entry.size,
        split=split,
        version=f"sha256:{sha256}" if sha256 else f"git:{entry.blob_id}",
        format=form[0],
        compression=form[1],
        sha256=sha256,
    )


def _check_access(api: HfApi, file: SourceFile, repository: str, gated: bool, run: Run) -> None:
    """Ask for the head of one file: a gated data set may be listed by everyone, and read by few."""
    from huggingface_hub import get_hf_file_metadata

    address, headers = request_of(file.url)
    what = f"{repository}{' (gated)' if gated else ''}"
    _answer(
        lambda: get_hf_file_metadata(address, headers=headers, timeout=run.timeout, endpoint=endpoint()),
        what,
        None,
        run,
    )


def stream(url: str, offset: int, timeout: float) -> Iterator[bytes]:
    """The bytes of an hf:// file from `offset` on. Raises TransientError, or huggingface_hub's error for a refusal."""
    from btlm_data.sources.http import stream_bytes

    limit_waiting(timeout)
    address, headers = request_of(url)
    return stream_bytes(address, headers, offset, timeout, check_status)
