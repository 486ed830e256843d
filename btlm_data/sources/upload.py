"""A finished, verified dataset folder to an object store: the data first, `dataset.json` last.

Whoever reads at the destination therefore sees either no `dataset.json` (nothing to read yet) or a whole dataset. An S3 or GCS put is
atomic: an object appears whole under its name. Where it is not (sftp, a mounted folder, ...), each file goes to a temporary name first and is
moved. A second call skips what is there with the same size and MD5 (as far as the store tells it; files above 50 MB go in several
parts and have none, and are sent again), so an upload that was cut goes on.
"""

from __future__ import annotations

import base64
import concurrent.futures
import functools
import hashlib
import itertools
import json
import logging
import os
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from btlm_data.errors import BtlmError, OutputError
from btlm_data.redact import without_secrets
from btlm_data.sources.base import Access
from btlm_data.sources.bucket import open_filesystem
from btlm_data.storage.retry import backoff

logger = logging.getLogger(__name__)
MANIFEST = "dataset.json"
_ATOMIC_PUT = {"s3", "s3a", "gs", "gcs", "abfs", "az", "adl", "oss", "memory"}


@dataclass(frozen=True)
class Upload:
    """What an upload did. num_bytes counts what was sent, not what was there."""

    num_files: int
    num_skipped: int
    num_bytes: int


def upload_dataset(
    local: Path,
    url: str,
    *,
    overwrite: bool = False,
    threads: int = 4,
    retries: int = 8,
    pause: float = 1.0,
    timeout: float = 60.0,
    progress: Callable[[int], None] = lambda _: None,
) -> Upload:
    """Copy the dataset folder `local` to `url`.

    overwrite: replace another dataset that is there (its shards that this one has not are removed, other files stay). progress: called with the bytes of each file sent. Raises OutputError if
    `local` is no finished dataset, the destination holds another dataset or foreign files, or the store refuses.
    """
    files = _files(local)
    filesystem, root = open_filesystem(url, Access(timeout))
    root = root.rstrip("/")
    shown = without_secrets(url)
    retry = _Retry(shown, retries, pause)
    filesystem.invalidate_cache()
    there: dict[str, Any] = retry(lambda: filesystem.find(root, detail=True))
    present = {
        place[len(root) :].lstrip("/"): info
        for place, info in there.items()
        if info.get("type") != "directory"
    }
    _check_destination(filesystem, root, shown, local, present, overwrite=overwrite)
    data = [name for name in files if name != MANIFEST]
    protocols = (filesystem.protocol,) if isinstance(filesystem.protocol, str) else filesystem.protocol
    atomic_put = not _ATOMIC_PUT.isdisjoint(protocols)
    if MANIFEST in present and not _same(
        filesystem, f"{root}/{MANIFEST}", local / MANIFEST, present[MANIFEST]
    ):
        retry(
            lambda: filesystem.rm_file(f"{root}/{MANIFEST}")
        )  # from here until the end there is no dataset at the destination

    def send(name: str) -> int:
        size = files[name]
        if name in present and _same(filesystem, f"{root}/{name}", local / name, present[name]):
            return -1
        retry(lambda: _put(filesystem, local / name, f"{root}/{name}", atomic_put=atomic_put))
        info = retry(lambda: _fresh_info(filesystem, f"{root}/{name}"))
        if int(info.get("size") or 0) != size:
            raise OutputError(
                f"{shown}/{name} has {info.get('size')} bytes after the upload, {size} were sent. Run the same command again; if it "
                "happens again, the store is at fault."
            )
        progress(size)
        return size

    with concurrent.futures.ThreadPoolExecutor(threads) as pool:
        sent = [pool.submit(send, name) for name in data]
        try:
            amounts = [future.result() for future in sent]
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    amounts.append(send(MANIFEST))
    stale = sorted(set(present) - set(files))
    for name in stale:
        if overwrite and name.endswith(
            ".h5"
        ):  # a reader takes every *.h5 it finds; anything else of another's stays
            retry(functools.partial(filesystem.rm_file, f"{root}/{name}"))
    done = Upload(
        sum(a >= 0 for a in amounts), sum(a < 0 for a in amounts), sum(a for a in amounts if a >= 0)
    )
    logger.info(
        "uploaded %d files (%.2f GB) to %s; %d were there",
        done.num_files,
        done.num_bytes / 1e9,
        shown,
        done.num_skipped,
    )
    return done


