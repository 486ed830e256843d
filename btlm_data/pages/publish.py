"""Put pages beside a dataset, or wherever somebody asks for one; never over a file that this program did not
write.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from btlm_data.errors import BtlmError, OutputError
from btlm_data.formats import dataset, generations, provenance
from btlm_data.formats import pages as seals
from btlm_data.output_folder import LEASE, OutputFolder
from btlm_data.storage import Store, lease, open_store

logger = logging.getLogger(__name__)
MAX_COPIED_BYTES = 2 * 10**9  # of a dataset in a bucket, which is copied to this machine for its report
_URL = re.compile(r"([a-z][a-z0-9+.-]+):/+(?!/)")  # as it is, or with the one slash that pathlib leaves


def write_report(path: Path, file: str) -> str:
    """Write report.html about what is at `path`, a folder or a URL; returns where it is.

    file: the file to write; "" is report.html in the dataset's folder, or in the current folder where `path`
    holds no dataset.json. Raises OutputError if a file that is no report of ours is there, or it cannot be
    written; DataError if there is nothing to look at.
    """
    if (url := _URL.match(str(path))) is not None:
        store = open_store(f"{url[1]}://{str(path)[url.end() :]}")
        if file:
            with _copied(store) as copy:
                return write_report(copy, file)
        if not is_ours_to_write(store, seals.REPORT):
            raise OutputError(
                f"{store.shown}/{seals.REPORT} is no report that btlm-data wrote, or was changed since. Remove it, or name another file with --html."
            )
        store.write(seals.REPORT, _report_of(store))
        return f"{store.shown}/{seals.REPORT}"
    inside = path / seals.REPORT if (path / dataset.FILE_NAME).exists() else Path(seals.REPORT)
    target = Path(file).expanduser() if file else inside
    if target.is_dir():
        target = target / seals.REPORT
    if not target.parent.is_dir():
        raise OutputError(
            f"There is no folder {target.parent} for the report. Create it, or name another file with --html."
        )
    store = open_store(target.parent)
    if not is_ours_to_write(store, target.name):
        raise OutputError(
            f"{target} is no report that btlm-data wrote, or was changed since. Remove it, or name another file with --html."
        )
    store.write(target.name, make_report(path))
    return os.fspath(target)


def is_ours_to_write(store: Store, name: str) -> bool:
    """Whether there is no such file, or one that this program wrote and nobody changed."""
    size = store.size(name)
    if size is None:
        return True
    if size > seals.MAX_BYTES:
        return False
    seal = seals.seal_of(store.read(name))
    return seal is not None and seal.holds


def write_beside(out: str, *, report: bool = True, card: str | None = None) -> list[str]:
    """Write the pages of a complete dataset that are missing or about an earlier one; returns warnings, in
    words.

    out: the folder or URL, as `run.out` names it. report, card: as in the
    recipe's `run`; card "none" writes neither README.md nor croissant.json. Whatever goes wrong is a warning:
    the dataset is complete.
    """
    store = open_store(out)
    warnings: list[str] = []
    try:
        with lease.hold(store, LEASE, f"The output folder {store.shown} is", option="--out"):
            checksum = dataset.read(store).checksum
            for name, make in _makers(store, report, card).items():
                if is_about(store, name, checksum):
                    continue
                if is_ours_to_write(store, name):
                    store.write(name, make())
                else:
                    warnings.append(
                        f"{store.shown}/{name} was not written by this program, or was changed since; it is left as it is"
                    )
    except Exception as error:  # a page must never cost the dataset that it is about
        logger.debug("the pages could not be written", exc_info=True)
        reason = str(error) if isinstance(error, BtlmError) else f"{type(error).__name__}: {error}"
        warnings.append(
            f"the pages beside the dataset could not be written ({reason}); the dataset is complete"
        )
    return warnings


def _makers(store: Store, report: bool, card: str | None) -> dict[str, Callable[[], bytes]]:
    """Pages that are wanted, by name, and what makes each."""
    makers: dict[str, Callable[[], bytes]] = {}
    if card != "none":
        makers[seals.CARD] = lambda: make_card(store, eu=card == "eu")
        makers[seals.CROISSANT] = lambda: make_croissant(store)
    if report:
        makers[seals.REPORT] = lambda: _report_of(store)
    return makers


def _report_of(store: Store) -> bytes:
    if store.is_local:
        return make_report(Path(store.shown))
    with _copied(store) as copy:
        return make_report(copy)


@contextlib.contextmanager
def _copied(store: Store) -> Iterator[Path]:
    """A copy of the dataset in a store, in a temporary folder. Raises OutputError for one of more than
    MAX_COPIED_BYTES, DataError where there is none.
    """
    dataset.read(store)
    entries = [entry for entry in store.list() if not entry.name.startswith(".")]
    total = sum(entry.size for entry in entries)
    if total > MAX_COPIED_BYTES:
        raise OutputError(
            f"The report of a dataset in a bucket is made from a copy of at most {MAX_COPIED_BYTES / 1e9:.0f} GB, and "
            f"{store.shown} has {total / 1e9:.1f} GB. Copy it to this machine, and run `btlm-data inspect COPY --html`."
        )
    with tempfile.TemporaryDirectory(prefix="btlm-data-report-") as folder:
        root = Path(folder) / (store.shown.rstrip("/").rpartition("/")[2] or "dataset")
        copy = open_store(root)
        for entry in entries:
            with store.open(entry.name) as source, copy.create(entry.name, durable=False) as created:
                shutil.copyfileobj(source, created.file, 1 << 20)
        yield root


def make_card(store: Store, *, eu: bool) -> bytes:
    """README.md of the dataset in a store. Raises DataError if it cannot be read."""
    from btlm_data.pages.card import readme

    sets = _sets(store)
    name = provenance.FILE_NAME
    made = (
        provenance.decode(store.read(name), f"{store.shown}/{name}") if store.size(name) is not None else None
    )
    return readme(sets, made, dataset.read(store).checksum, eu=eu)


def pages_of_generations(root: Path) -> dict[str, bytes]:
    """README.md and croissant.json of all generations of a dataset, by their names, for whoever sees the dataset elsewhere; none
    where nothing was added to it, and not those that it has not, or that are not this program's. Raises DataError if the
    dataset cannot be read.
    """
    from btlm_data.pages.card import SUMMARY, readme
    from btlm_data.pages.croissant import croissant

    store = open_store(root)
    if not generations.listed(root):
        return {}
    names = [
        name
        for name in (seals.CARD, seals.CROISSANT)
        if store.size(name) is not None and is_ours_to_write(store, name)
    ]
    sets, checksum = generations.read_sets(root), dataset.read(store).checksum
    pages = {}
    if seals.CARD in names:
        eu = SUMMARY.encode() in store.read(seals.CARD)
        pages[seals.CARD] = readme(sets, provenance.read(root), checksum, eu=eu)
    if seals.CROISSANT in names:
        pages[seals.CROISSANT] = croissant(sets, checksum)
    return pages


def make_croissant(store: Store) -> bytes:
    """croissant.json of the dataset in a store. Raises DataError if it cannot be read."""
    from btlm_data.pages.croissant import croissant

    return croissant(_sets(store), dataset.read(store).checksum)


def make_report(path: Path) -> bytes:
    """report.html of what is at `path`."""
    from btlm_data.pages import report_page

    return report_page.build(path)


def _sets(store: Store) -> dict[str, dataset.Dataset]:
    return OutputFolder(store, [""]).datasets()


def is_about(store: Store, name: str, checksum: str) -> bool:
    """Whether a page is as this program wrote it, about the dataset.json with this checksum."""
    size = store.size(name)
    if size is None or size > seals.MAX_BYTES:
        return False
    seal = seals.seal_of(store.read(name))
    return seal is not None and seal.holds and seal.dataset == checksum
