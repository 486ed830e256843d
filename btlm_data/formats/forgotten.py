"""forgotten.json: which documents were taken out of a dataset, when and why, as a chain of certificates.

Each certificate carries the SHA-256 of the one before it, and dataset.json carries the file's, so none can be
changed or left out unseen; a signature of dataset.json (`btlm-data sign`) covers all of them. Documents are
named by the hash of their text (as documents.parquet has it), questions by the SHA-256 of what was asked: the
file holds no id, no URL and no text.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from btlm_data.formats.ledger import Count, ShortText, SplitName
from btlm_data.formats.sealed_json import (
    NO_CHECKSUM,
    Sha256,
    canonical,
    read_small,
    refused,
    sealed,
    unsealed,
)

FILE_NAME = "forgotten.json"
How = Literal["mask", "remove"]
MAX_BYTES = 1 << 30


class ForgottenDocument(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A document. document: its row in documents.parquet before; hash: of its text, None where the table has
    none; tokens: without EOS; masked: label positions that lost their loss (0 where it was removed).
    """

    split: SplitName
    document: Count
    hash: Annotated[str, Meta(pattern=r"^[0-9a-f]{32}\Z")] | None
    tokens: Count
    masked: Count


class ChangedShard(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A shard that was written again: its SHA-256 before and after; zeros where it is not there any more."""

    split: SplitName
    name: ShortText
    before: Sha256
    after: Sha256


class SeenBy(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A training run that had seen the documents: at how many steps (and the first ones), and how many are
    still to come.
    """

    run: ShortText
    steps_seen: Count
    first_steps: Annotated[list[Count], Meta(max_length=1000)]
    steps_to_come: Count


class Certificate(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One time that documents were taken out.

    previous: SHA-256 of the certificate before, in canonical JSON; zeros for the first. how: "mask", or
    "remove", which takes what was masked before out too. asked: SHA-256 of each question. still_held: places
    that still hold the documents' text. fingerprint: of the dataset before.
    """

    previous: Sha256
    when: ShortText
    who: ShortText
    reason: ShortText
    how: How
    fingerprint: Sha256
    asked: list[Sha256]
    documents: list[ForgottenDocument]
    shards: list[ChangedShard]
    seen_by: list[SeenBy]
    still_held: list[ShortText]

    @property
    def digest(self) -> str:
        """SHA-256 of the certificate, as the next one names it."""
        return hashlib.sha256(canonical(msgspec.to_builtins(self))).hexdigest()


class Forgotten(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """forgotten.json of one set: every certificate, oldest first."""

    certificates: list[Certificate]
    checksum: Sha256 = NO_CHECKSUM
    format_version: Literal[1] = 1

    @property
    def last(self) -> str:
        """The digest that the next certificate names."""
        return self.certificates[-1].digest if self.certificates else NO_CHECKSUM

    @property
    def questions(self) -> str:
        """SHA-256 of all that was asked and how it was done, the same for all sets of a dataset: a part of its
        fingerprint.
        """
        asked = [
            certificate.asked if certificate.how == "mask" else {certificate.how: certificate.asked}
            for certificate in self.certificates
        ]
        return hashlib.sha256(canonical(asked)).hexdigest()

    @property
    def masking(self) -> list[Certificate]:
        """Those whose documents are masked in the shards: all since documents were last removed."""
        removed = [n for n, certificate in enumerate(self.certificates, 1) if certificate.how == "remove"]
        return self.certificates[removed[-1] if removed else 0 :]

    def replaced(self) -> dict[str, str]:
        """SHA-256 of each shard as it was before documents were masked -> as it is now, with every sample where
        it was. Of shards that were written with other samples, when documents were removed, there are none.
        """
        now: dict[str, str] = {}
        for certificate in self.masking:
            for shard in certificate.shards:
                now = {
                    before: shard.after if after == shard.before else after for before, after in now.items()
                }
                now[shard.before] = shard.after
        return now


def question(kind: str, value: str) -> str:
    """The SHA-256 by which a certificate names a question."""
    return hashlib.sha256(f"{kind}:{value}".encode("utf-8", "surrogatepass")).hexdigest()


def encode(value: Forgotten) -> bytes:
    """The file; the same value gives the same bytes."""
    return sealed(msgspec.to_builtins(value))


def read(folder: Path) -> Forgotten:
    """The certificates beside a dataset.json; none where there is no file. Raises DataError if the file or
    its chain is broken.
    """
    path = folder / FILE_NAME
    if not path.exists():
        return Forgotten([])
    value = unsealed(read_small(path, MAX_BYTES), Forgotten, str(path), {})
    previous = NO_CHECKSUM
    for number, certificate in enumerate(value.certificates, 1):
        if certificate.previous != previous:
            raise refused(str(path), f"certificate {number} does not follow the one before it")
        previous = certificate.digest
    return value
