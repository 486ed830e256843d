"""Personal data that patterns can recognise: e-mail addresses, IP addresses, phone numbers.

The patterns are bounded, so that a text takes time in proportion to its length. An address of a network that
is not public (10.0.0.1, ::1) is nobody's and stays; so does a number that no phone has.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Iterator

VERSION = 1  # increased whenever other stretches of a text are recognised
_OCTET = r"(?:25[0-5]|2[0-4][0-9]|1[0-9]{2}|[1-9]?[0-9])"
_EMAIL = re.compile(
    r"(?<![A-Za-z0-9._%+-])[A-Za-z0-9_%+-][A-Za-z0-9._%+-]{0,63}@(?:[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?\.){1,8}"
    r"[A-Za-z]{2,24}(?![A-Za-z0-9-])"
)
_IP4 = re.compile(rf"(?<![0-9A-Za-z.])(?:{_OCTET}\.){{3}}{_OCTET}(?![0-9A-Za-z]|\.[0-9])")
_IP6 = re.compile(r"(?<![0-9A-Za-z:.])[0-9A-Fa-f]{0,4}(?::[0-9A-Fa-f]{0,4}){2,7}(?![0-9A-Za-z:])")
# +49 30 123456-78, +1 (555) 010-9999: E.164 has 8 to 15 digits in use; (555) 010-9999, 555.010.9999: North America.
_PHONE = re.compile(
    r"(?<![0-9A-Za-z+])(?:\+[1-9][0-9]{0,2}[ .-]?(?:\([0-9]{1,4}\)[ .-]?)?[0-9]{1,5}(?:[ .-]?[0-9]{2,5}){1,4}"
    r"|(?:\([2-9][0-9]{2}\) ?|[2-9][0-9]{2}[ .-])[0-9]{3}[ .-][0-9]{4})(?![0-9A-Za-z])"
)
_PHONE_DIGITS = range(8, 16)


def _is_public(text: str) -> bool:
    try:
        return ipaddress.ip_address(text).is_global
    except ValueError:
        return False


def _is_phone(text: str) -> bool:
    return sum(map(str.isdigit, text)) in _PHONE_DIGITS


_KINDS: dict[str, tuple[tuple[re.Pattern[str], ...], Callable[[str], bool]]] = {
    "emails": ((_EMAIL,), lambda _: True),
    "ip_addresses": ((_IP4, _IP6), _is_public),
    "phones": ((_PHONE,), _is_phone),
}
KINDS = tuple(_KINDS)


def count(text: str, kind: str) -> int:
    """How many of a kind of KINDS a text has."""
    return sum(1 for _ in _matches(text, kind))


def mask(text: str, kind: str, by: str) -> str:
    """The text with `by` in the place of each of a kind of KINDS; the very same object if it has none."""
    parts, done = [], 0
    for match in sorted(_matches(text, kind), key=lambda match: match.start()):
        if match.start() >= done:  # the patterns of one kind can overlap
            parts += [text[done : match.start()], by]
            done = match.end()
    return "".join([*parts, text[done:]]) if parts else text


def _matches(text: str, kind: str) -> Iterator[re.Match[str]]:
    patterns, is_one = _KINDS[kind]
    if kind == "emails" and "@" not in text:
        return
    for pattern in patterns:
        yield from (match for match in pattern.finditer(text) if is_one(match[0]))
