"""The settings that a finished dataset records, as a recipe's settings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from btlm_data.recipe.models import Settings
from btlm_data.recipe.validation import explain


def settings_of(configuration: Mapping[str, Any]) -> Settings | str:
    """The settings that a configuration records, or a message: what is wrong with them.

    configuration: as dataset.json has it. The places of the source and the tokenizer are not in it; `corpus`
    and `gpt2` stand for them.
    """
    complete = dict(configuration)
    for section, name in (("source", "corpus"), ("tokenizer", "gpt2")):
        if isinstance(complete.get(section, {}), dict):
            complete[section] = {"name": name, **complete.get(section, {})}
    try:
        return Settings.model_validate(complete)
    except ValidationError as error:
        return explain(error, Settings, lambda _: "").replace("\n", "; ")
    except RecursionError:
        return "nested too deeply"
