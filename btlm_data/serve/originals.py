"""The text of a document as it is in its source, where the source is still on this machine."""

from __future__ import annotations

import msgspec

from btlm_data.errors import BtlmError
from btlm_data.formats.dataset import InputFile
from btlm_data.inspection.opening import Opened
from btlm_data.inspection.source_checks import options_of, records_at, where_it_was_read
from btlm_data.recipe.recorded import settings_of

MAX_CHARS = 200_000  # of a text that are shown


class Original(msgspec.Struct, frozen=True):
    """A record's text, uncleaned. text: None where it cannot be read; `why` says why."""

    text: str | None
    why: str = ""


class Originals:
    """Reads records of the source that a dataset was made from, at the places that provenance.json names.

    Only files that are still the dataset's inputs, by name, size and digest, are read, and only those on this machine.
    """

    def __init__(self, opened: Opened) -> None:
        self._inputs: dict[str, InputFile] = {}
        self._root = opened.root
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

    def read(self, file: str, offset: int) -> Original:
        """The record of `file` that begins at `offset`."""
        if self._settings is None:
            return Original(None, self.why)
        entry = self._inputs.get(file)
        if entry is None:
            return Original(None, f"{file} is not among the dataset's inputs")
        try:
            path = where_it_was_read(self._root, entry)
            for batch, index in records_at(path, entry, [offset], options_of(self._settings.source)):
                return Original(batch.texts[index][:MAX_CHARS])
        except (BtlmError, OSError) as error:
            return Original(None, str(error))
        return Original(None, f"{path} has no readable record at {offset:,}")
