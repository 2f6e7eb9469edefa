"""Compute the spam verdicts of a message for all its recipients (mail/spam/verdict.py)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from sqlalchemy import select
from sqlmodel import col

from mail.envelope.local_recipient import LocalRecipient
from mail.inbound.incoming_message import IncomingMessage
from mail.recipients.address_resolution import ENCRYPTION_KEY
from mail.recipients.recipient_routes import AutoreplyAddress
from mail.spam import sender_rules, verdict
from mail.spam.sender_rules import SenderRuleMatch
from mail.spam.verdict import (
    DEFAULT_JUNK_POINTS,
    DEFAULT_REJECT_POINTS,
    SpamThresholds,
    SpamVerdict,
)
from mail.storage.storable_message import StorableMessage
from models.mailboxes.tables import Mailbox, SpecialUse
from models.runtime.environment import Environment
from models.users.roles import Role
from models.users.tables import User, UserTag

DEFAULT_SPAM_LEVEL = 50  # 0 to 100


@dataclass(frozen=True, slots=True)
class RecipientVerdict:
    """A recipient with the spam verdict. The recipient's mailbox is Junk for spam."""

    recipient: LocalRecipient
    verdict: SpamVerdict


async def compute_verdicts_and_set_junk_mailboxes(
    environment: Environment,
    message: StorableMessage,
    envelope_sender: str,
    recipients: Sequence[LocalRecipient],
    *,
    from_trusted_server: bool,
) -> list[RecipientVerdict]:
    """Return the verdict of each recipient, in the same order.

    Spam header fields are trusted if a trusted server handed the message over. No SQL statement if
    there are no sender rules and the message is not spam.
    """
    facts = _spam_facts(
        environment, message, envelope_sender, from_trusted_server=from_trusted_server
    )
    rules = await _load_matching_sender_rules_by_user(
        environment, message, envelope_sender, recipients
    )
    # quarantined viruses don't reach this point
    viruses = environment.options.virus_action != "tag"
    verdicts = [
        verdict.compute_verdict(
            facts,
            rules.get(recipient.user_id, ()),
            recipient.spam_level,
            thresholds_of_recipient(recipient, refuse_viruses=viruses),
        )
        for recipient in recipients
    ]
    junked = [
        recipient.user_id
        for recipient, verdict in zip(recipients, verdicts, strict=True)
        if verdict.is_spam
    ]
    mailboxes_and_keys = (
        await _load_junk_mailbox_and_key_by_user(environment, junked) if junked else {}
    )
    return [
        RecipientVerdict(
            _with_junk_mailbox(recipient, mailboxes_and_keys.get(recipient.user_id))
            if verdict.is_spam
            else recipient,
            verdict,
        )
        for recipient, verdict in zip(recipients, verdicts, strict=True)
    ]


async def is_spam_for_address(
    environment: Environment, incoming: IncomingMessage, autoreply_address: AutoreplyAddress
) -> bool:
    """Return True if a message is spam for an address without an account.

    Uses the default level and the sender rules of its tags, its domain and the platform.
    """
    message, sender = incoming.message, incoming.envelope_sender
    facts = _spam_facts(
        environment, message, sender, from_trusted_server=incoming.from_trusted_server
    )
    nobody = _AddressWithoutAccount(
        domain_id=autoreply_address.domain_id, tags=autoreply_address.tags
    )
    (rules,) = await sender_rules.load_matching_rules(
        environment, [nobody], sender, _first_from_address_or_empty(message)
    )
    return verdict.compute_verdict(facts, rules, DEFAULT_SPAM_LEVEL).is_spam


def _spam_facts(
    environment: Environment,
    message: StorableMessage,
    envelope_sender: str,
    *,
    from_trusted_server: bool,
) -> verdict.SpamFacts:
    """Return the facts about spam that are the same for all recipients."""
    opinions = message.facts.spam_headers if from_trusted_server else ()
    believed = environment.options.spam_headers
    return verdict.spam_facts(
        opinions, believed, envelope_sender, message.authentication, message.scan
    )


class _AddressWithoutAccount(NamedTuple):
    """An address without an account, as the receiver of sender rules."""

    user_id: int = 0
    domain_id: int | None = None
    tags: Sequence[str] = ()
    role: Role = Role.USER


def thresholds_of_recipient(recipient: LocalRecipient, *, refuse_viruses: bool) -> SpamThresholds:
    """Return the spam thresholds of a recipient. Defaults are adjusted to stay in order."""
    reject = (
        max(DEFAULT_REJECT_POINTS, recipient.junk_score or 0.0)
        if recipient.reject_score is None
        else recipient.reject_score
    )
    junk = (
        min(DEFAULT_JUNK_POINTS, reject) if recipient.junk_score is None else recipient.junk_score
    )
    return SpamThresholds(junk, reject, refuse_viruses)


def _with_junk_mailbox(
    recipient: LocalRecipient, mailbox_and_key: tuple[int, str | None] | None
) -> LocalRecipient:
    """Return the recipient with the Junk mailbox and its encryption key, if there is one."""
    return (
        replace(recipient, mailbox_id=mailbox_and_key[0], encryption_key=mailbox_and_key[1])
        if mailbox_and_key
        else recipient
    )


async def _load_matching_sender_rules_by_user(
    environment: Environment,
    message: StorableMessage,
    envelope_sender: str,
    recipients: Sequence[LocalRecipient],
) -> Mapping[int, Sequence[SenderRuleMatch]]:
    """Return the matching sender rules by account ID."""
    recipients_with_rules = [recipient for recipient in recipients if recipient.has_sender_rules]
    if not recipients_with_rules:
        return {}
    statement = select(col(UserTag.user_id), col(UserTag.tag)).where(
        col(UserTag.user_id).in_([recipient.user_id for recipient in recipients_with_rules])
    )
    tags: dict[int, list[str]] = {}
    for row in await environment.database.read(statement):
        tags.setdefault(row.user_id, []).append(row.tag)
    receivers = [
        replace(recipient, tags=[*recipient.tags, *tags.get(recipient.user_id, ())])
        for recipient in recipients_with_rules
    ]
    rules = await sender_rules.load_matching_rules(
        environment, receivers, envelope_sender, _first_from_address_or_empty(message)
    )
    return {
        recipient.user_id: user_rules
        for recipient, user_rules in zip(recipients_with_rules, rules, strict=True)
    }


def _first_from_address_or_empty(message: StorableMessage) -> str:
    """Return the first From address, "" if there is none."""
    return message.facts.from_[0].address if message.facts.from_ else ""


async def _load_junk_mailbox_and_key_by_user(
    environment: Environment, user_ids: Sequence[int]
) -> dict[int, tuple[int, str | None]]:
    """Return id and encryption key of the Junk mailbox by account ID."""
    statement = (
        select(col(Mailbox.user_id), col(Mailbox.id), ENCRYPTION_KEY.label("key"))
        .join(User, col(User.id) == col(Mailbox.user_id))
        .where(col(Mailbox.user_id).in_(user_ids), col(Mailbox.special_use) == SpecialUse.JUNK)
    )
    return {row.user_id: (row.id, row.key) for row in await environment.database.read(statement)}
