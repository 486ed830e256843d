"""The parts of a mix by budget: counts of tokens, shares of sources, phases of the schedule."""

from __future__ import annotations

import re
from collections.abc import Sequence
from decimal import Decimal
from typing import Annotated, Any

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)

_MAX_SOURCES = 100_000
_PHASE_KEYS = ("name", "until", "sources")
_MULTIPLES = {"": 1, "K": 10**3, "M": 10**6, "B": 10**9, "T": 10**12}
_ROUNDING = 1e-9  # of shares that add up to 1 on paper


def _share(value: object) -> object:
    """0.12 from "12%"; other values as they are."""
    if not isinstance(value, str):
        return value
    match = re.fullmatch(r"\s*([0-9]{1,3}(?:\.[0-9]{1,20})?)\s*%\s*", value)
    if match:
        return float(Decimal(match[1]) / 100)
    if re.fullmatch(r"\s*[01]?(?:\.[0-9]{1,20})?\s*", value) and value.strip():
        return float(value)
    raise ValueError(f"{value[:80]!r} is no share; write 12% or 0.12")


def _tokens(value: object) -> object:
    """600000000000 from "600B"; other values as they are."""
    if isinstance(value, float) and value == value // 1:
        return int(value)
    if not isinstance(value, str):
        return value
    match = re.fullmatch(
        r"\s*([0-9]{1,18}(?:\.[0-9]{1,12})?)(?:[eE]\+?([0-9]{1,2}))?\s*([KMBTkmbt]?)\s*", value
    )
    count = Decimal(match[1]) * 10 ** int(match[2] or 0) * _MULTIPLES[match[3].upper()] if match else None
    if count is None or count != int(count):
        raise ValueError(f"{value[:80]!r} is no number of tokens; write for example 600B, 1.5T or 250000")
    return int(count)


Share = Annotated[float, BeforeValidator(_share), Field(ge=0, le=1)]
Tokens = Annotated[int, BeforeValidator(_tokens), Field(ge=1, le=10**18)]


def in_percent(share: float) -> str:
    """A share for people: 12%, 0.05%."""
    return f"{100 * share:.6g}%"


def require_shares(shares: dict[str, float]) -> dict[str, float]:
    """Raises ValueError where shares of sources add up to more than 1, or there are too many."""
    if len(shares) > _MAX_SOURCES:
        raise ValueError(f"{len(shares):,} sources are named, at most {_MAX_SOURCES:,} can be")
    total = sum(shares.values())
    if total > 1 + _ROUNDING:
        shown = " + ".join(in_percent(share) for share in list(shares.values())[:6])
        more = " + ..." if len(shares) > 6 else ""
        raise ValueError(f"the shares add up to more than 100%: {shown}{more} = {in_percent(total)}")
    return shares


def by_name(value: object) -> object:
    """Numbers that YAML or Python gives as names of sources are text."""
    if not isinstance(value, dict):
        return value
    return {str(key) if type(key) is int else key: item for key, item in value.items()}


def shares_or_method(value: object) -> object:
    """Shares by name, or the name of a method."""
    if isinstance(value, str) and value != "unimax":
        raise ValueError(f"{value[:80]!r} is neither shares of sources, such as {{code: 12%}}, nor unimax")
    return by_name(value)


class Phase(BaseModel):
    """A part of the budget with shares of its own. until: where it ends, as a part of all tokens; None: at the end.
    sources: shares that differ from those of the mix; the others keep their proportions to each other.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    name: str = Field("", max_length=100)
    until: Annotated[float, BeforeValidator(_share), Field(gt=0, le=1)] | None = None
    sources: Annotated[dict[str, Share], BeforeValidator(by_name)] = Field(default_factory=dict)

    @model_validator(mode="before")
    @classmethod
    def _named(cls, value: Any) -> Any:
        """`{anneal: {books: 30%}}` is `{name: anneal, sources: {books: 30%}}`."""
        if not isinstance(value, dict):
            return value
        other = [key for key in value if key not in _PHASE_KEYS]
        if len(other) == 1 and isinstance(value[other[0]], dict) and not {"name", "sources"} & set(value):
            kept = {key: item for key, item in value.items() if key != other[0]}
            return {**kept, "name": str(other[0]), "sources": value[other[0]]}
        return value

    @model_validator(mode="after")
    def _consistent(self) -> Phase:
        require_shares(self.sources)
        return self

    @model_serializer(mode="wrap")
    def _written(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """As in a recipe: what is not used is not named."""
        return {key: value for key, value in handler(self).items() if value not in (None, {}, "")}


def require_schedule(phases: Sequence[Phase]) -> None:
    """Raises ValueError where phases do not follow each other up to the end."""
    before = 0.0
    for number, phase in enumerate(phases, 1):
        is_last = number == len(phases)
        if phase.until is None and not is_last:
            raise ValueError(f"phase {number} has no `until`, and another follows it; say where it ends")
        if is_last and phase.until not in (None, 1.0):
            raise ValueError(
                f"the last phase ends at {in_percent(phase.until or 0)} of the tokens; add the phase that follows it, "
                "or leave out its `until`"
            )
        until = 1.0 if phase.until is None else phase.until
        if until <= before:
            raise ValueError(
                f"phase {number} ends at {in_percent(until)}, not behind the one before it ({in_percent(before)})"
            )
        before = until
    names = [phase.name for phase in phases if phase.name]
    if len(set(names)) < len(names):
        raise ValueError(f"two phases have the name {max(names, key=names.count)!r}")
