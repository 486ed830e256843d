"""Shards at a path, for tests: the writers of formats/shard_formats write into an open file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from btlm_data.formats.shard_formats import corpus, sample, vsl
from btlm_data.formats.shard_formats.writer import ShardInfo
from btlm_data.storage import open_store


def write_samples(path: Path, *args: Any, **options: Any) -> ShardInfo:
    """sample.write_samples into a file of this path, published whole."""
    with open_store(path.parent).create(path.name) as creating:
        return sample.write_samples(creating.file, *args, **options)


def write_vsl(path: Path, *args: Any, **options: Any) -> ShardInfo:
    """vsl.write_vsl into a file of this path, published whole."""
    with open_store(path.parent).create(path.name) as creating:
        return vsl.write_vsl(creating.file, *args, **options)


def write_corpus(path: Path, *args: Any, **options: Any) -> ShardInfo:
    """corpus.write_corpus into a file of this path, published whole."""
    with open_store(path.parent).create(path.name) as creating:
        return corpus.write_corpus(creating.file, *args, **options)
