"""Files of this machine: one file, a folder searched recursively, or a glob; and the sample corpus in the
package.

Links are followed, to files and to folders; a link to a folder above itself is noticed and left out.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path

from btlm_data.errors import ConfigError, InputError
from btlm_data.formats.dataset import FILE_NAME, UNFINISHED_NAME
from btlm_data.records.compression import COMPRESSIONS
from btlm_data.records.formats import classify, endings
from btlm_data.sources.base import MAX_ENTRIES, Access, Entry, Query, SchemeListing, SourceFile
from btlm_data.sources.globs import is_pattern, matcher, split_pattern
from btlm_data.sources.names import shown
from btlm_data.sources.selection import ignored, is_archive

SAMPLE = Path(__file__).resolve().parent.parent / "data" / "sample"
PREPARED = "folder of a prepared dataset"
_MANIFESTS = (FILE_NAME, UNFINISHED_NAME)
_LFS = b"version https://git-lfs.github.com/spec/"
_LFS_BYTES = range(100, 1024)  # the sizes that a pointer file can have (git-lfs's specification: below 1,024)
_Identity = tuple[int, int]  # device and inode of a folder


def readable() -> str:
    """The endings of files that can be read, for a message."""
    packed = ", ".join(ending for codec in COMPRESSIONS.values() for ending in codec.endings)
    return f"{', '.join(endings())} (most of them also compressed: {packed})"


def is_local(url: str) -> bool:
    """Whether a source or file is on this machine: a path, or file://."""
    return "://" not in url or url.startswith("file://")


def path_of(url: str) -> Path:
    """The absolute path that a local source names; `~` is the home folder."""
    return Path(os.path.abspath(os.path.expanduser(url.removeprefix("file://"))))


def list_entries(query: Query) -> SchemeListing:
    """List a file, a folder or a glob.

    Raises InputError if it is not there, is a prepared dataset, or a file or folder in it cannot be read.
    """
    path = path_of(query.url)
    try:
        mode: int | None = path.stat().st_mode
    except FileNotFoundError:
        mode = None
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise InputError(
            f"{shown(str(path))} cannot be read: {reason}. Check the path and its permissions."
        ) from None
    if mode is not None and stat.S_ISREG(mode):
        name = path.name if classify(path.name) is not None else os.path.basename(os.path.realpath(path))
        if classify(name) is None:
            why = f"has no ending of a known format ({path.suffix or 'no ending'}). Use {readable()}."
            if is_archive(name):
                why = "is an archive, which is not read. Unpack it, and name the folder in which its files are then."
            raise InputError(f"{shown(str(path))} {why}")
        status = _readable(path)
        entries = [_entry(name, path, status, query.version)]
        _refuse_pointers(entries)
        return SchemeListing(entries, {"kind": "local"}, single=True, trusted=True)
    if mode is not None and not stat.S_ISDIR(mode):
        raise InputError(
            f"{shown(str(path))} is a {_kind(mode)}, not a file or folder. Name a file, a folder or a pattern."
        )
    if mode is not None:
        root, glob = path, None
    else:
        root, glob = _root_and_glob(path)
        if not is_pattern(query.url) or not root.is_dir():
            raise InputError(
                f"The source {shown(query.url)!r} does not exist: there is no such file or folder, and no registered "
                "source of this name. Check the spelling and the current folder; a pattern has to be quoted."
            )
    if _is_prepared(root, os.listdir(root)):
        raise InputError(
            f"{shown(str(root))} is a folder that btlm-data prepared: it holds shards, not a corpus. "
            "Name the folder with the text, or use `btlm-data inspect` to look at the dataset."
        )
    walk = _Walk(root, query.skip, query.version)
    entries = list(walk.files())
    _refuse_pointers([entry for entry in entries if glob is None or matcher(glob)(entry.name)])
    return SchemeListing(entries, {"kind": "local"}, glob, left_out=walk.left_out, trusted=True)


def stream(file: SourceFile, url: str, offset: int, access: Access) -> Iterator[bytes]:
    """Never called: a local file is read where it is."""
    raise NotImplementedError


