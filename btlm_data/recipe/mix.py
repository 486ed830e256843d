"""`mix`: how often each document of the train split is seen in an epoch."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cached_property
from itertools import pairwise
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)

from btlm_data.recipe.mix_budget import (
    Phase,
    Share,
    Tokens,
    by_name,
    require_schedule,
    require_shares,
    shares_or_method,
)

MAX_EPOCHS = 100
_MAX_SOURCES = 100_000
_MAX_NAME = 4096
Epochs = Annotated[float, Field(ge=0, le=MAX_EPOCHS)]
_BUDGET = ("tokens", "sources", "schedule")  # any of them makes the mix one by budget
_DEFAULT_MAX_EPOCHS = 4.0


class CopiesRange(NamedTuple):
    """How many documents of the source a kept one stands for, from `low` to `high`; high: None for no end."""

    low: int
    high: int | None

    @property
    def label(self) -> str:
        """As the ledger names it."""
        if self.high is None:
            return f"{self.low}_or_more_copies"
        if self.high == self.low:
            return "1_copy" if self.low == 1 else f"{self.low}_copies"
        return f"{self.low}-{self.high}_copies"


def parse_range(text: str) -> CopiesRange:
    """Read "1", "2-5" or "6-". Raises ValueError with an example."""
    match = re.fullmatch(r"([1-9][0-9]{0,8})(-([1-9][0-9]{0,8})?)?", text)
    if match is None:
        raise ValueError(f"{text[:80]!r} is not a number of copies; write 1, 2-5, or 6- for six and more")
    low = int(match[1])
    high = int(match[3]) if match[3] else (None if match[2] else low)
    if high is not None and high < low:
        raise ValueError(f"{text!r} ends before it begins; write {high}-{low}")
    return CopiesRange(low, high)


def _disjoint(by_copies: dict[str, float]) -> dict[str, float]:
    """Raises ValueError where a key is no range, or two ranges share a number."""
    ranges = sorted(((parse_range(text), text) for text in by_copies), key=lambda pair: pair[0].low)
    for (before, text), (after, other) in pairwise(ranges):
        if before.high is None or after.low <= before.high:
            raise ValueError(f"{text} and {other} both name {after.low} copies; give every number one range")
    return by_copies


class MixSettings(BaseModel):
    """How often documents of the train split are seen in an epoch: for each source by its name, for example
    `mix: {Books: 2.0, Web: 0.5}`, and 1 where it is not named; multiplied by what `by_copies` says.

    2.5 repeats every document twice, and half of them, drawn by seed, once more; 0 leaves all out.

    Or by budget: `mix: {tokens: 600B, sources: {code: 12%}, schedule: [{until: 90%}, {anneal: {books: 30%}}]}`
    (docs/mixing.md).
    """

    model_config = ConfigDict(frozen=True, extra="allow", allow_inf_nan=False)
    __pydantic_extra__: dict[str, Epochs]

    by_copies: Annotated[dict[str, Epochs], BeforeValidator(by_name), AfterValidator(_disjoint)] = Field(
        default_factory=dict,
        max_length=100,
        description="epochs of a document by the documents it stands for (itself and the duplicates that were removed for "
        "it), for example `{1: 1.0, 2-5: 2.0, 6-: 3.0}`; 1 where no range names the number",
    )

    tokens: Tokens | None = Field(
        None,
        description="by budget: tokens of the train split, for example 600B. Default: as many as it has without a mix",
    )
    sources: Annotated[dict[str, Share] | Literal["unimax"], BeforeValidator(shares_or_method)] = Field(
        default_factory=dict,
        description="by budget: shares of the tokens, for example `{code: 12%, books: 5%}`, the others share the rest in "
        "proportion to their tokens; or `unimax`",
    )
    max_epochs: Annotated[float, Field(gt=0, le=MAX_EPOCHS)] | None = Field(
        None,
        description="by budget: how often a source may be repeated before the run is refused. Default: 4",
    )
    schedule: tuple[Phase, ...] = Field(
        (),
        max_length=100,
        description="by budget: phases in the order of the samples, for example "
        "`[{until: 90%}, {anneal: {books: 30%}}]`",
    )

    @model_validator(mode="before")
    @classmethod
    def _with_limit(cls, value: Any) -> Any:
        """The limit of epochs is recorded, not implied."""
        if isinstance(value, dict) and any(value.get(key) for key in _BUDGET):
            return {**value, "max_epochs": value.get("max_epochs") or _DEFAULT_MAX_EPOCHS}
        return value

    @model_validator(mode="after")
    def _of_budget(self) -> MixSettings:
        if not self.is_budget:
            if self.max_epochs is not None:
                raise ValueError("max_epochs belongs to a mix by budget; add tokens, sources or a schedule")
            return self
        if self.epochs or self.by_copies:
            other = next(iter(self.epochs), "by_copies")
            raise ValueError(
                f"{other} says how often documents are seen, and {self._budget_key} makes the mix one by budget; choose "
                "one of the two"
            )
        if isinstance(self.sources, dict):
            require_shares(self.sources)
        require_schedule(self.schedule)
        return self

    @model_validator(mode="after")
    def _consistent(self) -> MixSettings:
        if len(self.epochs) > _MAX_SOURCES:
            raise ValueError(f"{len(self.epochs):,} sources are named, at most {_MAX_SOURCES:,} can be")
        for name in self.epochs:
            if not 1 <= len(name) <= _MAX_NAME:
                raise ValueError(f"the name of a source has 1 to {_MAX_NAME:,} characters, not {len(name):,}")
        most, most_by_copies = (
            max([1.0, *values]) for values in (self.epochs.values(), self.by_copies.values())
        )
        if most * most_by_copies > MAX_EPOCHS:
            raise ValueError(
                f"a document could be seen {most:g} x {most_by_copies:g} = {most * most_by_copies:g} times in an epoch; "
                f"at most {MAX_EPOCHS} are possible"
            )
        return self

    @model_serializer(mode="wrap")
    def _written(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """As in a recipe: what is not used is not named."""
        ours = type(self).model_fields
        return {key: value for key, value in handler(self).items() if key not in ours or value}

    @property
    def epochs(self) -> Mapping[str, float]:
        """Epochs of the sources that are named."""
        return self.__pydantic_extra__

    @property
    def is_used(self) -> bool:
        """Whether it says anything."""
        return bool(self.epochs or self.by_copies or self.is_budget)

    @property
    def is_budget(self) -> bool:
        """Whether it says how many tokens of what, and not how often each document."""
        return any(getattr(self, key) for key in _BUDGET)

    @property
    def _budget_key(self) -> str:
        return next(key for key in _BUDGET if getattr(self, key))

    @property
    def phases(self) -> tuple[Phase, ...]:
        """The schedule; one phase where there is none."""
        return self.schedule or (Phase(),)

    @property
    def ends(self) -> tuple[float, ...]:
        """Where each phase ends, as a part of all tokens."""
        return tuple(1.0 if phase.until is None else phase.until for phase in self.phases)

    @property
    def named_sources(self) -> list[str]:
        """Every source that is named anywhere in it."""
        shares = self.sources if isinstance(self.sources, dict) else {}
        return list(dict.fromkeys([*self.epochs, *shares, *(n for p in self.schedule for n in p.sources)]))

    @cached_property
    def ranges(self) -> tuple[tuple[CopiesRange, float], ...]:
        """The ranges of `by_copies`, ascending, with the epochs of each."""
        pairs = ((parse_range(text), epochs) for text, epochs in self.by_copies.items())
        return tuple(sorted(pairs, key=lambda pair: pair[0].low))

    def epochs_of(self, copies: int) -> float:
        """What `by_copies` says of a document that stands for so many, itself included."""
        return next(
            (epochs for part, epochs in self.ranges if part.low <= copies <= (part.high or copies)), 1.0
        )

    @property
    def most_by_copies(self) -> float:
        """How often, at most, `by_copies` has a document of the source seen: a kept one's epochs, shared among
        all that it stands for.
        """
        starts = {
            1,
            *(part.low for part, _ in self.ranges),
            *((part.high or 0) + 1 for part, _ in self.ranges),
        }
        return max(self.epochs_of(copies) / copies for copies in starts)
