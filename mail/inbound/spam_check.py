"""Compute the spam verdicts of a message for all its recipients (mail/spam/verdict.py)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from sqlalchemy import select
from sqlmodel import col

from mail.envelope.local_recipient import Recipient
from mail.recipients.address_resolution import KEY
from mail.recipients.recipient_routes import Answering
from mail.spam import sender_rules, verdict
from mail.spam.sender_rules import Match
from mail.spam.verdict import JUNK, REJECT, Limits, Spam
from mail.storage.message_insert import Letter
from models.mailboxes.tables import Mailbox, SpecialUse
from models.runtime.environment import World
from models.users.roles import Role
from models.users.tables import User, UserTag

LEVEL = 50  # 0 to 100


@dataclass(frozen=True, slots=True)
class Judged:
    """A recipient with the spam verdict. The recipient's mailbox is Junk for spam."""

    to: Recipient
    verdict: Spam


async def judged(
    world: World, letter: Letter, sender: str, recipients: Sequence[Recipient], *, handed: bool
) -> list[Judged]:
    """Return the verdict of each recipient, in the same order.

    Spam header fields are trusted if a trusted server handed the message over. No SQL statement if
    there are no sender rules and the message is not spam.
    """
    known = _known(world, letter, sender, handed=handed)
    rules = await _rules(world, letter, sender, recipients)
    viruses = world.options.virus != "tag"  # quarantined viruses don't reach this point
    verdicts = [
        verdict.decided(
            known, rules.get(to.user_id, ()), to.spam_level, limits_of(to, viruses=viruses)
        )
        for to in recipients
    ]
    junked = [to.user_id for to, each in zip(recipients, verdicts, strict=True) if each.is_spam]
    places = await _junk(world, junked) if junked else {}
    return [
        Judged(_moved(to, places.get(to.user_id)) if each.is_spam else to, each)
        for to, each in zip(recipients, verdicts, strict=True)
    ]


async def unwanted(world: World, mail: tuple[Letter, str], to: Answering, *, handed: bool) -> bool:
    """Return True if a message is spam for an address without an account.

    Uses the default level and the sender rules of its tags, its domain and the platform.
    """
    letter, sender = mail
    known = _known(world, letter, sender, handed=handed)
    nobody = _Nobody(domain_id=to.domain_id, tags=to.tags)
    (rules,) = await sender_rules.rules_of(world, [nobody], sender, _author(letter))
    return verdict.decided(known, rules, LEVEL).is_spam


def _known(world: World, letter: Letter, sender: str, *, handed: bool) -> verdict.Known:
    """Return the facts about spam that are the same for all recipients."""
    opinions, believed = letter.facts.opinions if handed else (), world.options.spam_headers
    return verdict.known(opinions, believed, sender, letter.verification, letter.scan)


class _Nobody(NamedTuple):
    """An address without an account, as the receiver of sender rules."""

    user_id: int = 0
    domain_id: int | None = None
    tags: Sequence[str] = ()
    role: Role = Role.USER


def limits_of(to: Recipient, *, viruses: bool) -> Limits:
    """Return the spam thresholds of a recipient. Defaults are adjusted to stay in order."""
    reject = max(REJECT, to.junk_score or 0.0) if to.reject_score is None else to.reject_score
    junk = min(JUNK, reject) if to.junk_score is None else to.junk_score
    return Limits(junk, reject, viruses)


def _moved(to: Recipient, junk: tuple[int, str | None] | None) -> Recipient:
    """Return the recipient with the Junk mailbox and its encryption key, if there is one."""
    return replace(to, mailbox_id=junk[0], key=junk[1]) if junk else to


async def _rules(
    world: World, letter: Letter, sender: str, recipients: Sequence[Recipient]
) -> Mapping[int, Sequence[Match]]:
    """Return the matching sender rules by account ID."""
    ruled = [to for to in recipients if to.ruled]
    if not ruled:
        return {}
    asked = select(col(UserTag.user_id), col(UserTag.tag)).where(
        col(UserTag.user_id).in_([to.user_id for to in ruled])
    )
    tags: dict[int, list[str]] = {}
    for row in await world.database.read(asked):
        tags.setdefault(row.user_id, []).append(row.tag)
    receivers = [replace(to, tags=[*to.tags, *tags.get(to.user_id, ())]) for to in ruled]
    found = await sender_rules.rules_of(world, receivers, sender, _author(letter))
    return {to.user_id: each for to, each in zip(ruled, found, strict=True)}


def _author(letter: Letter) -> str:
    """Return the first From address, "" if there is none."""
    return letter.facts.from_[0].address if letter.facts.from_ else ""


async def _junk(world: World, users: Sequence[int]) -> dict[int, tuple[int, str | None]]:
    """Return id and encryption key of the Junk mailbox by account ID."""
    asked = (
        select(col(Mailbox.user_id), col(Mailbox.id), KEY.label("key"))
        .join(User, col(User.id) == col(Mailbox.user_id))
        .where(col(Mailbox.user_id).in_(users), col(Mailbox.special_use) == SpecialUse.JUNK)
    )
    return {row.user_id: (row.id, row.key) for row in await world.database.read(asked)}
