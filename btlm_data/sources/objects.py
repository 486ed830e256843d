"""Files at URLs: https:// by our own HTTP reader, s3:// gs:// and whatever else fsspec opens, and lists of URLs (RedPajama's)."""

from __future__ import annotations

import concurrent.futures
import itertools
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NoReturn
from urllib.parse import unquote, urlsplit

from btlm_data.errors import BtlmError, ConfigError, InputError, SourceUnavailable
from btlm_data.recipe.models import Run, SourceSettings
from btlm_data.records.formats import classify
from btlm_data.sources.base import SourceFile
from btlm_data.sources.http import RETRIED_STATUS, TransientError, backoff, retry_after, stream_bytes
from btlm_data.sources.patterns import fixed_folder, is_pattern, is_safe_name, matcher, splits_of, usual_split

if TYPE_CHECKING:
    from btlm_data.sources.listing import Listing
    from btlm_data.sources.registry import Source

logger = logging.getLogger(__name__)
_RANGE = 8 * 2**20  # bytes asked for at once from an object store
_HEADS_AT_ONCE = 8


def list_objects(url: str, run: Run, patterns: Mapping[str, Sequence[str]] | None) -> Listing:
    """List the input files at `url`: one file, a folder, or a glob.

    patterns: split -> globs below `url`, where a registered entry decides. Raises SourceUnavailable in plain words; ConfigError for a scheme
    that nothing installed can open.
    """
    from btlm_data.sources.listing import Listing
    from btlm_data.sources.redpajama import is_layout, layout_source

    if (
        _is_http(url)
        and patterns is None
        and classify(_http_name(url)) is not None
        and not is_pattern(urlsplit(url).path)
    ):
        name = _http_name(url)
        file = head_of(url, name, usual_split(name), run)
        return Listing((file,), {"kind": "url", "url": url, "files": 1, "bytes": file.size})
    filesystem, path = open_filesystem(url, run.timeout)
    root, glob = path.rstrip("/"), None
    if patterns is None and is_pattern(path):
        root = fixed_folder(path)
        glob = path[len(root) :].lstrip("/")
    found = _find(filesystem, root, url, run)
    named = {
        place[len(root) :].lstrip("/") or place.rsplit("/", 1)[-1]: (place, info)
        for place, info in sorted(found.items())
        if info.get("type") != "directory" and not place.endswith("/")
    }
    entries = [(name, split, *named[name]) for name, split in splits_of(named, patterns, glob).items()]
    for name, *_ in entries:
        if not is_safe_name(name):
            _refuse(url, f"its listing names {name[:200]!r}, which is no plain relative path")
    if not entries:
        _refuse(url, "no .jsonl, .parquet or .txt file is there" + (f" that matches {glob}" if glob else ""))
    by_layout = is_layout([name for name, *_ in entries])
    files = []
    for name, split, place, info in entries:
        form = classify(name)
        assert form is not None
        files.append(
            SourceFile(
                name=name,
                url=filesystem.unstrip_protocol(place),
                size=int(info.get("size") or 0),
                split=split,
                version=_version(info),
                format=form[0],
                compression=form[1],
                source=layout_source(name) if by_layout else None,
            )
        )
    total = sum(file.size for file in files)
    return Listing(
        tuple(files), {"kind": "objects", "url": without_secrets(url), "files": len(files), "bytes": total}
    )


def list_url_lists(
    place: str,
    revision: str | None,
    run: Run,
    entry: Source,
    patterns: Mapping[str, Sequence[str]],
    settings: SourceSettings,
) -> Listing:
    """List the files that a hub data set only names by URL, one a line, in its `url_lists`.

    Lists of excluded sources are not even asked for. Raises SourceUnavailable naming the parts that are gone, so that none goes missing in silence.
    """
    from btlm_data.sources import hub
    from btlm_data.sources.listing import Listing

    assert entry.url_base is not None
    repository, commit = hub.commit_of(place, revision, run)
    excluded = [
        matcher(pattern) for pattern, name in entry.source_names.items() if name in settings.exclude_sources
    ]
    wanted: list[tuple[str, str, str]] = []
    gone: list[str] = []
    for path in entry.url_lists:
        probe = path.rsplit("/", 1)[-1].rsplit(".", 1)[0] + "/x.jsonl"
        if any(matches(probe) for matches in excluded):
            continue
        try:
            text = hub.read_text_file(repository, commit, path, run)
        except SourceUnavailable as error:
            gone.append(f"{path} ({str(error).split('. ')[0]})")
            continue
        for line in text.splitlines():
            address = line.strip()
            if not address:
                continue
            if not address.startswith(entry.url_base):
                _refuse(place, f"{path} names {address[:200]!r}, which does not begin with {entry.url_base}")
            name = unquote(address[len(entry.url_base) :])
            if not is_safe_name(name):
                _refuse(
                    place, f"{path} names {address[:200]!r}, which is no plain address below {entry.url_base}"
                )
            split = splits_of([name], patterns, None).get(name)
            if split is not None and not any(matches(name) for matches in excluded):
                wanted.append((split, name, address))
    if gone:
        _refuse(
            place,
            f"these parts are gone: {', '.join(gone)}; leave them out with --exclude-source, or give a folder that has them",
        )
    wanted = sorted(set(wanted))
    if settings.files is not None:
        wanted = [
            item
            for _, group in itertools.groupby(wanted, lambda item: item[0])
            for item in itertools.islice(group, settings.files)
        ]
    sums = _checksums(entry, run) if wanted else {}
    with concurrent.futures.ThreadPoolExecutor(_HEADS_AT_ONCE) as pool:
        heads = [
            pool.submit(head_of, address, name, split, run, sums.get(name)) for split, name, address in wanted
        ]
        try:
            files = [future.result() for future in heads]
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    if not files:
        _refuse(place, "its lists of URLs name no file that is wanted")
    provenance = {
        "kind": "url list",
        "repository": repository,
        "revision": commit,
        "url_base": entry.url_base,
        "files": len(files),
        "bytes": sum(file.size for file in files),
        "checksums": sum(file.sha256 is not None for file in files),
    }
    return Listing(tuple(files), provenance)


