"""From `--source` to a sorted list of files, wherever they lie; the check before any work that they can be had.

    sample, a path or a glob            sources/local.py
    a registered name                   sources/registry.py says where
    hf://datasets/ORG/NAME[@REV][/GLOB] sources/hub.py
    any other URL                       sources/objects.py (fsspec)

Nothing is downloaded here but listings (and RedPajama's lists of URLs).
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from btlm_data.errors import ConfigError, InputError, SourceUnavailable
from btlm_data.recipe.models import Run, SourceSettings
from btlm_data.sources import registry
from btlm_data.sources.base import SourceFile
from btlm_data.sources.patterns import matcher, splits_of
from btlm_data.splits import SPLITS

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Listing:
    """What a source gives.

    files: sorted by split (train, validation, test), then name. provenance: JSON values for dataset.json (kind, place,
    resolved revision, licence note). fields: SourceSettings fields (`text_field`, `source_field`) that this source
    has otherwise than the defaults; already laid under what the user set, so simply use them.
    """

    files: tuple[SourceFile, ...]
    provenance: Mapping[str, Any] = field(default_factory=dict)
    fields: Mapping[str, str] = field(default_factory=dict)

    @property
    def num_bytes(self) -> int:
        """Bytes as stored."""
        return sum(file.size for file in self.files)


def list_files(settings: SourceSettings, run: Run) -> Listing:
    """List what `settings.name` names.

    Raises SourceUnavailable, saying what to do, if a remote place refuses or cannot be reached; ConfigError if the name or
    a selection makes no sense; InputError if nothing is there.
    """
    known = registry.sources(Path(run.sources_file) if run.sources_file else None)
    entry = registry.find(settings.name, known)
    if entry is not None:
        listing = _list_registered(settings, run, entry)
    elif "://" in settings.name and not settings.name.startswith("file://"):
        _refuse_chunks(settings)
        listing = _list_url(settings.name, settings.revision, run)
    else:
        _refuse_chunks(settings)
        from btlm_data.sources.local import list_local

        path = settings.name.removeprefix("file://")
        try:
            listing = list_local(
                settings if path == settings.name else settings.model_copy(update={"name": path})
            )
        except InputError as error:
            if "/" in settings.name or "." in settings.name:
                raise
            raise InputError(f"{error}\n{registry.suggestion(settings.name, known)}") from None
    return _select(settings, listing)


def _list_url(
    url: str, revision: str | None, run: Run, patterns: Mapping[str, Sequence[str]] | None = None
) -> Listing:
    """List one place. patterns: split -> globs, where an entry decides; otherwise the URL's own glob and the usual folder names."""
    if url.startswith("hf://"):
        from btlm_data.sources.hub import list_hub

        return list_hub(url, revision, run, patterns)
    from btlm_data.sources.objects import list_objects

    return list_objects(url, run, patterns)


def _list_registered(settings: SourceSettings, run: Run, entry: registry.Source) -> Listing:
    """List a registered source: its own place, then its mirrors, in order."""
    patterns = expand_patterns(entry, settings.chunks)
    refusals: list[str] = []
    listing: Listing | None = None
    for place in (entry.at, *entry.mirrors):
        try:
            listing = _list_place(place, settings, run, entry, patterns)
        except SourceUnavailable as error:
            refusals.append(f"{place}: {error}")
            continue
        if refusals:
            logger.warning(
                "%s cannot be had from its first place; reading the mirror %s", settings.name, place
            )
        break
    if listing is None:
        raise SourceUnavailable(_what_to_do(settings.name, entry, refusals))
    names = [(matcher(pattern), name) for pattern, name in entry.source_names.items()]
    files = [
        replace(file, source=next((name for matches, name in names if matches(file.name)), file.source))
        for file in listing.files
    ]
    fields = {"text_field": entry.text_field} | (
        {"source_field": entry.source_field} if entry.source_field else {}
    )
    fields = {
        key: getattr(settings, key) if key in settings.model_fields_set else value
        for key, value in fields.items()
    }
    provenance = {**listing.provenance, "name": settings.name, "license": entry.license}
    return Listing(tuple(files), provenance, fields)


