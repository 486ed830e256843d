"""Object stores and whatever else fsspec opens: s3://BUCKET/PREFIX, gs://..., az://..., memory://...

An object, a folder (all objects below a prefix) or a glob. Keys that differ only in slashes are different
objects, and stay so: an empty part of a key is written %2F in a file's name.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NoReturn

from btlm_data.errors import BtlmError, ConfigError, InputError, SourceUnavailable
from btlm_data.redact import redact, without_secrets
from btlm_data.sources.base import MAX_ENTRIES, Access, Entry, Query, SchemeListing, SourceFile
from btlm_data.sources.globs import is_pattern, split_pattern
from btlm_data.sources.http import reason_of
from btlm_data.sources.names import shown
from btlm_data.storage.retry import FIRST_ANSWER, TransientError

logger = logging.getLogger(__name__)
_RANGE = 8 * 2**20  # bytes requested at once
_PACKAGES = {"s3": "'.[s3]'", "s3a": "'.[s3]'", "gs": "gcsfs", "gcs": "gcsfs", "az": "adlfs", "abfs": "adlfs"}


def list_entries(query: Query) -> SchemeListing:
    """Everything below a prefix. Raises SourceUnavailable in plain words; ConfigError for a scheme nothing
    can open.
    """
    filesystem, path = open_filesystem(query.url, query.access)
    root, glob = split_pattern(path) if query.globs is None and is_pattern(path) else (path, None)
    root = root.rstrip("/")

    def ask() -> dict[str, dict[str, Any]]:
        filesystem.invalidate_cache()
        objects: dict[str, dict[str, Any]] = filesystem.find(root, detail=True)
        return objects

    infos = _retrying(ask, query)
    if len(infos) > MAX_ENTRIES:
        _refuse(query.url, f"more than {MAX_ENTRIES:,} objects are below it; name a smaller part")
    secrets: dict[str, str] = {}
    entries: dict[str, Entry] = {}
    single = list(infos) == [root]
    for key, info in sorted(infos.items()):
        if info.get("type") == "directory" or key.endswith("/"):
            continue
        name = _name(key, root)
        if name in entries:
            _refuse(
                query.url, f"two objects have the name {shown(name)!r} below it; name one of their folders"
            )
        full = filesystem.unstrip_protocol(key)
        clean = without_secrets(full)
        if clean != full:
            secrets[clean] = full
        entries[name] = Entry(name, clean, int(info.get("size") or 0), version_of(info))
    provenance = {"kind": "objects", "url": without_secrets(query.url)}
    return SchemeListing(list(entries.values()), provenance, glob, single=single, secrets=secrets)


def stream(file: SourceFile, url: str, offset: int, access: Access) -> Iterator[bytes]:
    """The bytes of an object from `offset` on, in ranges; that it is still the listed one is asked before and
    after.
    """
    filesystem, path = open_filesystem(url, access)
    try:
        _check_version(filesystem, path, file)
        for start in range(offset, file.size, _RANGE):
            yield filesystem.cat_file(path, start=start, end=min(file.size, start + _RANGE))
        _check_version(filesystem, path, file)
    except FileNotFoundError:
        raise SourceUnavailable(
            f"{file.url} was listed and is gone now. Run the same command again: it lists the source again."
        ) from None
    except PermissionError as error:
        raise _no_permission(file.url, error) from error
    except (BtlmError, TransientError, GeneratorExit):
        raise
    except Exception as error:  # every store has its own exceptions; the caller counts attempts and gives up
        raise TransientError(reason_of(error)) from error


def local_path(file: SourceFile) -> str | None:
    """Nowhere: it has to be fetched."""
    return None


def open_filesystem(url: str, access: Access) -> tuple[Any, str]:
    """(fsspec file system, path in it). Raises ConfigError for a scheme nothing installed can open."""
    import fsspec

    scheme = url.split("://", 1)[0].lower()
    options: dict[str, Any] = {}
    if scheme in ("s3", "s3a") and "config_kwargs" not in fsspec.config.conf.get("s3", {}):
        # botocore waits a minute for a connection, five times over; the policy here repeats instead.
        options["config_kwargs"] = {
            "connect_timeout": min(access.timeout, FIRST_ANSWER),
            "read_timeout": access.timeout,
            "retries": {"max_attempts": 1},
        }
    try:
        filesystem, path = fsspec.core.url_to_fs(url, **options)
    except ImportError as error:
        package = _PACKAGES.get(scheme)
        remedy = f"pip install {package}" if package else "see https://filesystem-spec.readthedocs.io"
        raise ConfigError(
            f"{without_secrets(url)}: {scheme}:// needs a package that is not installed ({redact(error)}). Install it: {remedy}."
        ) from None
    except ValueError as error:
        raise ConfigError(
            f"{without_secrets(url)} cannot be opened: {redact(error)}. Use hf://, s3://, gs://, https://, or a local path."
        ) from None
    return filesystem, str(path)


def version_of(info: Mapping[str, Any]) -> str:
    """What changes when the content does, as far as the store tells."""
    for key in ("ETag", "etag", "md5Hash", "md5", "generation"):
        if info.get(key):
            return f"etag:{info[key]}".replace('"', "")
    for key in ("LastModified", "last_modified", "mtime", "updated"):
        if info.get(key):
            return f"modified:{info[key]}"
    return f"size:{info.get('size')}"


def _name(key: str, root: str) -> str:
    """A key relative to the root, with its empty parts kept apart: `d//a` below `d` is `%2F/a`, not `a`."""
    if key == root:
        return key.rsplit("/", 1)[-1]
    relative = key[len(root) :]
    relative = relative.removeprefix("/") if root else relative
    return "/".join(part or "%2F" for part in relative.split("/"))


def _check_version(filesystem: Any, path: str, file: SourceFile) -> None:
    filesystem.invalidate_cache(path)
    info = filesystem.info(path)
    if int(info.get("size") or 0) != file.size or version_of(info) != file.version:
        raise InputError(
            f"{file.url} has changed since the run listed it (then {file.version}, {file.size:,} bytes). "
            "Run the same command again: it lists the source again and repeats what depends on this file."
        )


def _retrying(ask: Callable[[], Any], query: Query) -> Any:
    """Ask until there is an answer; a store that cannot be connected to is given up soon. Raises
    SourceUnavailable.

    Every store has its own exceptions.
    """
    url, attempts, begin = query.url, query.access.retry.attempts(), time.monotonic()
    while True:
        asked = time.monotonic()
        try:
            return ask()
        except BtlmError:
            raise
        except FileNotFoundError:
            _refuse(url, "it is not there")
        except PermissionError as error:
            raise _no_permission(url, error) from error
        except Exception as error:
            problem = reason_of(error)
            if "credential" in problem.lower():
                raise _no_permission(url, error) from error
            pause = attempts.failed(error if isinstance(error, TransientError) else TransientError(problem))
            silent = "connect" in f"{type(error).__name__} {problem}".lower()
            now = time.monotonic()
            if silent and now - begin + (pause or 0) + (now - asked) > FIRST_ANSWER:
                _refuse(url, f"the store cannot be reached ({problem})")
            if pause is None:
                _refuse(
                    url,
                    f"the store does not answer as it should ({problem}), also after {query.access.retry.retries} repeats",
                )
        logger.log(
            logging.DEBUG if silent else logging.INFO,
            "%s: %s; asking again in %.1f s",
            without_secrets(url),
            problem,
            pause,
        )
        time.sleep(pause)


def _no_permission(url: str, error: BaseException) -> SourceUnavailable:
    return SourceUnavailable(
        f"{without_secrets(url)} may not be read ({reason_of(error)}). "
        "Check the credentials of this store (for s3: AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY; AWS_ENDPOINT_URL for other stores)."
    )


def _refuse(url: str, problem: str) -> NoReturn:
    raise SourceUnavailable(
        f"{without_secrets(url)} cannot be used: {problem}. Check the address, or give --source a local folder with the files."
    )