def head_of(url: str, name: str, split: str, run: Run, sha256: str | None = None) -> SourceFile:
    """Size and version of one file at an http(s) URL. Raises SourceUnavailable."""
    import httpx2
    from huggingface_hub import get_session

    from btlm_data.sources import hub

    hub.limit_waiting(run.timeout)
    form = classify(name)
    assert form is not None

    def ask() -> tuple[int, str]:
        headers = {"Accept-Encoding": "identity"}
        response = get_session().head(url, headers=headers, timeout=run.timeout, follow_redirects=True)
        if (
            response.status_code in (403, 405, 501) or "content-length" not in response.headers
        ):  # addresses signed for GET, some servers
            with get_session().stream(
                "GET", url, headers=headers, timeout=run.timeout, follow_redirects=True
            ) as answer:
                response = answer
        _check_status(response, url)
        length = response.headers.get("content-length")
        if length is None or not length.isdigit():
            _refuse(url, "the server does not say how long it is (no Content-Length)")
        return int(length), _http_version(response.headers)

    size, version = _retrying(ask, url, run, (httpx2.RequestError,))
    return SourceFile(
        name=name,
        url=url,
        size=size,
        split=split,
        version=f"sha256:{sha256}" if sha256 else version,
        format=form[0],
        compression=form[1],
        sha256=sha256,
    )


def stream(file: SourceFile, offset: int, timeout: float) -> Iterator[bytes]:
    """The bytes of a file at a URL from `offset` on. Raises TransientError; InputError if it changed since it was listed; SourceUnavailable."""
    if _is_http(file.url):
        from btlm_data.sources import hub

        hub.limit_waiting(timeout)

        def check(response: Any) -> None:
            _check_status(response, file.url)
            if (
                file.version.startswith("etag:")
                and (now := _http_version(response.headers)).startswith("etag:")
                and now != file.version
            ):
                _changed(file)

        yield from stream_bytes(file.url, {"Accept-Encoding": "identity"}, offset, timeout, check)
        return
    filesystem, path = open_filesystem(file.url, timeout)
    try:
        _same(filesystem, path, file)
        for start in range(offset, file.size, _RANGE):
            yield filesystem.cat_file(path, start=start, end=min(file.size, start + _RANGE))
        _same(filesystem, path, file)
    except FileNotFoundError:
        raise SourceUnavailable(
            f"{file.url} was listed and is gone now. Run the same command again: it lists the source anew."
        ) from None
    except PermissionError as error:
        raise _no_permission(file.url, error) from error
    except (BtlmError, GeneratorExit):
        raise
    except Exception as error:  # every store has its own exceptions; the caller counts attempts and gives up
        raise TransientError(str(error).split("\n")[0] or type(error).__name__) from error


def open_filesystem(url: str, timeout: float) -> tuple[Any, str]:
    """(fsspec file system, path in it). Raises ConfigError for a scheme nothing installed can open."""
    import fsspec

    scheme = url.split("://", 1)[0]
    try:
        filesystem, path = fsspec.core.url_to_fs(url)
    except ImportError as error:
        extra = {
            "s3": "pip install 'btlm-data[s3]'",
            "gs": "pip install gcsfs",
            "gcs": "pip install gcsfs",
            "az": "pip install adlfs",
        }
        raise ConfigError(
            f"{without_secrets(url)}: {scheme}:// needs a package that is not installed ({error}). "
            f"Install it: {extra.get(scheme, 'see https://filesystem-spec.readthedocs.io')}."
        ) from None
    except ValueError as error:
        raise ConfigError(
            f"{without_secrets(url)} cannot be opened: {error}. Use hf://, s3://, gs://, https://, or a local path."
        ) from None
    return filesystem, path


