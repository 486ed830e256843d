"""Put pages beside a dataset, or wherever somebody asks for one; never over a file that this program did not write."""

from __future__ import annotations

import logging
import os
from pathlib import Path

from btlm_data.errors import BtlmError, OutputError
from btlm_data.formats import dataset
from btlm_data.formats import pages as seals
from btlm_data.output_folder import LEASE
from btlm_data.storage import Store, is_remote, lease, open_store

logger = logging.getLogger(__name__)


def write_report(path: Path, file: str) -> str:
    """Write report.html about what is at `path`; returns where it is.

    file: the file to write; "" is report.html in the dataset's folder, or in the current folder where `path` holds no
    dataset.json. Raises OutputError if a file that is no report of ours is there, or it cannot be written; DataError if
    there is nothing to look at.
    """
    from btlm_data.pages import report_page

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
    store.write(target.name, report_page.build(path))
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


def write_beside(out: str) -> list[str]:
    """Write the pages of a complete dataset that are missing or about an earlier one; returns warnings, in words.

    out: the folder, as `run.out` names it; into a bucket no report is written. Whatever goes wrong is a warning: the
    dataset is complete, and `btlm-data inspect --html` writes the report at any time.
    """
    if is_remote(out):
        return []
    store = open_store(out)
    try:
        with lease.hold(store, LEASE, f"The output folder {store.shown} is", option="--out"):
            checksum = dataset.read(store).checksum
            name = seals.REPORT
            if is_about(store, name, checksum):
                return []
            if not is_ours_to_write(store, name):
                return [
                    f"{store.shown}/{name} was not written by this program, or was changed since; it is left as it is"
                ]
            write_report(Path(store.shown), "")
    except Exception as error:  # a page must never cost the dataset that it is about
        logger.debug("the report could not be written", exc_info=True)
        said = str(error) if isinstance(error, BtlmError) else f"{type(error).__name__}: {error}"
        return [f"report.html could not be written ({said}); the dataset is complete"]
    return []


def is_about(store: Store, name: str, checksum: str) -> bool:
    """Whether a page is as this program wrote it, about the dataset.json with this checksum."""
    size = store.size(name)
    if size is None or size > seals.MAX_BYTES:
        return False
    seal = seals.seal_of(store.read(name))
    return seal is not None and seal.holds and seal.dataset == checksum
