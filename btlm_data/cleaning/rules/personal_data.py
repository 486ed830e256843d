"""The filter that masks personal data."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from btlm_data.cleaning import pii
from btlm_data.cleaning.rules.base import FilterParameters, Rule, Verdict

_MAX_CHARS = 1000


class MaskPii(FilterParameters):
    """Put a fixed text in the place of every e-mail address, public IP address and phone number, before
    deduplication and tokenizing; null leaves a kind as it is. No document is dropped.
    """

    email: str | None = Field("|||EMAIL_ADDRESS|||", max_length=_MAX_CHARS)
    ip_address: str | None = Field("|||IP_ADDRESS|||", max_length=_MAX_CHARS)
    phone: str | None = Field("|||PHONE_NUMBER|||", max_length=_MAX_CHARS)

    def resource(self) -> int:
        """The version of the patterns."""
        return pii.VERSION

    def rule(self, resource: Any) -> Rule:
        """See the class."""
        replacements = zip(pii.KINDS, (self.email, self.ip_address, self.phone), strict=True)
        chosen = [(kind, by) for kind, by in replacements if by is not None]

        def decide(text: str, _: str) -> tuple[Verdict, str]:
            for kind, by in chosen:
                text = pii.mask(text, kind, by)
            return None, text

        return decide
