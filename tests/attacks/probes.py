"""All probes: importing this registers them."""

from __future__ import annotations

from tests.attacks import (  # noqa: F401 - they register their probes
    damaged_and_shown,
    false_claims,
    foreign_files,
    hostile_files,
    linked_places,
    once_succeeded,
    received_datasets,
    terminals_and_bytes,
    trainer_and_exports,
)

GROUPS = (
    "somebody else's files",
    "flipped bits",
    "verify believes the manifest",
    "a received dataset gives orders",
    "the trainer loses weights",
    "exports",
    "hostile files",
    "terminals",
    "same bytes",
)
