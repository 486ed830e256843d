"""Learning-rate schedules of either form, as a list of pieces one after the other."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from btlm_data.errors import ConfigError
from btlm_train.parameters.keys import shown

_SETTINGS = {"initial_learning_rate", "end_learning_rate", "total_iters", "val", "learning_rate"}
_KINDS = {"linear": "linear", "cosinedecay": "cosine", "constant": "constant"}
_MAX_DEPTH = 8


def schedule_pieces(tree: Any, where: str, depth: int = 0) -> Iterator[dict[str, Any]]:
    """The members of a schedule in order; SequentialLR is replaced by its members, a bare number is a
    constant rate.

    tree: what a parameter file holds below `schedulers` or `learning_rate`, lists as mappings of positions.
    where: the file, for messages. Raises ConfigError for a schedule that is not known here.
    """
    if isinstance(tree, int | float) and not isinstance(tree, bool):
        yield {"rate": float(tree)}
        return
    if not isinstance(tree, dict) or not tree:
        raise ConfigError(
            f"{where}: the learning rate is {shown(tree)}. Give a number, or a list such as "
            "[{LinearLR: {initial_learning_rate: 0.0, end_learning_rate: 6e-4, total_iters: 100}}]."
        )
    if depth > _MAX_DEPTH:
        raise ConfigError(
            f"{where}: schedulers more than {_MAX_DEPTH} levels deep. Write them one after the other."
        )
    entries = list(tree.values()) if all(str(key).isdigit() for key in tree) else [tree]
    for entry in entries:
        kind, settings = _named(entry, where)
        name = kind.removesuffix("LR").lower()
        if name == "sequential":
            yield from schedule_pieces(settings.get("schedulers"), where, depth + 1)
        elif name in _KINDS:
            yield _piece(name, settings, where)
        else:
            raise ConfigError(
                f"{where}: there is no scheduler {shown(kind)} here. "
                "Use LinearLR, CosineDecayLR, ConstantLR or SequentialLR."
            )


def _named(entry: Any, where: str) -> tuple[str, dict[str, Any]]:
    """The name of a scheduler and its settings: {scheduler: Linear, ...} (flat) or {LinearLR: {...}}
    (current).
    """
    if isinstance(entry, dict) and "scheduler" in entry:
        return str(entry["scheduler"]), {key: value for key, value in entry.items() if key != "scheduler"}
    if isinstance(entry, dict) and len(entry) == 1:
        ((kind, settings),) = entry.items()
        if isinstance(settings, dict):
            return str(kind), settings
    raise ConfigError(
        f"{where}: a scheduler is one name with its settings, found {shown(entry)}. Write - LinearLR: "
        f"{{...}}."
    )


def _piece(name: str, settings: dict[str, Any], where: str) -> dict[str, Any]:
    if unknown := sorted(set(settings) - _SETTINGS):
        raise ConfigError(
            f"{where}: the scheduler {name} has no setting {shown(unknown[0])}. "
            f"Known: {', '.join(sorted(_SETTINGS))}."
        )
    rate = settings.get("val", settings.get("learning_rate"))
    initial = settings.get("initial_learning_rate", rate)
    return {
        "kind": _KINDS[name],
        "initial": initial,
        "end": settings.get("end_learning_rate", initial),
        "total_iters": settings.get("total_iters", 1 if name == "constant" else None),
    }
