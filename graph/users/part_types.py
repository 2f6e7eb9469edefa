"""GraphQL types of parts of a user."""

from datetime import datetime
from typing import Any

import strawberry

from graph.types.errors import attribute_field
from graph.types.scalars import EmailAddress
from mail.spam.verdict import DEFAULT_JUNK_POINTS, DEFAULT_REJECT_POINTS


@strawberry.type(description="How strict.")
class SpamPolicy:
    level: int = attribute_field("0 everything is spam … 100 nothing is.")
    junk_score: float = attribute_field("To Junk from this score, default 8.")
    reject_score: float = attribute_field("Refused from this score, default 15.")


@strawberry.type(description="About an OpenPGP public key.")
class OpenpgpKey:
    name: str | None = attribute_field("Name in the key.")
    address: EmailAddress | None = attribute_field("Address in the key.")
    fingerprint: str = attribute_field("Fingerprint, hex.")
    expires_at: datetime | None = attribute_field("End of validity.")


def openpgp_key_from_json(stored_openpgp_key: dict[str, Any] | None) -> OpenpgpKey | None:
    """Return the stored facts about the user's OpenPGP key; None if the user has none."""
    if stored_openpgp_key is None:
        return None
    expires = stored_openpgp_key["expires_at"]
    return OpenpgpKey(
        name=stored_openpgp_key["name"],
        address=stored_openpgp_key["address"],
        fingerprint=stored_openpgp_key["fingerprint"],
        expires_at=expires and datetime.fromisoformat(expires),
    )


def spam_policy_from_columns(
    level: int, junk_score: float | None, reject_score: float | None
) -> SpamPolicy:
    """Return the spam policy of a user. Scores that are None become the default ones."""
    return SpamPolicy(
        level=level,
        junk_score=DEFAULT_JUNK_POINTS if junk_score is None else junk_score,
        reject_score=DEFAULT_REJECT_POINTS if reject_score is None else reject_score,
    )


@strawberry.type(description="One resolved setting.")
class ServiceSetting:
    key: str = attribute_field("Name.")
    value: str | None = attribute_field("Value.")
