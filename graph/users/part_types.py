"""GraphQL types of parts of a user."""

from datetime import datetime
from typing import Any

import strawberry

from graph.types.errors import leaf
from graph.types.scalars import EmailAddress
from mail.spam.verdict import JUNK, REJECT


@strawberry.type(description="How strict.")
class SpamPolicy:
    level: int = leaf("0 everything is spam … 100 nothing is.")
    junk_score: float = leaf("To Junk from this score, default 8.")
    reject_score: float = leaf("Refused from this score, default 15.")


@strawberry.type(description="About an OpenPGP public key.")
class KeyInfo:
    name: str | None = leaf("Name in the key.")
    address: EmailAddress | None = leaf("Address in the key.")
    fingerprint: str = leaf("Fingerprint, hex.")
    expires_at: datetime | None = leaf("End of validity.")


def info_of(said: dict[str, Any] | None) -> KeyInfo | None:
    """Return the stored facts about the user's OpenPGP key; None if the user has none."""
    if said is None:
        return None
    expires = said["expires_at"]
    return KeyInfo(
        name=said["name"],
        address=said["address"],
        fingerprint=said["fingerprint"],
        expires_at=expires and datetime.fromisoformat(expires),
    )


def policy_of(level: int, junk: float | None, reject: float | None) -> SpamPolicy:
    """Return the spam policy of a user. Scores that are None become the default ones."""
    return SpamPolicy(
        level=level,
        junk_score=JUNK if junk is None else junk,
        reject_score=REJECT if reject is None else reject,
    )


@strawberry.type(description="One resolved setting.")
class EffectiveSetting:
    key: str = leaf("Name.")
    value: str | None = leaf("Value.")
