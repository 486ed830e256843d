"""Build HTML and SVG as trees, so that text can never become markup.

Every text and attribute value is escaped by the serialiser, whatever a document holds; characters that
browsers hide or that turn text around (docs of `terminal.visible`) are shown as escapes. Nothing here takes
markup as a string; only `raw_style` and `raw_script` put text into a page as it is, and they are given the
package's own files.
"""

from __future__ import annotations

import base64
import hashlib
import json
from typing import Any
from xml.etree.ElementTree import Element, tostring

from btlm_data.terminal import visible

Child = Element | str | None


def tag(name: str, /, *children: Child, **attributes: str | float | None) -> Element:
    """An element. attributes: `class_` is class, other underscores are hyphens; None leaves one out."""
    element = Element(name)
    for key, value in attributes.items():
        if value is not None:
            text = value if isinstance(value, str) else f"{value:.6g}"
            element.set(key.rstrip("_").replace("_", "-"), visible(text))
    return add(element, *children)


def add(element: Element, *children: Child) -> Element:
    """Append texts and elements to an element; returns it."""
    for child in children:
        if child is None:
            continue
        if isinstance(child, Element):
            element.append(child)
        elif len(element):
            element[-1].tail = (element[-1].tail or "") + visible(child)
        else:
            element.text = (element.text or "") + visible(child)
    return element


def svg(width: float, height: float, *children: Child, label: str, **attributes: str) -> Element:
    """A picture in user units of one CSS pixel, scaled to the width that there is. label: the same in words."""
    return tag(
        "svg",
        *children,
        xmlns="http://www.w3.org/2000/svg",
        viewBox=f"0 0 {width:g} {height:g}",
        role="img",
        aria_label=label,
        **attributes,
    )


def raw_style(css: str) -> Element:
    """A style sheet of the package."""
    element = Element("style")
    element.text = css
    return element


def raw_script(code: str) -> Element:
    """A script of the package."""
    assert "</" not in code, "a script must not be able to end itself"
    element = Element("script")
    element.text = code
    return element


def data_block(identifier: str, value: Any) -> Element:
    """JSON that a script reads: no executable type, and no character that could end the element."""
    element = tag("script", type="application/json", id=identifier)
    text = json.dumps(value, ensure_ascii=True, separators=(",", ":"))
    element.text = text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
    return element


def source_hash(code: str) -> str:
    """How a Content-Security-Policy names an inline script or style sheet."""
    digest = base64.b64encode(hashlib.sha256(code.encode()).digest()).decode()
    return f"'sha256-{digest}'"


def document(html: Element) -> str:
    """The text of a whole page."""
    return "<!DOCTYPE html>\n" + tostring(html, encoding="unicode", method="html") + "\n"