def _list_place(
    place: str,
    settings: SourceSettings,
    run: Run,
    entry: registry.Source,
    patterns: Mapping[str, Sequence[str]],
) -> Listing:
    revision = (settings.revision or entry.revision) if place == entry.at else None
    if entry.url_lists and place == entry.at:
        from btlm_data.sources.objects import list_url_lists

        return list_url_lists(place, revision, run, entry, patterns, settings)
    if "://" in place and not place.startswith("file://"):
        return _list_url(place, revision, run, patterns)
    from btlm_data.sources.local import list_local

    folder = place.removeprefix("file://")
    found = list_local(settings.model_copy(update={"name": folder}))
    splits = splits_of([file.name for file in found.files], patterns, None)
    chosen = [replace(file, split=splits[file.name]) for file in found.files if file.name in splits]
    if not chosen:
        raise SourceUnavailable(
            f"The folder {folder} has none of the files the source names. Check the patterns in the sources file."
        )
    return Listing(tuple(chosen), {**found.provenance, "files": len(chosen)})


def expand_patterns(entry: registry.Source, chunks: Sequence[int]) -> dict[str, list[str]]:
    """The entry's globs with `{chunk}` filled in: every chunk, or those chosen. Raises ConfigError for a chunk there is not."""
    if chunks and not entry.chunks:
        raise ConfigError(
            "--chunks: this source has no chunks. Leave the option out, or use --files N to read a part."
        )
    most = max(entry.chunks.values(), default=0)
    for chunk in chunks:
        if not 1 <= chunk <= most:
            raise ConfigError(
                f"--chunks {chunk}: this source has chunks 1 to {most}. Choose among them, for example --chunks 1,2."
            )
    expanded: dict[str, list[str]] = {}
    for split, patterns in entry.splits.items():
        numbers = [n for n in range(1, entry.chunks.get(split, 0) + 1) if not chunks or n in chunks]
        expanded[split] = [
            filled
            for pattern in patterns
            for filled in (
                [pattern.replace("{chunk}", str(n)) for n in numbers] if "{chunk}" in pattern else [pattern]
            )
        ]
    return {split: patterns for split, patterns in expanded.items() if patterns}


def _select(settings: SourceSettings, listing: Listing) -> Listing:
    """Apply --exclude-source (where the place decides) and --files, in the final order."""
    order = {split: number for number, split in enumerate(SPLITS)}
    files = sorted(listing.files, key=lambda file: (order.get(file.split, len(SPLITS)), file.name))
    files = [file for file in files if file.source is None or file.source not in settings.exclude_sources]
    if settings.files is not None:
        taken: dict[str, int] = {}
        kept = []
        for file in files:
            taken[file.split] = taken.get(file.split, 0) + 1
            if taken[file.split] <= settings.files:
                kept.append(file)
        files = kept
    if not files:
        raise InputError(
            f"The source {settings.name} has {len(listing.files)} files, and none is left after --exclude-source and --files. "
            "Loosen the selection, or check the name."
        )
    return replace(listing, files=tuple(files))


def _refuse_chunks(settings: SourceSettings) -> None:
    if settings.chunks:
        raise ConfigError(
            f"--chunks belongs to registered sources whose files come in numbered chunks; {settings.name} is none. "
            "Name the chunk in the path, for example FOLDER/train/chunk1, or use --files N."
        )


def _what_to_do(name: str, entry: registry.Source, refusals: Sequence[str]) -> str:
    """The refusals of every place, and what can be done now."""
    lines = [
        f"The source {name} cannot be had now.",
        *(f"  {refusal}" for refusal in refusals),
        "What you can do:",
    ]
    lines.append("  - wait and run the same command again: what is done stays done;")
    lines.append(
        "  - if it is gated or private: accept its terms on its page, then set HF_TOKEN to your token;"
    )
    lines.append(
        "  - set HF_ENDPOINT to a mirror of the hub, or list one under `mirrors:` in a --sources-file (docs/sources.md);"
    )
    lines.append("  - if you have the files: --source FOLDER (the same layout gives the same shards);")
    if entry.stand_ins:
        lines.append(f"  - take a smaller stand-in: --source {' or --source '.join(entry.stand_ins)}.")
    return "\n".join(lines)
