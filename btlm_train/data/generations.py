"""The generations of a dataset as a reader takes them: a folder of shards, with the same folder of later
generations behind it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from btlm_data.errors import InputError
from btlm_data.formats import generations
from btlm_train.data.folders import Folder, open_folder, shown

Chosen = int | list[int] | Literal["all"] | None


def folders_of(names: Sequence[str], chosen: Chosen) -> list[tuple[int, str]]:
    """(generation, folder) of what is read: each folder in `names`, and where it is that of a dataset's first
    generation, those of the others that are chosen (None: all). A folder is there once.

    Raises InputError where a generation is chosen that there is not, DataError for a damaged generations.json.
    """
    folders: list[tuple[int, str]] = []
    wanted = {chosen} if isinstance(chosen, int) else set(chosen) if isinstance(chosen, list) else None
    given = {open_folder(name).absolute for name in names}
    for name in names:
        later = _later(open_folder(name))
        count = len(later) + 1
        if wanted is not None and (missing := sorted(wanted - set(range(1, count + 1)))):
            raise InputError(
                f"There is no generation {missing[0]} of {shown(name)}: it has {count}. Correct `generation`."
            )
        if wanted is None or 1 in wanted:
            folders.append((1, name))
        for number, folder in enumerate(later, 2):
            is_chosen = number in wanted if wanted is not None else folder.absolute not in given
            if is_chosen and folder.exists():
                folders.append((number, folder.name))
    return folders


def _later(folder: Folder) -> list[Folder]:
    """The same folder in each later generation; none where the folder is not of a first generation."""
    above, parts = folder, list[str]()
    for _ in range(3):  # the dataset itself, a split or a set of it, a split of a set
        data = above.read(generations.FILE_NAME, generations.MAX_BYTES)
        if data is not None and b'"generation-0002"' in data:  # else another program's file
            entries = generations.decode(data, f"{above.absolute}/{generations.FILE_NAME}").generations
            return [_below(above, [entry.folder, *parts]) for entry in entries[1:]]
        parent = above.parent()
        if parent is None:
            break
        parts.insert(0, above.absolute.rstrip("/").rpartition("/")[2])
        above = parent
    return []


def _below(folder: Folder, parts: Sequence[str]) -> Folder:
    for part in parts:
        folder = folder.child(part)
    return folder