def _find(filesystem: Any, root: str, url: str, run: Run) -> dict[str, dict[str, Any]]:
    def ask() -> dict[str, dict[str, Any]]:
        filesystem.invalidate_cache()
        found: dict[str, dict[str, Any]] = filesystem.find(root, detail=True)
        return found

    return dict(_retrying(ask, url, run, (Exception,)))


def _retrying(ask: Callable[[], Any], url: str, run: Run, passing: tuple[type[Exception], ...]) -> Any:
    """Ask until there is an answer, at most `run.retries` times more. Raises SourceUnavailable."""
    for attempt in itertools.count():
        try:
            return ask()
        except BtlmError:
            raise
        except FileNotFoundError:
            _refuse(url, "it is not there")
        except PermissionError as error:
            raise _no_permission(url, error) from error
        except TransientError as error:
            failure, wait = str(error), error.wait
        except passing as error:
            failure, wait = str(error).split("\n")[0] or type(error).__name__, None
            if "credential" in failure.lower():
                raise _no_permission(url, error) from error
        if attempt >= run.retries:
            _refuse(
                url, f"the server does not answer as it should ({failure}), also after {run.retries} repeats"
            )
        pause = backoff(attempt, run.retry_pause, wait)
        logger.info("%s: %s; asking again in %.1f s", without_secrets(url), failure, pause)
        time.sleep(pause)
    raise AssertionError("unreachable")


def _checksums(entry: Source, run: Run) -> dict[str, str]:
    """Name -> SHA-256 from the published lists; a list that cannot be had leaves its files to their size and ETag."""
    from huggingface_hub import get_session

    assert entry.url_base is not None
    found: dict[str, str] = {}
    for path in entry.checksums:
        folder = path.rsplit("/", 1)[-1].partition("_SHA256SUMS")[0]
        try:
            response = get_session().get(
                f"{entry.url_base}{path}", timeout=run.timeout, follow_redirects=True
            )
            response.raise_for_status()
        except Exception as error:
            logger.warning(
                "checksums %s%s cannot be read (%s): these files are checked by size only",
                entry.url_base,
                path,
                error,
            )
            continue
        for line in response.text.splitlines():
            digest, _, name = line.strip().partition(" ")
            name = name.strip().lstrip("*").removeprefix("./")
            if len(digest) == 64 and name:
                found[name if "/" in name else f"{folder}/{name}"] = digest.lower()
    return found


def _check_status(response: Any, url: str) -> None:
    status = response.status_code
    if status in RETRIED_STATUS:
        raise TransientError(f"status {status}", retry_after(response.headers), status)
    if status in (401, 403):
        raise _no_permission(url, f"status {status}")
    if status >= 400:
        _refuse(url, "it is not there (404)" if status == 404 else f"the server answers {status}")


def _same(filesystem: Any, path: str, file: SourceFile) -> None:
    filesystem.invalidate_cache(path)
    info = filesystem.info(path)
    if int(info.get("size") or 0) != file.size or _version(info) != file.version:
        _changed(file)


def _changed(file: SourceFile) -> NoReturn:
    raise InputError(
        f"{file.url} has changed since the run listed it (then {file.version}, {file.size:,} bytes). "
        "Run the same command again: it lists the source anew and redoes what depends on this file."
    )


def _version(info: Mapping[str, Any]) -> str:
    """What changes when the content does, as far as the store tells."""
    for key in ("ETag", "etag", "md5Hash", "md5", "generation"):
        if info.get(key):
            return f"etag:{info[key]}".replace('"', "")
    for key in ("LastModified", "last_modified", "mtime", "updated"):
        if info.get(key):
            return f"modified:{info[key]}"
    return f"size:{info.get('size')}"


def _http_version(headers: Mapping[str, str]) -> str:
    tag, modified = headers.get("etag"), headers.get("last-modified")
    if tag:
        return f"etag:{tag}".replace('"', "")
    return f"modified:{modified}" if modified else f"size:{headers.get('content-length')}"


def _http_name(url: str) -> str:
    return unquote(urlsplit(url).path).rsplit("/", 1)[-1]


def _is_http(url: str) -> bool:
    return url.startswith(("http://", "https://"))


def without_secrets(url: str) -> str:
    """The URL without user, password and query (signed URLs carry their key there)."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}" if parts.scheme else url


def _no_permission(url: str, error: object) -> SourceUnavailable:
    return SourceUnavailable(
        f"{without_secrets(url)} refuses to be read ({error}). "
        "Check the credentials of this store (for s3: AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY; AWS_ENDPOINT_URL for other stores)."
    )


def _refuse(url: str, found: str) -> NoReturn:
    raise SourceUnavailable(
        f"{without_secrets(url)} cannot be used: {found}. Check the address, or give --source a local folder with the files."
    )
