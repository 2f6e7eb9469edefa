"""Set the spam thresholds of users."""

from collections.abc import Mapping
from typing import Any

from mail.spam.verdict import DEFAULT_JUNK_POINTS, DEFAULT_REJECT_POINTS
from models.errors import InvalidInput
from models.validation_constraints import ValidationConstraint
from resolvers.context import Context
from resolvers.users.selection import UserSelector
from resolvers.users.user_locks import lock_users_and_store_changes
from resolvers.users.validation import validate_spam_level

MAX_SCORE = 10_000.0


async def set_spam_policy(
    ctx: Context, user_selector: UserSelector, thresholds: Mapping[str, Any]
) -> list[int]:
    """Set `spam_level`, `junk_score` or `reject_score`; None restores the platform's value.

    Returns the user IDs. Raises Invalid if a value is out of range or junk exceeds reject.
    """
    if not thresholds:
        raise InvalidInput(
            "At least one field is required",
            constraint=ValidationConstraint.REQUIRED,
            path=["level"],
        )
    paths = {"spam_level": "level", "junk_score": "junkScore", "reject_score": "rejectScore"}
    facts = dict(thresholds)
    for name, value in thresholds.items():
        if name == "spam_level":
            facts[name] = validate_spam_level(value, [paths[name]])
        elif value is not None and not 0 < value <= MAX_SCORE:
            text = f"above 0, and at most {MAX_SCORE:g}"
            raise InvalidInput(text, constraint=ValidationConstraint.RANGE, path=[paths[name]])
    async with lock_users_and_store_changes(ctx, user_selector, "spamPolicySet") as locked_users:
        for row in locked_users.rows:
            junk, reject = (
                usual if (score := facts.get(name, getattr(row, name))) is None else score
                for name, usual in (
                    ("junk_score", DEFAULT_JUNK_POINTS),
                    ("reject_score", DEFAULT_REJECT_POINTS),
                )
            )
            if junk > reject:
                text = f"The reject score {reject:g} must not be below the junk score {junk:g}"
                raise InvalidInput(
                    text, constraint=ValidationConstraint.RANGE, path=["rejectScore"]
                )
            locked_users.set_columns(row, **facts)
    return [row.id for row in locked_users.rows]
