"""Reading files that may come from a stranger, or be damaged: whatever a library makes of them becomes words."""

from __future__ import annotations

import contextlib
import stat
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from btlm_data import advance
from btlm_data.errors import DataError


@contextlib.contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn whatever a damaged file makes its library raise into a DataError that names the file."""
    advance.reading(str(path))
    try:
        yield
    except DataError:
        raise
    except MemoryError as error:
        raise DataError(
            f"{path} asks for more memory than there is. It is damaged, or not a shard; restore or remake it."
        ) from error
    # h5py and pyarrow raise all of these for torn files, `KeyError` and `AttributeError` for objects of an
    # unexpected kind.
    except (
        OSError,
        RuntimeError,
        KeyError,
        ValueError,
        TypeError,
        AttributeError,
        IndexError,
        NotImplementedError,
    ) as error:
        detail = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(f"{path} is damaged: {detail}. Restore it or prepare the dataset again.") from error


def require_regular(path: Path) -> None:
    """Raise DataError for anything but a regular file: a pipe would block, a device might never end."""
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}.") from None
    if not stat.S_ISREG(mode):
        raise DataError(f"{path} is not a regular file. Restore it, or prepare the dataset again.")


def require_no_link(root: Path, name: str) -> None:
    """Raise DataError if a part of the dataset in `root`, or a folder on the way to it, is a link: what is there is elsewhere,
    and not the dataset's to send on or to change.
    """
    path = root
    for part in PurePosixPath(name).parts:
        path /= part
        if path.is_symlink():
            raise DataError(
                f"{path} is a link to {path.resolve()}, so what is there is not in the dataset's folder. Put the file itself "
                "there, and run the same command again."
            )
