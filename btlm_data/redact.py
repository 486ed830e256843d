"""What is secret in a URL never reaches a screen, a log, a receipt or dataset.json. The only place that
decides what is secret.

A signed URL carries its key in the query, an URL with a password carries it before the `@`; either is cut.
`redact` does the same for any text, such as another library's error message.
"""

from __future__ import annotations

import re

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]{0,30}://[^\s'\"<>`|\x00-\x1f\x7f]+")
_PARTS = re.compile(
    r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]*)://(?P<host>[^/?#]*)(?P<path>[^?#]*)(?P<query>\?[^#]*)?(?P<rest>#.*)?",
    re.DOTALL,
)
_ASSIGNED = re.compile(
    r"(?i)\b(x-(?:amz|goog|ms)-[a-z-]+|sig|signature|token|access[_-]?token|api[_-]?key|access[_-]?key(?:id)?|"
    r"secret(?:[_-]?(?:access)?[_-]?key)?|password|passwd|policy|key-pair-id)=[^&\s'\"<>]+"
)
_TOKEN = re.compile(r"\bhf_[A-Za-z0-9]{16,}")


def without_secrets(url: str) -> str:
    """The URL without user, password, query and fragment; what is no URL comes back as it is.

    A `?` that stands for any character in a glob (s3://bucket/part-?.jsonl) is no query and stays. URLs
    chained as fsspec does (`filecache::https://...`) are cut link by link.
    """
    return "::".join(_clean(link) for link in url.split("::"))


def redact(text: object) -> str:
    """The text with every URL in it cut as by `without_secrets`, and the values of keys and tokens cut."""
    cleaned = _URL.sub(lambda match: without_secrets(match[0]), str(text))
    return _TOKEN.sub("hf_***", _ASSIGNED.sub(lambda match: f"{match[1]}=***", cleaned))


def _clean(url: str) -> str:
    match = _PARTS.fullmatch(url)
    if match is None:
        return url
    query = match["query"] or ""
    if "=" in query or match["scheme"].lower() in ("http", "https"):
        query = ""
    return f"{match['scheme']}://{match['host'].rpartition('@')[2]}{match['path']}{query}"