def _files(local: Path) -> dict[str, int]:
    """Name -> size of what is to be sent; no hidden or temporary files."""
    if not (local / MANIFEST).is_file():
        raise OutputError(
            f"{local} holds no {MANIFEST}, so it is no finished dataset. Let `btlm-data prepare` finish, then upload."
        )
    found: dict[str, int] = {}
    for folder, folders, names in os.walk(local):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            if not name.startswith("."):
                path = Path(folder) / name
                found[path.relative_to(local).as_posix()] = path.stat().st_size
    return found


def _check_destination(
    filesystem: Any, root: str, shown: str, local: Path, present: dict[str, Any], *, overwrite: bool
) -> None:
    if overwrite or not present:
        return
    mine = json.loads((local / MANIFEST).read_bytes())
    if MANIFEST in present:
        try:
            theirs = json.loads(filesystem.cat_file(f"{root}/{MANIFEST}"))
        except ValueError:
            theirs = None
        if theirs != mine:
            raise OutputError(
                f"{shown} holds another dataset. Choose another place, or use --overwrite to replace it."
            )
        return
    foreign = sorted(
        name
        for name in present
        if not (local / name).is_file() and not name.rsplit("/", 1)[-1].startswith(".")
    )
    if foreign:
        raise OutputError(
            f"{shown} holds files that are not part of this dataset, for example {foreign[0]}. Choose an empty place, or use --overwrite."
        )


def _same(filesystem: Any, place: str, path: Path, info: dict[str, Any]) -> bool:
    """Whether the object is this file: size, and MD5 where the store tells it (small files without one are compared)."""
    size = path.stat().st_size
    if int(info.get("size") or 0) != size:
        return False
    if (stored := _md5(info)) is not None:
        digest = hashlib.md5(usedforsecurity=False)
        with path.open("rb") as stream:
            while piece := stream.read(2**20):
                digest.update(piece)
        return digest.hexdigest() == stored
    return size <= 2**20 and filesystem.cat_file(place) == path.read_bytes()


def _md5(info: dict[str, Any]) -> str | None:
    """An object's MD5 in hex as its store tells it: S3's ETag of what was sent in one part, Google's md5Hash in base64; else None."""
    if isinstance(base64_digest := info.get("md5Hash"), str):
        try:
            return base64.b64decode(base64_digest, validate=True).hex()
        except ValueError:
            return None
    tag = str(info.get("ETag") or info.get("etag") or "").strip('"')
    return tag if len(tag) == 32 and all(c in "0123456789abcdef" for c in tag) else None


def _put(filesystem: Any, path: Path, place: str, *, atomic_put: bool) -> None:
    if atomic_put:
        filesystem.put_file(str(path), place)
        return
    folder, _, name = place.rpartition("/")
    filesystem.makedirs(folder, exist_ok=True)
    temporary = f"{folder}/.{name}.{uuid.uuid4().hex[:8]}.tmp"
    try:
        filesystem.put_file(str(path), temporary)
        filesystem.mv(temporary, place)
    except BaseException:
        if filesystem.exists(temporary):
            filesystem.rm_file(temporary)
        raise


def _fresh_info(filesystem: Any, place: str) -> dict[str, Any]:
    filesystem.invalidate_cache()
    info: dict[str, Any] = filesystem.info(place)
    return info


class _Retry:
    """Calls a function again while the store has a passing fault; its last one becomes an OutputError."""

    def __init__(self, shown: str, retries: int, pause: float) -> None:
        self._shown, self._retries, self._pause = shown, retries, pause

    def __call__(self, ask: Callable[[], Any]) -> Any:
        for attempt in itertools.count():
            try:
                return ask()
            except BtlmError:
                raise
            except (PermissionError, FileNotFoundError) as error:
                raise OutputError(
                    f"{self._shown} cannot be written: {error}. Check that the bucket exists and the credentials of this store "
                    "(for s3: AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY; AWS_ENDPOINT_URL for other stores)."
                ) from error
            except Exception as error:
                if attempt >= self._retries or "credential" in str(error).lower():
                    raise OutputError(
                        f"{self._shown} cannot be written: {str(error).splitlines()[0] if str(error) else type(error).__name__}. "
                        "Check the address and the network, and run the same command again: what was sent stays there and is not sent again."
                    ) from error
                time.sleep(backoff(attempt, self._pause, None))
        raise AssertionError("unreachable")
