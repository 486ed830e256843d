"""Fingerprints of JSON values: the one way in which settings and lineage become a short string."""

from __future__ import annotations

import hashlib
import json

from pydantic import BaseModel


def digest(*values: object) -> str:
    """Hex SHA-256 of the canonical JSON of JSON values or settings: keys sorted, no white space."""
    plain = [value.model_dump(mode="json") if isinstance(value, BaseModel) else value for value in values]
    return hashlib.sha256(json.dumps(plain, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
