"""What every source gives: a sorted list of files, each with an identity that does not depend on where it
is.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import msgspec

from btlm_data.recipe.models import Run
from btlm_data.storage.retry import Retry

MAX_ENTRIES = (
    5_000_000  # the largest corpora have under a million files; a longer listing is taken to be broken
)
_EXAMPLES = 5


class SourceFile(msgspec.Struct, frozen=True):
    """One input file.

    name: '/'-separated and relative to the source; it is the file's identity, gives the order (text order
    within a split) and enters the shuffle key, so the same files give the same shards from a folder, a hub or
    a bucket. url: an absolute local path, or what a remote scheme understands; never a user, password or
    signature (these are in Listing.secrets). size: bytes as stored. version: changes when the content may
    have changed (mtime, ETag or SHA-256). source: the source name of all its documents, where the file's
    place decides it; otherwise None, and the record says it. stamp: of a local file, what the file system
    said of it when it was listed (local.unchanged). split_rule: what put it into its split.
    """

    name: str
    url: str
    size: int
    split: str
    version: str
    format: str
    compression: str
    source: str | None = None
    sha256: str | None = None
    text_field: str | None = None  # where this file's records differ from the source's setting
    stamp: str | None = None
    split_rule: str = ""

    @property
    def identity(self) -> str:
        """What receipts remember of it."""
        return (
            f"{self.split}|{self.name}|{self.size}|{self.version}|{self.source or ''}|{self.text_field or ''}"
        )

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        values: dict[str, Any] = msgspec.to_builtins(self)
        return values


class LeftOut(msgspec.Struct, frozen=True):
    """Files of the source that are not read, for one reason. names: the first few, '/'-separated, relative."""

    reason: str
    count: int
    names: tuple[str, ...]

    def words(self) -> str:
        """For people: `3 x unknown ending .bz2 (a.bz2, b.bz2, ...)`."""
        more = ", ..." if self.count > len(self.names) else ""
        return f"{self.count:,} x {self.reason} ({', '.join(self.names)}{more})"


def count_left_out(names_left_out: Iterable[tuple[str, str]]) -> tuple[LeftOut, ...]:
    """Group (reason, name) pairs, the commonest reason first."""
    counts: Counter[str] = Counter()
    names: dict[str, list[str]] = {}
    for reason, name in names_left_out:
        counts[reason] += 1
        if len(examples := names.setdefault(reason, [])) < _EXAMPLES:
            examples.append(name)
    return tuple(LeftOut(reason, count, tuple(names[reason])) for reason, count in counts.most_common())


class Listing(msgspec.Struct, frozen=True):
    """What a source gives.

    files: sorted by split (train, validation, test), then name. provenance: JSON values that say where the
    files came from (kind, place, resolved revision, licence note, what was left out). fields: SourceSettings
    fields (`text_field`, `source_field`) that this source has otherwise than the defaults; already laid under
    what the user set, so simply use them. left_out: what is there and is not read. secrets: URL as in the
    files -> the URL with its signature or password, for those that need one; hand it to Fetcher.of and write
    it nowhere.
    """

    files: tuple[SourceFile, ...]
    provenance: Mapping[str, Any] = msgspec.field(default_factory=dict)
    fields: Mapping[str, str] = msgspec.field(default_factory=dict)
    left_out: tuple[LeftOut, ...] = ()
    secrets: Mapping[str, str] = msgspec.field(default_factory=dict)

    @property
    def num_bytes(self) -> int:
        """Bytes as stored."""
        return sum(file.size for file in self.files)

    def split_rules(self) -> dict[str, tuple[LeftOut, ...]]:
        """For each split, the rules that put files there, with counts and the first names (LeftOut.reason is
        the rule).
        """
        by_split: dict[str, list[tuple[str, str]]] = {}
        for file in self.files:
            by_split.setdefault(file.split, []).append((file.split_rule, file.name))
        return {split: count_left_out(pairs) for split, pairs in by_split.items()}


class Access(msgspec.Struct, frozen=True):
    """How servers are asked. timeout: seconds without a byte. retry: the policy for faults that may pass."""

    timeout: float = 60.0
    retry: Retry = msgspec.field(default_factory=Retry)

    @staticmethod
    def of(run: Run) -> Access:
        """As the run's options say."""
        return Access(run.timeout, Retry(run.retries, run.retry_pause))


class Query(msgspec.Struct, frozen=True):
    """What to list.

    url: as the user wrote it, with its glob and its signature. globs: where a registered corpus decides, the
    patterns below `url` of all the files that are wanted (a scheme may list only the folders they are in).
    revision: hub only. skip: absolute local folders that are no part of the source: what the run itself
    writes. They are not counted as left out, since a resumed run finds more of them than a fresh one.
    version: of every file, where the files never change.
    """

    url: str
    access: Access
    globs: tuple[str, ...] | None = None
    revision: str | None = None
    skip: tuple[str, ...] = ()
    version: str | None = None


class Entry(NamedTuple):
    """One file of a place, whether or not it is a part of the corpus. Fields as in SourceFile."""

    name: str
    url: str
    size: int
    version: str
    sha256: str | None = None
    stamp: str | None = None
    compression: str | None = None  # where the server says otherwise than the name


class SchemeListing(msgspec.Struct, frozen=True):
    """The files that a scheme lists at one URL.

    entries: all files below the root, in any order. glob: the pattern in the URL, relative to the root, that
    names are still to be matched with. single: the URL names one file, by itself. left_out: (reason, name) of
    what is no readable file. secrets: see Listing. trusted: names come from this machine, and are not refused
    for odd characters.
    """

    entries: Sequence[Entry]
    provenance: Mapping[str, Any] = msgspec.field(default_factory=dict)
    glob: str | None = None
    single: bool = False
    left_out: Sequence[tuple[str, str]] = ()
    secrets: Mapping[str, str] = msgspec.field(default_factory=dict)
    trusted: bool = False


class Scheme(Protocol):
    """How one URL scheme is listed and read: the calls that its module has."""

    def list_entries(self, query: Query) -> SchemeListing:
        """Everything at a place. Raises SourceUnavailable, if it refuses or cannot be reached;
        InputError.
        """

    def stream(self, file: SourceFile, url: str, offset: int, access: Access) -> Iterator[bytes]:
        """The bytes of a file from `offset` on. url: with its secrets.

        Raises TransientError where asking again may help, SourceUnavailable where it does not, InputError if
        the file is no longer what was listed.
        """

    def local_path(self, file: SourceFile) -> str | None:
        """Where the bytes already are on this machine, so that they need not be fetched; None: nowhere.

        A copy that some other program keeps may be named too: it is checked before it is used.
        """
