"""GraphQL types of parts of a user."""

from datetime import datetime
from typing import Any

import strawberry

from graph.types.errors import attribute_field
from graph.types.scalars import EmailAddress
from mail.spam.verdict import DEFAULT_JUNK_POINTS, DEFAULT_REJECT_POINTS

SPAM_COLUMNS = ("spam_level", "junk_score", "reject_score")


@strawberry.type(description="Spam thresholds of an account.")
class SpamPolicy:
    level: int = attribute_field(
        "Spam score, from 0 to 100, from which a message for the account is spam, unless a sender "
        "rule or filter decides. 0: all mail is spam except that of allowed senders. 100: only "
        "mail with a virus is spam, whatever rules and filters say. Default: 50."
    )
    junk_score: float = attribute_field(
        "Points of the spam scanner that give a message for the account the spam score 50. "
        "Default: 8."
    )
    reject_score: float = attribute_field(
        "Points of the spam scanner from which a message is refused by SMTP, unless it is "
        "quarantined. Mail of allowed senders is not refused for its points, and with the level "
        "100 no mail is. Default: 15."
    )


@strawberry.input(
    description=(
        "Spam thresholds of an account. An absent field leaves the threshold, or gives a new "
        "account the default. Null restores the default."
    )
)
class SpamPolicyInput:
    level: strawberry.Maybe[int | None] = attribute_field(
        "Spam score, from 0 to 100, from which a message for the account is spam, unless a sender "
        "rule or filter decides. 0: all mail is spam except that of allowed senders. 100: only "
        "mail with a virus is spam, whatever rules and filters say. Null: 50."
    )
    junk_score: strawberry.Maybe[float | None] = attribute_field(
        "Points of the spam scanner that give a message the spam score 50, above 0 and at most "
        "10,000. Null: 8."
    )
    reject_score: strawberry.Maybe[float | None] = attribute_field(
        "Points of the spam scanner from which a message is refused by SMTP, unless it is "
        "quarantined. Mail of allowed senders is not refused for its points, and with the level "
        "100 no mail is. Above 0, at most 10,000, and not below the `junkScore` that applies. "
        "Null: 15."
    )

    def to_column_values(self) -> dict[str, Any]:
        """Return the thresholds that the input sets, by column. Absent thresholds are left out."""
        changes = zip(SPAM_COLUMNS, (self.level, self.junk_score, self.reject_score), strict=True)
        return {column: change.value for column, change in changes if change}


@strawberry.type(description="Facts about the OpenPGP public key of an account (RFC 9580).")
class OpenpgpKey:
    name: str | None = attribute_field("Name in the first user ID of the key. Null: it has none.")
    address: EmailAddress | None = attribute_field(
        "Email address in the first user ID of the key. Null: it has none."
    )
    fingerprint: str = attribute_field("Fingerprint of the key in lower-case hexadecimal.")
    expires_at: datetime | None = attribute_field(
        "Time when the key expires. Null: the key does not expire."
    )


def openpgp_key_from_json_or_none(stored_openpgp_key: dict[str, Any] | None) -> OpenpgpKey | None:
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


@strawberry.type(description="Effective setting of an account for a mail service.")
class ServiceSetting:
    key: str = attribute_field("Name of the setting, such as `quota/storage`.")
    value: str | None = attribute_field(
        "Effective value as text: Booleans as `yes` or `no`, no limit as `unlimited`, "
        "sizes in bytes, the retention in seconds."
    )
