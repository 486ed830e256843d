"""Pages beside a dataset (report.html, README.md, croissant.json): whose they are.

They are made from the dataset and can be made again, so dataset.json does not name them, and its bytes do not
depend on them. Instead each carries a seal: the checksum of the dataset.json that it is about, and the
SHA-256 of everything else in the file. A file whose seal holds is as this program wrote it, and may be
replaced or deleted by a later run; a file without a seal, or changed by a person since, is theirs and stays.

    report.html      a comment in its second line: <!-- btlm-data dataset=CHECKSUM sha256=HASH -->
    README.md        a comment in the second line of its YAML head: # btlm-data ...
    croissant.json   the end of its description, which is its first key: (btlm-data ...)
"""

from __future__ import annotations

import hashlib
import re

import msgspec

REPORT = "report.html"
CARD = "README.md"
CROISSANT = "croissant.json"
PAGES = (REPORT, CARD, CROISSANT)
NO_DATASET = "none"
MAX_BYTES = 1 << 24  # of a page
_SEAL = re.compile(rb"btlm-data dataset=(none|[0-9a-f]{64}) sha256=([0-9a-f]{64})")
_HEAD = 400  # bytes in which the seal stands


class Seal(msgspec.Struct, frozen=True):
    """The seal of a page. dataset: checksum of the dataset.json that it is about, or "none". holds: the file
    is unchanged.
    """

    dataset: str
    holds: bool


def sealed_html(text: str, dataset: str) -> bytes:
    """A page with its seal in the second line. text: begins with a line that is the document type."""
    first, _, rest = text.partition("\n")
    return _sealed(f"{first}\n<!-- ", f" -->\n{rest}", dataset)


def sealed_card(head: str, body: str, dataset: str) -> bytes:
    """A card with its seal. head: lines of YAML; body: Markdown."""
    return _sealed("---\n# ", f"\n{head}\n---\n\n{body}", dataset)


def sealed_json_page(text: str, description: str, dataset: str) -> bytes:
    """JSON with its seal. text: begins with an empty `description`, as json.dumps writes it, indented by one."""
    before, _, after = text.partition('"description": ""')
    assert before == "{\n ", "the description is the first key"
    return _sealed(f'{before}"description": "{description} (', f')"{after}\n', dataset)


def _sealed(before: str, after: str, dataset: str) -> bytes:
    head = f"{before}btlm-data dataset={dataset} sha256=".encode()
    tail = after.encode()
    return head + _hash(head, tail).encode() + tail


def seal_of(data: bytes) -> Seal | None:
    """The seal of a page; None if it has none."""
    match = _SEAL.search(data, 0, _HEAD)
    if match is None:
        return None
    return Seal(match[1].decode(), _hash(data[: match.start(2)], data[match.end(2) :]) == match[2].decode())


def _hash(head: bytes, tail: bytes) -> str:
    return hashlib.sha256(head + b"\0" + tail).hexdigest()
