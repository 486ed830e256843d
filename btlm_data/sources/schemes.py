"""URL scheme -> the module that lists and reads it. To add a scheme: one module with the calls of
`base.Scheme`, and a line here.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import cast

from btlm_data.sources.base import Scheme

SCHEMES: dict[str, str] = {
    "file": "btlm_data.sources.local",
    "hf": "btlm_data.sources.hub",
    "http": "btlm_data.sources.web",
    "https": "btlm_data.sources.web",
}
OTHERS = "btlm_data.sources.bucket"  # every other scheme: fsspec opens it, or says what is missing


def module_of(url: str, schemes: Mapping[str, str] | None = None) -> str:
    """The module for a URL; a plain path is a file."""
    scheme = url.split("://", 1)[0].lower() if "://" in url else "file"
    return (SCHEMES if schemes is None else schemes).get(scheme, OTHERS)


def scheme_of(url: str, schemes: Mapping[str, str] | None = None) -> Scheme:
    """The scheme of a URL. schemes: another table than SCHEMES, as a task carries it."""
    return cast(Scheme, importlib.import_module(module_of(url, schemes)))
