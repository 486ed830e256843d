"""What every filter has in common."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pydantic import BaseModel, ConfigDict

Verdict = str | None  # the fault ("" where a filter has only one), or None to keep the document
Rule = Callable[[str, str], tuple[Verdict, str]]  # (text, source) -> (verdict, text)


class FilterParameters(BaseModel):
    """The parameters of one filter, checked. Strict: text is no number, and a whole number is not true or
    false.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    def resource(self) -> Any:
        """What the parameters name outside the recipe (a word list, a module), read when the run is planned.

        Returns JSON values that are complete: `rule` reads no file of the user. Raises ConfigError if it
        cannot be read, ValueError if the parameters make no sense.
        """
        return None

    def rule(self, resource: Any) -> Rule:
        """The function that judges a text. resource: what `resource()` returned, perhaps in another process.

        Raises ValueError or ConfigError if the parameters make no sense together.
        """
        raise NotImplementedError
