"""Put a prepared dataset on a Hugging Face hub: what is missing there goes up, dataset.json last.

Files that the hub has already, by size and content, are not sent again, so that an interrupted upload
continues with the same command; while it is running, the hub holds no dataset.json. Nothing is deleted there.
"""

from __future__ import annotations

import hashlib
import io
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from btlm_data.errors import ConfigError, DataError, SourceUnavailable
from btlm_data.formats import dataset, generations, pages, provenance
from btlm_data.formats.guarded import require_no_link

if TYPE_CHECKING:
    from huggingface_hub import HfApi

FILES_AT_ONCE = 50  # of one commit
BYTES_AT_ONCE = 5 * 10**9
_TARGET = re.compile(r"hf://datasets/([A-Za-z0-9._-]+/[A-Za-z0-9._-]+?)/?\Z")
SIGNATURE = f"{dataset.FILE_NAME}.sig"


def push(
    root: Path,
    target: str,
    *,
    private: bool,
    report: Callable[[str], None],
    instead: Mapping[str, bytes] | None = None,
) -> tuple[int, int]:
    """Upload the dataset in a folder; returns (files sent, files already there).

    target: hf://datasets/ORG/NAME; the repository is made if there is none. report: called with a sentence
    for each commit. instead: what goes up in the place of some files, by name. Raises ConfigError for another target, DataError if the dataset is not whole,
    SourceUnavailable if the hub refuses.
    """
    match = _TARGET.match(target)
    if match is None:
        raise ConfigError(f"{target!r} is no place to upload to. Write hf://datasets/ORG/NAME.")
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    names, instead = list(_files(root)), instead or {}
    api, repository = HfApi(), match[1]
    try:
        api.create_repo(repository, repo_type="dataset", private=private, exist_ok=True)
        present = _present(api, repository)
        missing = [
            name for name in names if present.get(name) not in _contents(instead.get(name) or root / name)
        ]
        for group in _groups(root, missing):
            _commit(api, repository, root, group, instead)
            report(f"{len(group)} file{'' if len(group) == 1 else 's'} up to {group[-1]}")
    except HfHubHTTPError as error:
        raise SourceUnavailable(
            f"The hub refused the upload to {repository}: {_first_line(error)}. Check the name, and that you are logged in "
            "(`hf auth login`) and may write to it; the same command continues."
        ) from None
    except OSError as error:
        raise SourceUnavailable(
            f"The hub cannot be reached, or a file cannot be read: {_first_line(error)}."
        ) from None
    return len(missing), len(names) - len(missing)


def _files(root: Path) -> Iterator[str]:
    """Names of all files of a complete dataset; what says that it is complete comes last. Raises DataError if one
    is missing, or is a link: what a stranger's link leads to is not sent.
    """
    folders = [generations.folder_of(generation.number) for generation in generations.read(root)]
    for folder in (*folders[1:], ""):
        yield from _files_of_generation(root, f"{folder}/" if folder else "")
    for name in (f"{generations.FILE_NAME}.sig", generations.FILE_NAME):
        if (root / name).is_file():
            require_no_link(root, name)
            yield name


def _files_of_generation(root: Path, below: str) -> Iterator[str]:
    """Those of one generation, its dataset.json last. below: its folder in the dataset's, with a slash."""
    sets = dataset.read_sets(root / below)
    for folder, value in sets.items():
        prefix = f"{below}{folder}/" if folder else below
        for file in value.stored():
            path = root / (prefix + file.name)
            require_no_link(root, prefix + file.name)
            if not path.is_file() or path.stat().st_size != file.bytes:
                raise DataError(
                    f"{path} is missing or has another size. Run `btlm-data verify {root}` before you upload."
                )
            yield prefix + file.name
    inside = [
        f"{folder}/{name}" for folder in sets if folder for name in (provenance.FILE_NAME, dataset.FILE_NAME)
    ]
    for name in (*inside, provenance.FILE_NAME, *pages.PAGES, SIGNATURE, dataset.FILE_NAME):
        if (root / below / name).is_file():
            require_no_link(root, below + name)
            yield below + name


def _present(api: HfApi, repository: str) -> dict[str, str]:
    """Files on the hub: name -> SHA-256 of large ones, git's SHA-1 of others."""
    digests: dict[str, str] = {}
    for entry in api.list_repo_tree(repository, repo_type="dataset", recursive=True):
        blob: Any = getattr(entry, "blob_id", None)
        lfs: Any = getattr(entry, "lfs", None)
        if blob is not None:
            digests[entry.path] = lfs.sha256 if lfs is not None else blob
    return digests


def _contents(content: Path | bytes) -> tuple[str, str]:
    """What the hub calls the content of a file: (SHA-256, git's SHA-1)."""
    size = len(content) if isinstance(content, bytes) else content.stat().st_size
    large, blob = hashlib.sha256(), hashlib.sha1(f"blob {size}\0".encode(), usedforsecurity=False)
    with io.BytesIO(content) if isinstance(content, bytes) else content.open("rb") as file:
        while data := file.read(1 << 22):
            large.update(data)
            blob.update(data)
    return large.hexdigest(), blob.hexdigest()


def _groups(root: Path, names: Sequence[str]) -> Iterator[list[str]]:
    """Files of one commit each; dataset.json (and generations.json) alone, and last."""
    group: list[str] = []
    size = 0
    for name in names:
        more = (root / name).stat().st_size
        alone = name in (dataset.FILE_NAME, generations.FILE_NAME)
        if group and (len(group) == FILES_AT_ONCE or size + more > BYTES_AT_ONCE or alone):
            yield group
            group, size = [], 0
        group.append(name)
        size += more
    if group:
        yield group


def _commit(
    api: HfApi, repository: str, root: Path, names: Sequence[str], instead: Mapping[str, bytes]
) -> None:
    from huggingface_hub import CommitOperationAdd

    operations = [CommitOperationAdd(name, instead.get(name) or str(root / name)) for name in names]
    api.create_commit(
        repository, operations, commit_message=f"{len(names)} files, up to {names[-1]}", repo_type="dataset"
    )


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
