"""The text of a document as it is in its source, where the source is still on this machine."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

from btlm_data.errors import DataError
from btlm_data.formats import provenance
from btlm_data.formats.dataset import InputFile
from btlm_data.inspection.description_checks import settings_of
from btlm_data.inspection.opening import Opened
from btlm_data.inspection.source_checks import options_of, records_at

MAX_CHARS = 200_000  # of a text that are shown


@dataclass(frozen=True)
class Original:
    """A record's text, uncleaned. text: None where it cannot be read; `why` says why."""

    text: str | None
    why: str = ""


class Originals:
    """Reads records of the source that a dataset was made from, at the places that provenance.json names.

    Only files that are the dataset's inputs by name and size are opened, and only those on this machine.
    """

    def __init__(self, opened: Opened) -> None:
        self._inputs: dict[str, InputFile] = {}
        self._urls: dict[str, str] = {}
        self._settings = None
        self.why = ""
        if opened.manifest is None:
            self.why = "without a dataset.json the source is not known"
            return
        settings = settings_of(opened.manifest.configuration)
        if isinstance(settings, str):
            self.why = f"the configuration is not valid ({settings})"
            return
        self._settings = settings
        self._inputs = {file.name: file for file in opened.manifest.inputs}
        try:
            made = provenance.read(opened.root)
        except DataError as error:
            self.why = str(error)
            return
        if made is None:
            self.why = "there is no provenance.json, so the place of the source is not known"
            return
        self._urls = {origin.name: origin.url for origin in made.inputs}

    def read(self, file: str, offset: int) -> Original:
        """The record of `file` that begins at `offset`."""
        if self._settings is None or not self._urls:
            return Original(None, self.why)
        entry, url = self._inputs.get(file), self._urls.get(file)
        if entry is None or url is None:
            return Original(None, f"{file} is not among the dataset's inputs")
        path = _local(url)
        if path is None:
            return Original(None, f"{file} is not on this machine")
        try:
            if not path.is_file() or path.stat().st_size != entry.size:
                return Original(None, f"{path} is not there any more, or was changed since")
            for batch, index in records_at(path, entry, [offset], options_of(self._settings.source)):
                return Original(batch.texts[index][:MAX_CHARS])
        except (DataError, OSError) as error:
            return Original(None, str(error))
        return Original(None, f"{path} has no readable record at {offset:,}")


def _local(url: str) -> Path | None:
    """The path of a file: URL or a plain path; None for what is elsewhere."""
    if "://" not in url:
        return Path(url)
    parts = urlsplit(url)
    return Path(unquote(parts.path)) if parts.scheme == "file" else None
