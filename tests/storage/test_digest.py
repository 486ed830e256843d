"""Checksums that are taken while a file is written."""

from __future__ import annotations

import hashlib
import io

import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st

from btlm_data.storage import digest
from btlm_data.storage.digest import HashedWriter


@given(st.lists(st.binary(max_size=5000), max_size=40))
def test_the_checksums_are_of_what_was_written(pieces: list[bytes]) -> None:
    out = io.BytesIO()
    with pytest.MonkeyPatch.context() as patch, HashedWriter(out) as writer:
        patch.setattr(digest, "_PIECE", 1000)  # smaller ones are hashed at once, others in a thread
        for piece in pieces:
            writer.write(memoryview(piece))
    data = b"".join(pieces)
    assert out.getvalue() == data
    assert writer.size == len(data)
    assert writer.sha256 == hashlib.sha256(data).hexdigest()
    assert writer.checksum == xxhash.xxh3_128_hexdigest(data)