def local_path(file: SourceFile) -> str | None:
    """Where the file is."""
    return file.url


def unchanged(file: SourceFile) -> None:
    """Whether a local file still is what was listed: its size, times and inode. Call it before and after
    reading.

    Raises InputError if it changed, grew, was replaced or is gone; does nothing for a remote file, whose
    version is checked when it is downloaded.
    """
    if file.stamp is None:
        return
    try:
        now = stamp_of(os.stat(file.url))
    except OSError as error:
        problem = "is gone" if error.errno == errno.ENOENT else f"cannot be read: {error.strerror}"
    else:
        if now == file.stamp:
            return
        before, after = (value.partition(":")[0] for value in (file.stamp, now))
        problem = "has changed" + (
            f" (from {int(before):,} to {int(after):,} bytes)" if before != after else ""
        )
    raise InputError(
        f"{shown(file.url)} {problem} since the run listed it; a file of the corpus must not change while it is read. "
        "Run the same command again when nothing writes there: it lists the source again and repeats what depends on this file."
    )


def stamp_of(status: os.stat_result) -> str:
    """Size, modification time, time of the last change of any kind, and inode:
    `SIZE:MTIME_NS:CTIME_NS:INODE`.
    """
    return f"{status.st_size}:{status.st_mtime_ns}:{status.st_ctime_ns}:{status.st_ino}"


def check_outside(source: str, folders: Sequence[str | os.PathLike[str]]) -> None:
    """Refuse a local source that is inside a folder that the run writes to (or is that folder).

    The other way round, an output folder inside the source, is fine: the listing leaves it out. Raises
    ConfigError.
    """
    if not is_local(source) or source == "sample":
        return
    path = os.path.realpath(path_of(split_pattern(source)[0] or "/"))
    for folder in folders:
        written = os.path.realpath(path_of(os.fspath(folder)))
        if path == written or path.startswith(written.rstrip("/") + "/"):
            raise ConfigError(
                f"The source {shown(source)} is inside {shown(str(folder))}, a folder that this run writes to. "
                "Choose a folder outside the corpus for --out and --work-dir."
            )


class _Walk:
    """A folder and all below it, in order of names. left_out: (reason, name) of what is no readable file."""

    def __init__(self, root: Path, skip: Sequence[str], version: str | None) -> None:
        self.left_out: list[tuple[str, str]] = []
        self._root = root
        self._skip = frozenset(map(os.path.realpath, skip))
        self._version = version
        self._count = 0

    def files(self) -> Iterator[Entry]:
        """Every file."""
        status = self._root.stat()
        chain = {_identity(status)}
        for parent in Path(os.path.realpath(self._root)).parents:
            chain.add(_identity(parent.stat()))
        yield from self._below(str(self._root), "", frozenset(chain))

    def _below(self, folder: str, prefix: str, chain: frozenset[_Identity]) -> Iterator[Entry]:
        """The files in and below one folder. chain: the folders above it and itself, by which a loop is
        noticed.
        """
        try:
            with os.scandir(folder) as scanned:
                entries = sorted(scanned, key=lambda entry: os.fsencode(entry.name))
        except OSError as error:
            raise InputError(
                f"The folder {shown(folder)} cannot be read: {error.strerror}. Change its permissions, or name another --source."
            ) from None
        for entry in entries:
            name = prefix + entry.name
            self._check_name(name)
            try:
                status = entry.stat()  # of a link's target
            except OSError as error:
                if entry.is_symlink():
                    loop = error.errno == errno.ELOOP
                    self.left_out.append(("link that points to itself" if loop else "link to nothing", name))
                    continue
                if error.errno == errno.ENOENT:
                    self.left_out.append(("removed while the folder was listed", name))
                    continue
                raise InputError(
                    f"{shown(entry.path)} cannot be read: {error.strerror}. Change its permissions or move it, or name another --source."
                ) from None
            if stat.S_ISDIR(status.st_mode):
                if self._skip and os.path.realpath(entry.path) in self._skip:
                    continue
                if (reason := self._reason_to_skip(entry, status, chain)) is not None:
                    self.left_out.append((reason, f"{name}/"))
                else:
                    yield from self._below(entry.path, f"{name}/", chain | {_identity(status)})
            elif not stat.S_ISREG(status.st_mode):
                self.left_out.append((_kind(status.st_mode), name))
            else:
                self._count += 1
                if self._count > MAX_ENTRIES:
                    raise InputError(
                        f"The folder {shown(str(self._root))} holds more than {MAX_ENTRIES:,} files. Name a smaller part of it, or join small files."
                    )
                if classify(entry.name) is not None and ignored(entry.name, is_folder=False) is None:
                    _check_permission(entry.path)
                yield _entry(name, Path(entry.path), status, self._version)

    def _reason_to_skip(
        self, entry: os.DirEntry[str], status: os.stat_result, chain: frozenset[_Identity]
    ) -> str | None:
        if (reason := ignored(entry.name, is_folder=True)) is not None:
            return reason
        if _identity(status) in chain:
            return "link to a folder above itself"
        try:
            names = os.listdir(entry.path)
        except OSError:
            return None  # told by the walk
        return PREPARED if _is_prepared(Path(entry.path), names) else None

    def _check_name(self, name: str) -> None:
        try:
            name.encode()
        except UnicodeEncodeError:
            raise InputError(
                f"The file name {shown(name)!r} is not UTF-8, so it cannot be recorded. Rename the file or its folder, or name another --source."
            ) from None


