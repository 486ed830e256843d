"""Whether a tokenizer can be used, and whether the fast backend gives the ids that `tokenizers` gives.

A tokenizer.json comes from outside, and the libraries that read it have no limits: an expression can take for
ever, a rule can make a text a million times longer, and either can end the process. So tokenizers other than
the package's own are tried in a process with limits of time and memory (trial.py), on texts that such rules
fail on (straining.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt

from btlm_data.straining import straining_texts
from btlm_data.tokenizer.backends import (
    Backend,
    CannotEncode,
    Encoder,
    Fast,
    Offsets,
    Reference,
    panics_are_errors,
)
from btlm_data.tokenizer.configuration import patterns
from btlm_data.tokenizer.probes import probe_texts

MAX_GROWTH = 40  # times longer that a normalizer may make a text; NFKC makes one character of Arabic 18


class Verdict(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the self-check found. backend: which may run, None if neither can. reason: why not a better
    one.
    """

    backend: Literal["fastokens", "tokenizers"] | None
    reason: str = ""


class Checked(NamedTuple):
    """A verdict, and the encoders that were loaded for it in this process; none if it was found elsewhere."""

    verdict: Verdict
    encoders: tuple[Encoder, ...] = ()

    def encoder(self, backend: Backend, config: Mapping[str, Any]) -> Encoder:
        """The encoder of a backend for a configuration, unless it is loaded already."""
        loaded = (encoder for encoder in self.encoders if encoder.name == backend)
        return next(loaded, None) or (Fast(config) if backend == "fastokens" else Reference(config))


def check(config: Mapping[str, Any]) -> Checked:
    """Load the tokenizer with both libraries and compare them on every probe."""
    reference = Reference(config)
    try:
        loaded = reference.tokenizer
    except Exception as error:  # `tokenizers` raises bare Exceptions
        return Checked(Verdict(None, f"`tokenizers` cannot use it: {error}"))
    for token in config["added_tokens"]:
        token_id = loaded.token_to_id(token["content"])
        if token_id != token["id"]:
            added = f"its added token {token['content']!r} has id {token['id']}"
            return Checked(Verdict(None, f"{added}, but `tokenizers` gives it {token_id}"))
    try:
        if problem := _strain(config, reference):
            return Checked(Verdict(None, problem))
        expected = reference.encode(probe_texts(config))
    except CannotEncode as error:
        return Checked(Verdict(None, error.reason))
    try:
        fast = Fast(config)
        _ = fast.tokenizer  # loads it
    except (
        Exception
    ) as error:  # ValueError for what fastokens does not know, but any failure means: do not use it
        return Checked(Verdict("tokenizers", f"fastokens cannot read it ({error})"), (reference,))
    if problem := _difference(config, fast, reference, expected):
        return Checked(Verdict("tokenizers", problem), (reference,))
    return Checked(Verdict("fastokens"), (fast, reference))


def _strain(config: Mapping[str, Any], reference: Reference) -> str:
    """Try texts that badly made rules fail on; returns what went wrong, if the process is still there to say
    it.
    """
    normalizer = reference.tokenizer.normalizer
    for text in straining_texts(patterns(config), (40, 1000)):
        with panics_are_errors(reference.name):
            normalized = normalizer.normalize_str(text) if normalizer is not None else text
        if len(normalized) > MAX_GROWTH * (len(text) + 10):
            made = f"its normalizer makes {len(normalized):,} characters"
            return f"{made} of {text[:10]!r}... ({len(text)} characters)"
        reference.encode([text])
    return ""


def _difference(
    config: Mapping[str, Any],
    fast: Fast,
    reference: Reference,
    by_reference: tuple[npt.NDArray[np.uint32], Offsets],
) -> str:
    """Where the two disagree on the probes, of which the reference's ids are given; "" if nowhere."""
    probes = probe_texts(config)
    expected, expected_offsets = by_reference
    reference.decode(expected[:1000].tolist())
    try:
        ids, offsets = fast.encode(probes)
    except Exception as error:
        return f"fastokens failed on a probe ({error})"
    if np.array_equal(offsets, expected_offsets) and np.array_equal(ids, expected):
        return ""
    differs = next(
        probe
        for i, probe in enumerate(probes)
        if not np.array_equal(
            ids[offsets[i] : offsets[i + 1]], expected[expected_offsets[i] : expected_offsets[i + 1]]
        )
    )
    return f"fastokens gives other ids for {differs[:40]!r}"
