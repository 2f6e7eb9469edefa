"""Limits in inputs, and their stored form."""

from collections.abc import Sequence
from enum import Enum
from typing import Final

from models.errors import InvalidInput
from models.validation_constraints import ValidationConstraint

STORED_UNLIMITED: Final = 0


class Unlimited(Enum):
    """The value of a limit that does not restrict anything."""

    UNLIMITED = "unlimited"


LimitValue = int | Unlimited | None  # None: inherited


def validated_stored_limit(limit: LimitValue, end: int, path: Sequence[str]) -> int | None:
    """Return a limit in its stored form: 0 is unlimited, None is inherited.

    Raises InvalidInput if a number is not between 1 and `end`, which is excluded.
    """
    if limit is None:
        return None
    if isinstance(limit, Unlimited):
        return STORED_UNLIMITED
    if not 0 < limit < end:
        text = f"Must be from 1 to below 2^{end.bit_length() - 1}. Null means unlimited."
        raise InvalidInput(text, constraint=ValidationConstraint.RANGE, path=path)
    return limit


def limit_or_none(stored: int | None) -> int | None:
    """Return a stored limit as the API shows it: None is unlimited."""
    return None if stored == STORED_UNLIMITED else stored
