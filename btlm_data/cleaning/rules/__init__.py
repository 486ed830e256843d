"""The filters that come with the package, by name, and what every filter has in common.

A filter is a pydantic model: its fields are the parameters, `resource()` reads what they name when the run is
planned, and `rule()` makes the function that judges texts. A new filter is a model in this folder and a line
in `KINDS`.
"""

from __future__ import annotations

from btlm_data.cleaning.rules.base import FilterParameters, Rule, Verdict
from btlm_data.cleaning.rules.c4 import C4
from btlm_data.cleaning.rules.gopher import GopherQuality, GopherRepetition
from btlm_data.cleaning.rules.language import Language
from btlm_data.cleaning.rules.personal_data import MaskPii
from btlm_data.cleaning.rules.presidio import Presidio
from btlm_data.cleaning.rules.user_function import UserFunction
from btlm_data.cleaning.rules.words_and_patterns import MaxChars, MinChars, RegularExpression

KINDS: dict[str, type[FilterParameters]] = {
    "min_chars": MinChars,
    "max_chars": MaxChars,
    "language": Language,
    "gopher_quality": GopherQuality,
    "gopher_repetition": GopherRepetition,
    "c4": C4,
    "regex": RegularExpression,
    "mask_pii": MaskPii,
    "presidio": Presidio,
    "function": UserFunction,
}

__all__ = ["KINDS", "FilterParameters", "Rule", "UserFunction", "Verdict"]
