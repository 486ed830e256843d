"""What MkDocs does with a page of docs/ besides: links that lead out of docs/ become the names of what they lead to.

On a site there is no repository around the pages; in the repository the links work.
"""

from __future__ import annotations

import posixpath
import re
from typing import Any

_LINK = re.compile(r"\[([^\]]+)\]\(((?:\.\./)+[^)#\s]*)(?:#[^)]*)?\)")
_SHIM = "https://unpkg.com/iframe-worker/shim"


def on_page_markdown(markdown: str, *, page: Any, **_: Any) -> str:
    """Replace links to files outside docs/ by text that names them."""
    folder = posixpath.dirname(page.file.src_uri)

    def name(match: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join("docs", folder, match[2]))
        if target == "docs" or target.startswith("docs/"):
            return match[0]
        return match[1] if match[1].strip("`/") == target else f"{match[1]} (`{target}` in the repository)"

    return _LINK.sub(name, markdown)


def on_post_page(output: str, *, page: Any, **_: Any) -> str:
    """Take the script with which search works from the disk from the site itself, not from a server."""
    up = "../" * page.file.dest_uri.count("/")
    return _with_names(output).replace(_SHIM, f"{up}assets/iframe-worker.js")


def on_post_template(output: str, **_: Any) -> str:
    """The page for addresses that are none."""
    return _with_names(output)


def _with_names(output: str) -> str:
    """A page whose search has a name for those who do not see it."""
    output = output.replace(
        'data-md-component="search" role="dialog"',
        'data-md-component="search" role="dialog" aria-label="Search"',
    )
    return output.replace(
        'type="checkbox" id="__search"', 'type="checkbox" id="__search" aria-label="Search"'
    )
