"""Report: what of a model became remote, what stayed local, and why."""

from __future__ import annotations

import logging
import weakref
from dataclasses import dataclass
from typing import Any

from convserve.errors import InvalidRequestError, short_repr
from convserve.models.folding import Left

log = logging.getLogger("convserve")

_reports: weakref.WeakKeyDictionary[Any, Report] = weakref.WeakKeyDictionary()


@dataclass(frozen=True)
class Report:
    """What `to_remote` did.

    Attributes:
        remote: The layers that a server computes, by name, those of one call together.
        local: What stayed local: each with `name`, `kind`, which is its class, and `reason`.
    """

    remote: tuple[tuple[str, ...], ...]
    local: tuple[Left, ...]

    def __str__(self) -> str:
        """Returns a line of numbers, and one for each layer that stayed local."""
        layers = sum(map(len, self.remote))
        lines = [f"layers computed remotely: {layers}, calls: {len(self.remote)}, left local: {len(self.local)}"]
        return "\n  ".join([*lines, *(f"{each.name} ({each.kind}): {each.reason}" for each in self.local)])


def keep(model: Any, made: Report) -> None:
    """Keeps the report of a model as long as the model, and logs it."""
    _reports[model] = made
    log.info("%s: %s", model.name, made)


def report(model: Any) -> Report:
    """Returns what became remote of the model that `to_remote` returned, what stayed local, and why.

    It is logged, too, at level INFO of the logger "convserve". Raises InvalidRequestError for another model; one that
    was loaded has no report.
    """
    try:
        return _reports[model]
    except (KeyError, TypeError):
        raise InvalidRequestError.for_field("model", "what to_remote returned", short_repr(model)) from None
