"""From `--source` to a sorted list of files, wherever they are; the check before any work that they can be
read.

    sample, a path or a glob            local.py
    a registered name                   corpora.py says where
    hf://datasets/ORG/NAME[@REV][/GLOB] hub.py
    any other URL                       schemes.py names the module

Nothing is downloaded here but listings (and RedPajama's lists of URLs). A scheme only says what is at its
place; which files are the corpus, what is left out and which split a file belongs to is decided here, the
same for all of them.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec
from msgspec.structs import replace

from btlm_data.errors import BtlmError, ConfigError, InputError, SourceUnavailable
from btlm_data.recipe.models import Run, SourceSettings
from btlm_data.records.formats import FORMATS, classify
from btlm_data.redact import without_secrets
from btlm_data.sources import corpora
from btlm_data.sources.base import Access, Listing, Query, SchemeListing, SourceFile, count_left_out
from btlm_data.sources.corpora import Corpus
from btlm_data.sources.globs import matcher
from btlm_data.sources.local import SAMPLE, check_outside, is_local, path_of, readable
from btlm_data.sources.names import is_safe_name, shown
from btlm_data.sources.redpajama import is_layout, layout_source
from btlm_data.sources.schemes import scheme_of
from btlm_data.sources.selection import choose
from btlm_data.sources.splits import Placed, assign_splits, words_inside
from btlm_data.splits import SPLITS, Split
from btlm_data.wording import counted

MAX_FILE_BYTES = 2**60  # that a listing may claim
logger = logging.getLogger(__name__)
# Reasons that need no warning: no one takes such files for the corpus.
_QUIET = ("hidden", "description")
_EMPTY = "empty file"


def list_files(settings: SourceSettings, run: Run) -> Listing:
    """List what `settings.name` names.

    Raises SourceUnavailable, saying what to do, if a remote place refuses or cannot be reached; ConfigError
    if the name or a selection makes no sense; InputError if nothing is there.
    """
    known = corpora.corpora(Path(run.sources_file) if run.sources_file else None)
    corpus = known.get(settings.name)
    if corpus is not None:
        listing = _list_corpus(settings, run, corpus)
    else:
        _refuse_chunks(settings)
        check_outside(
            settings.name, [folder for folder in (run.out, run.work_dir) if folder and is_local(folder)]
        )
        try:
            listing = _list_entries(settings.name, _Wanted(splits=settings.splits), settings, run)
        except InputError as error:
            if not is_local(settings.name) or path_of(settings.name).exists():
                raise
            if settings.name.count("/") > 1 and ":/" not in settings.name:  # plainly a path
                raise
            raise InputError(f"{error}\n{corpora.suggestion(settings.name, known)}") from None
    listing = _select(settings, listing)
    _tell(settings, listing, registered=corpus is not None)
    return replace(listing, provenance={**listing.provenance, "place": _place(settings.name, corpus)})


def _place(name: str, corpus: Corpus | None) -> str:
    """What `--source` names, wherever it is read again: a registered name, a URL, or an absolute path."""
    if corpus is not None or name == "sample":
        return name
    return str(path_of(name)) if is_local(name) else without_secrets(name)


class _Wanted(msgspec.Struct, frozen=True):
    """Which files of a place are wanted, and their splits.

    globs: split -> patterns of a registered corpus: nothing else is read. splits: the user's source.splits.
    """

    globs: Mapping[Split, Sequence[str]] | None = None
    splits: Mapping[Split, Sequence[str]] = msgspec.field(default_factory=dict)

    @property
    def all_globs(self) -> tuple[str, ...] | None:
        return None if self.globs is None else tuple(glob for globs in self.globs.values() for glob in globs)

    def assign(self, names: Sequence[str]) -> dict[str, Placed]:
        if self.globs is None or self.splits:
            return assign_splits(names, self.splits)
        placed = {name: self.registered(name) for name in names}
        return {name: placement for name, placement in placed.items() if placement is not None}

    def registered(self, name: str) -> Placed | None:
        """The split that a registered corpus gives to a name."""
        for split, globs in (self.globs or {}).items():
            for glob in globs:
                if matcher(glob)(name):
                    return Placed(split, f"pattern {glob} of the registered corpus")
        return None


def _list_entries(url: str, wanted: _Wanted, settings: SourceSettings, run: Run) -> Listing:
    query = Query(
        str(SAMPLE) if url == "sample" else url,
        Access.of(run),
        wanted.all_globs,
        settings.revision,
        skip=tuple(_written(run)) if is_local(url) else (),
        version="package" if url == "sample" else None,
    )
    listing = scheme_of(query.url).list_entries(query)
    if url == "sample":
        listing = replace(listing, provenance={"kind": "sample"})
    return _files(listing, url, wanted)


def _files(listing: SchemeListing, url: str, wanted: _Wanted) -> Listing:
    """The corpus's files of all that is at a place. Raises InputError or SourceUnavailable if there are
    none.
    """
    entries = {entry.name: entry for entry in listing.entries}
    if not listing.trusted:
        for name, entry in entries.items():
            if not 0 <= entry.size <= MAX_FILE_BYTES:
                raise SourceUnavailable(
                    f"{without_secrets(url)} cannot be used: its listing gives {shown(name)} the size {entry.size}. "
                    "Tell the owner of the corpus, or give --source a folder with the files."
                )
            if not is_safe_name(name):
                raise SourceUnavailable(
                    f"{without_secrets(url)} cannot be used: its listing names the file {shown(name)!r}, which is no "
                    "plain relative path. Tell the owner of the corpus, or give --source a folder with the files."
                )
    if listing.single:
        names, skipped = [name for name in entries if classify(name) is not None], list(listing.left_out)
    else:
        names, skipped = choose(entries, listing.glob, wanted.all_globs)
        skipped += listing.left_out
        skipped += [(_EMPTY, name) for name in names if entries[name].size == 0]
        names = [name for name in names if entries[name].size]
    left_out = count_left_out(
        (reason, shown(name)) for reason, name in sorted(skipped, key=lambda item: item[1])
    )
    if not names:
        reasons = "; ".join(group.words() for group in left_out[:5]) or "no files at all"
        where = (
            f"matches {shown(without_secrets(url))}"
            if listing.glob
            else f"is in {shown(without_secrets(url))}"
        )
        kind: type[BtlmError] = InputError if listing.trusted else SourceUnavailable
        raise kind(
            f"No corpus file {where}; found {reasons}. Name a file, a folder or a pattern with {readable()}."
        )
    _refuse_idle_rules(wanted.splits, names, url)
    files = []
    by_layout = wanted.globs is None and is_layout(names)
    for name, placed in wanted.assign(names).items():
        entry, form = entries[name], classify(name)
        assert form is not None
        files.append(
            SourceFile(
                name=name,
                url=entry.url,
                size=entry.size,
                split=placed.split,
                version=entry.version,
                format=form[0],
                compression=entry.compression or form[1],
                source=layout_source(name) if by_layout else None,
                sha256=entry.sha256,
                stamp=entry.stamp,
                split_rule=placed.rule,
            )
        )
    provenance = {
        **listing.provenance,
        "files": len(files),
        "bytes": sum(file.size for file in files),
        "left_out": [msgspec.to_builtins(group) | {"names": list(group.names)} for group in left_out],
    }
    if by_layout:
        provenance["layout"] = "RedPajama-1T"
    return Listing(tuple(files), provenance, left_out=left_out, secrets=listing.secrets)


def _refuse_idle_rules(rules: Mapping[Split, Sequence[str]], names: Sequence[str], url: str) -> None:
    """A misspelt pattern of source.splits would train on what was to be held out. Raises ConfigError."""
    for split, patterns in rules.items():
        for pattern in patterns:
            if not any(map(matcher(pattern), names)):
                raise ConfigError(
                    f"The pattern {shown(pattern)!r} for {split} (--split-rule, source.splits) matches no file of "
                    f"{shown(without_secrets(url))}. Patterns are relative to it; it has for example {shown(names[0])}."
                )


def _list_corpus(settings: SourceSettings, run: Run, corpus: Corpus) -> Listing:
    """List a registered corpus: its own place, then its mirrors, in order."""
    _refuse_unknown_names(settings, corpus)
    wanted = _Wanted(expand_patterns(corpus, settings.chunks), settings.splits)
    refusals: list[str] = []
    listing: Listing | None = None
    for url in (corpus.at, *corpus.mirrors):
        at_home = url == corpus.at
        revision = (settings.revision or corpus.revision) if at_home else None
        at_revision = settings.model_copy(update={"revision": revision})
        try:
            if corpus.url_lists and at_home:
                listing = _list_urls(at_revision, run, corpus, wanted)
            else:
                listing = _list_entries(url, wanted, at_revision, run)
        except (SourceUnavailable, InputError) as error:
            refusals.append(f"{without_secrets(url)}: {error}")
            continue
        if refusals:
            logger.warning(
                "%s cannot be read at its first place; reading the mirror %s",
                settings.name,
                without_secrets(url),
            )
        break
    if listing is None:
        raise SourceUnavailable(_what_to_do(settings.name, corpus, refusals))
    names = [(matcher(pattern), name) for pattern, name in corpus.source_names.items()]
    files = [
        replace(file, source=next((name for matches, name in names if matches(file.name)), file.source))
        for file in listing.files
    ]
    fields = {"text_field": corpus.text_field}
    if corpus.source_field:
        fields["source_field"] = corpus.source_field
    fields = {
        key: getattr(settings, key) if key in settings.model_fields_set else value
        for key, value in fields.items()
    }
    provenance = {**listing.provenance, "name": settings.name, "license": corpus.license}
    return replace(listing, files=tuple(files), provenance=provenance, fields=fields)


def _list_urls(settings: SourceSettings, run: Run, corpus: Corpus, wanted: _Wanted) -> Listing:
    from btlm_data.sources.url_lists import list_url_lists

    def split_of(name: str) -> str | None:
        placed = wanted.registered(name)
        return None if placed is None else placed.split

    listing = list_url_lists(
        corpus, settings.revision, Access.of(run), settings.exclude_sources, settings.files, split_of
    )
    return _files(listing, corpus.at, wanted)


def expand_patterns(corpus: Corpus, chunks: Sequence[int]) -> dict[Split, list[str]]:
    """The corpus's globs with `{chunk}` filled in: every chunk, or those chosen. Raises ConfigError for a
    chunk there is not.
    """
    if chunks and not corpus.chunks:
        raise ConfigError(
            "--chunks: this source has no chunks. Leave the option out, or use --files N to read a part."
        )
    most = max(corpus.chunks.values(), default=0)
    for chunk in chunks:
        if not 1 <= chunk <= most:
            raise ConfigError(
                f"--chunks {chunk}: this source has chunks 1 to {most}. Choose among them, for example --chunks 1,2."
            )
    expanded: dict[Split, list[str]] = {}
    for split, patterns in corpus.splits.items():
        numbers = [n for n in range(1, corpus.chunks.get(split, 0) + 1) if not chunks or n in chunks]
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
    files = sorted(listing.files, key=lambda file: (order[file.split], file.name))
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
            f"The source {without_secrets(settings.name)} has {len(listing.files)} files, and none is left after "
            "--exclude-source and --files. Loosen the selection, or check the name."
        )
    return replace(listing, files=tuple(files))


def _tell(settings: SourceSettings, listing: Listing, *, registered: bool) -> None:
    """What a user has to know of the listing before the work begins."""
    if settings.name == "sample" or registered:
        return
    if listing.left_out:
        loud = [group for group in listing.left_out if not group.reason.startswith(_QUIET)]
        quiet = [group for group in listing.left_out if group not in loud]
        number = sum(group.count for group in listing.left_out)
        logger.log(
            logging.WARNING if loud else logging.INFO,
            "%s of the source %s not read: %s",
            counted(number, "file"),
            "is" if number == 1 else "are",
            "; ".join(group.words() for group in (*loud, *quiet)[:8]),
        )
    _tell_formats(settings, listing)
    if any(
        name.split("/")[-2:-1] == ["_delta_log"] or name == "_delta_log/"
        for group in listing.left_out
        for name in group.names
    ):
        logger.warning(
            "The source is a Delta table, and its Parquet files are read as they are: rows that were changed or deleted "
            "later are read too. Write its present version into a folder of its own to avoid that."
        )
    for twins in _same_files(listing):
        logger.warning(
            "%s are the same file (a link), and each is read. Remove the links, or name a pattern without it.",
            " and ".join(map(shown, twins)),
        )
    for twins in _twins(listing):
        logger.warning(
            "%s look like the same file stored more than once; each is read. Keep one, or name a pattern for it.",
            " and ".join(map(shown, twins)),
        )
    if settings.splits:
        return
    if inside := [file.name for file in listing.files if file.split == "train" and words_inside(file.name)]:
        logger.warning(
            "%s of train %s the name of another split within: %s. If that is meant, place them with --split-rule.",
            counted(len(inside), "file"),
            "has" if len(inside) == 1 else "have",
            ", ".join(map(shown, inside[:3])) + (", ..." if len(inside) > 3 else ""),
        )
    for split, rules in listing.split_rules().items():
        for rule in rules:
            if split != "train" or "named alone" in rule.reason:
                logger.info("Files of the split %s: %s", split, rule.words())


def _tell_formats(settings: SourceSettings, listing: Listing) -> None:
    """How files become records, where a person may have meant something else."""
    files = Counter(file.format for file in listing.files)
    for name, number in sorted(files.items()):
        if words := FORMATS[name].in_words(settings.txt):
            logger.info("%s of the format %s: %s", counted(number, "file"), name, words)


def _same_files(listing: Listing) -> list[list[str]]:
    """The first few names of local files that lead to the same file; empty ones cannot be listed."""
    by_stamp: dict[str, list[str]] = {}
    for file in listing.files:
        if file.stamp is not None:
            by_stamp.setdefault(file.stamp, []).append(file.name)
    return [names for names in by_stamp.values() if len(names) > 1][:3]


def _twins(listing: Listing) -> list[list[str]]:
    """The first few names that differ only in their compression, as `gunzip --keep` leaves them."""
    by_stem: dict[str, list[str]] = {}
    for file in listing.files:
        stem = file.name.rpartition(".")[0] if file.compression != "none" else file.name
        by_stem.setdefault(stem, []).append(file.name)
    return [names for names in by_stem.values() if len(names) > 1][:3]


def _written(run: Run) -> list[str]:
    """The local folders that the run writes to."""
    locations = (run.out, run.work_dir, run.emit_text, run.cache_dir)
    return [str(path_of(location)) for location in locations if location is not None and is_local(location)]


def _refuse_unknown_names(settings: SourceSettings, corpus: Corpus) -> None:
    """A misspelt --exclude-source would leave in what was to be left out; where the place gives the names,
    they are known.
    """
    names = sorted(set(corpus.source_names.values()))
    unknown = sorted(set(settings.exclude_sources) - set(names))
    if names and unknown and corpus.source_field is None:
        raise ConfigError(
            f"--exclude-source {shown(unknown[0])}: {settings.name} has no source of this name. Its sources are {', '.join(names)}."
        )


def _refuse_chunks(settings: SourceSettings) -> None:
    if settings.chunks:
        raise ConfigError(
            f"--chunks belongs to registered sources whose files come in numbered chunks; {shown(without_secrets(settings.name))} "
            "is none. Name the chunk in the path, for example FOLDER/train/chunk1, or use --files N."
        )


def _what_to_do(name: str, corpus: Corpus, refusals: Sequence[str]) -> str:
    """The refusals of every place, and what can be done now."""
    lines = [
        f"{name} cannot be downloaded.",
        *(f"  {refusal}" for refusal in refusals),
        "What you can do:",
        "  - wait and run the same command again: what is done stays done;",
        "  - if it is gated or private: accept its terms on its page, then set HF_TOKEN to your token;",
        "  - set HF_ENDPOINT to a mirror of the hub, or list one under `mirrors:` in a --sources-file (docs/sources.md);",
        "  - if you have the files: --source FOLDER (the same layout gives the same shards);",
    ]
    if corpus.stand_ins:
        lines.append(f"  - take a smaller stand-in: --source {' or --source '.join(corpus.stand_ins)}.")
    return "\n".join(lines)