def _root_and_glob(path: Path) -> tuple[Path, str]:
    """The folder that names are relative to, and the pattern below it; a folder may itself be called
    `[2024]`.
    """
    root = Path(path.anchor)
    parts = path.parts[1:]
    for number, part in enumerate(parts):
        if is_pattern(part) and not (root / part).is_dir():
            return root, "/".join(parts[number:])
        root /= part
    return root, "**"


def _entry(name: str, path: Path, status: os.stat_result, version: str | None) -> Entry:
    return Entry(
        name,
        str(path),
        status.st_size,
        version if version is not None else f"{status.st_mtime_ns}",
        stamp=stamp_of(status) if version is None else None,
    )


def _identity(status: os.stat_result) -> _Identity:
    return status.st_dev, status.st_ino


def _kind(mode: int) -> str:
    kinds = (
        (stat.S_ISFIFO, "named pipe"),
        (stat.S_ISSOCK, "socket"),
        (stat.S_ISCHR, "device"),
        (stat.S_ISBLK, "device"),
    )
    return next((kind for is_kind, kind in kinds if is_kind(mode)), "special file")


def _readable(path: Path) -> os.stat_result:
    _check_permission(str(path))
    return path.stat()


def _check_permission(path: str) -> None:
    if not os.access(path, os.R_OK):
        raise InputError(
            f"{shown(path)} cannot be read: no permission. Change its permissions, or name another --source."
        )


def _is_prepared(folder: Path, names: Sequence[str]) -> bool:
    """Whether btlm-data prepared a dataset in this folder, or began to."""
    for manifest in _MANIFESTS:
        if manifest in names:
            try:
                with (folder / manifest).open("rb") as file:
                    head = file.read(2**20)
            except OSError:
                continue
            if b'"fingerprint"' in head or b'"format_version"' in head:
                return True
    return False


def _refuse_pointers(entries: Sequence[Entry]) -> None:
    """Git leaves small text files in place of large ones if `git lfs pull` was not run: name them as what
    they are.
    """
    pointers = [
        entry.name
        for entry in entries
        if entry.size in _LFS_BYTES and classify(entry.name) is not None and _is_pointer(entry.url)
    ]
    if pointers:
        raise InputError(
            f"{len(pointers):,} of the source's files are Git LFS pointers, not the data itself, for example "
            f"{shown(pointers[0])}. Run `git lfs pull` in the repository, then run the same command again."
        )


def _is_pointer(path: str) -> bool:
    try:
        with open(path, "rb") as file:
            return is_lfs_pointer(file.read(len(_LFS)))
    except OSError:
        return False


def is_lfs_pointer(head: bytes) -> bool:
    """Whether a file that begins so is a Git LFS pointer."""
    return head.startswith(_LFS)
