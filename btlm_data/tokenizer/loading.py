"""Finding a tokenizer, checking it, and choosing the library that runs it.

    tokenizer = load_tokenizer("gpt2")                        # or a tokenizer.json, a folder, a hub id
    ids, offsets = tokenizer.encode_batch(["one", "two"])     # text i is ids[offsets[i]:offsets[i + 1]]

Hugging Face `tokenizers` is the reference; fastokens does the work wherever a self-check finds that it gives
the same ids (verdicts.py). Otherwise `tokenizers` does it, and a warning says so.
"""

from __future__ import annotations

import logging
from typing import Literal

from btlm_data.errors import ConfigError
from btlm_data.tokenizer.backends import Backend
from btlm_data.tokenizer.configuration import fingerprint
from btlm_data.tokenizer.eos import find_eos
from btlm_data.tokenizer.files import BUILT_IN, TokenizerFiles
from btlm_data.tokenizer.tokenizer import Tokenizer, TokenizerSpec, open_tokenizer
from btlm_data.tokenizer.verdicts import verdict_on

logger = logging.getLogger(__name__)


def load_tokenizer(
    spec: str,
    *,
    eos: str | None = None,
    backend: Literal["auto", "fast", "reference"] = "auto",
    revision: str | None = None,
) -> Tokenizer:
    """Load a tokenizer and decide, by self-check, which backend runs it.

    spec: "gpt2" (inside the package), a tokenizer.json, a folder that holds one (or GPT-2's vocab.json and
    merges.txt), or a hub id. eos: the end-of-document token; by default what the files beside the tokenizer
    say, or the one common name in the vocabulary (eos.py). backend: "auto" uses `tokenizers` with a warning
    where the fast backend differs, "fast" raises instead. revision: hub branch, tag or commit; the commit it
    stood for is in `Tokenizer.revision`. A process that has loaded it before reuses it. Raises ConfigError
    if the tokenizer cannot be found, read or used, SourceUnavailable if the hub cannot be reached.
    """
    files = TokenizerFiles.locate(spec, revision)
    config = files.read()
    eos = find_eos(spec, config, eos, files.companion)
    digest = fingerprint(config)
    checked = verdict_on(spec, config, digest, trusted=files.location == BUILT_IN)
    verdict = checked.verdict
    if verdict.backend == "tokenizers" and backend == "fast":
        raise ConfigError(
            f"The fast backend cannot run the tokenizer {spec} exactly: {verdict.reason}. Set "
            "tokenizer.backend=auto."
        )
    if verdict.backend == "tokenizers" and backend == "auto":
        logger.warning(
            "tokenizer %s: running on `tokenizers` (about 50 times slower), because %s", spec, verdict.reason
        )
    chosen: Backend = (
        "fastokens" if backend != "reference" and verdict.backend == "fastokens" else "tokenizers"
    )
    described = TokenizerSpec(spec, files.location, digest, eos, chosen, files.revision)
    return open_tokenizer(described, lambda: Tokenizer(config, described, checked.encoder(chosen, config)))
