"""Attacks that once succeeded, kept as they were found."""

from __future__ import annotations
