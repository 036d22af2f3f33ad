"""What a cluster's operator says about its users: their weights, and how much they may have the server keep.

A user is who submits: the id in the certificate (`cortex login` prints it, `cortex jobs` shows it).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from cortex.errors import UsageError
from cortex.limits import JOBS_PER_USER, QUEUED_TASKS, USER_WEIGHT_MAX


@dataclass(frozen=True, slots=True)
class SharingPolicy:
    weights: Mapping[str, float] = field(default_factory=dict)
    """User -> weight of its share of the slots; 1 for those not named."""
    jobs_per_user: int = JOBS_PER_USER
    """Under way at once."""
    queued_tasks: int = QUEUED_TASKS
    """Of all jobs, not begun: at so many no further job is taken."""


def parse_weights(items: Iterable[str], what: str) -> dict[str, float]:
    """``c0123456789ab=2`` and so on -> weights by user. Raises UsageError."""
    weights: dict[str, float] = {}
    for item in items:
        user, found, text = (part.strip() for part in item.partition("="))
        try:
            weight = float(text)
        except ValueError:
            weight = math.nan
        if not found or not user or not 1 / USER_WEIGHT_MAX <= weight <= USER_WEIGHT_MAX:
            raise UsageError(
                f"{what}: {item!r} is no user and weight",
                cure="write USER=WEIGHT, such as c0123456789ab=2, with a weight from"
                f" {1 / USER_WEIGHT_MAX:g} to {USER_WEIGHT_MAX:g}; cortex jobs shows who is who",
            )
        weights[user] = weight
    return weights


def parse_cap(text: str, what: str) -> int:
    """A number from 1 on. Raises UsageError."""
    word = text.strip()
    if word.isascii() and word.isdigit() and len(word) < 13 and int(word):
        return int(word)
    raise UsageError(f"{what}: {text!r} is not a number", cure="write a number from 1 on")
