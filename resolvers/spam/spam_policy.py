"""Set the spam thresholds of users."""

from collections.abc import Mapping
from typing import Any

from mail.spam.verdict import JUNK, REJECT
from models.errors import Invalid
from resolvers.context import Context
from resolvers.users.selection import Users
from resolvers.users.user_locks import changing
from resolvers.users.validation import spam_level

HIGHEST = 10_000.0


async def set_spam_policy(ctx: Context, users: Users, given: Mapping[str, Any]) -> list[int]:
    """Set `spam_level`, `junk_score` or `reject_score`; None restores the platform's value.

    Returns the user IDs. Raises Invalid if a value is out of range or junk exceeds reject.
    """
    if not given:
        raise Invalid("change at least one thing", constraint="required", path=["level"])
    paths = {"spam_level": "level", "junk_score": "junkScore", "reject_score": "rejectScore"}
    facts = dict(given)
    for name, value in given.items():
        if name == "spam_level":
            facts[name] = spam_level(value, [paths[name]])
        elif value is not None and not 0 < value <= HIGHEST:
            text = f"above 0, and at most {HIGHEST:g}"
            raise Invalid(text, constraint="range", path=[paths[name]])
    async with changing(ctx, users, "spamPolicySet") as held:
        for row in held.rows:
            junk, reject = (
                usual if (score := facts.get(name, getattr(row, name))) is None else score
                for name, usual in (("junk_score", JUNK), ("reject_score", REJECT))
            )
            if junk > reject:
                text = f"mail is junk from {junk:g} on, and so not refused from {reject:g} on"
                raise Invalid(text, constraint="range", path=["rejectScore"])
            held.set(row, **facts)
    return [row.id for row in held.rows]
