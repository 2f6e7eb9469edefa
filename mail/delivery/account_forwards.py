"""Forward stored messages to the targets of their account.

Spam is not forwarded. Each forward counts against the daily limit of the account; its owner is
notified when the limit is reached. The message is stored in any case.
"""

import logging
from collections.abc import Sequence
from dataclasses import replace
from enum import StrEnum
from pathlib import Path

from sqlalchemy import select
from sqlmodel import col

from mail import autoreply
from mail.addresses.address_syntax import normal
from mail.envelope.local_recipient import Recipient
from mail.inbound.incoming_message import Mail
from mail.inbound.spam_check import Judged
from mail.limits import user_limits
from mail.limits.user_limits import TooMany
from mail.queue.redirect import send_on
from mail.recipients import forward_targets
from mail.recipients.batch_resolution import resolve_all
from mail.recipients.forward_targets import Via
from mail.recipients.recipient_routes import Loop, Onward
from mail.spam import verdict
from mail.storage import openpgp_encryption
from mail.storage.message_insert import Letter, Placed
from models.errors import NotFound, Refused, Unavailable
from models.observability import metrics
from models.runtime.environment import World
from models.store.columns import Picked
from models.store.prepared_statements import Prepared, number
from models.users.tables import User

log = logging.getLogger(__name__)


class Outcome(StrEnum):
    """The result of forwarding a message to the targets of its account."""

    SENT = "SENT"
    SPAM = "SPAM"
    LIMIT = "LIMIT"  # the daily limit of forwards is reached
    LOOP = "LOOP"
    NOBODY = "NOBODY"  # each target is the account itself or already has the message
    UNENCRYPTED = "UNENCRYPTED"  # encryption is required, but not possible


FORWARDS = metrics.counter(
    "merganser_forwards",
    "Messages to accounts that forward: sent, or why not.",
    "outcome",
)
_ACCOUNT = Prepared(
    select(
        col(User.id),
        col(User.targets),
        col(User.relays),
        col(User.encrypt_forwarded),
        col(User.pub_key),
    ).where(col(User.id) == number("user"))
)


class Held(Refused):
    """The message is spam and is not forwarded to other addresses."""


def is_spam(world: World, letter: Letter, sender: str, *, handed: bool) -> bool:
    """Return True if spam header fields of a trusted server reach the score limit for forwards.

    Header fields count only if a trusted server handed the message over.
    """
    opinions, believed = letter.facts.opinions if handed else (), world.options.spam_headers
    found = verdict.known(opinions, believed, sender, letter.verification)
    return found.score.value >= world.options.spam_forward_max


async def after(
    world: World, mail: "Mail", judged: Judged, placed: Placed | None = None
) -> Outcome | None:
    """Enqueue a stored message for the forwarding targets of its account.

    Returns None if the account has no targets or does not exist. The stored copy, if there is one,
    remembers the forward. On return the queue entries are durable. Other errors are raised, so that
    the client sends the message again; it is stored only once.
    """
    if not judged.to.forwards:
        return None
    try:
        outcome = await _sent(world, mail, judged, placed)
    except Loop:
        outcome = Outcome.LOOP
    except Unavailable:
        outcome = Outcome.UNENCRYPTED
    except TooMany as refusal:
        await user_limits.refused(world, judged.to.user_id, refusal.reached)
        outcome = Outcome.LIMIT
    except NotFound:  # the account was deleted in the meantime
        return None
    FORWARDS.add(outcome.lower())
    if outcome is not Outcome.SENT:
        log.info("not forwarded", extra={"user": judged.to.user_id, "outcome": outcome})
    return outcome


async def _sent(world: World, mail: "Mail", judged: Judged, placed: Placed | None) -> Outcome:
    """Enqueue the forward and return SENT, or the reason why nothing is forwarded."""
    found = await wanted(world, mail, judged)
    if isinstance(found, Outcome):
        return found
    source, letter, onward = found
    key = placed.message_id if placed else None
    onward = replace(onward, wish=mail.passed_on(judged.to), message_id=key)
    await send_on(world, source, (mail.came, mail.sender), onward, mail.results, letter)
    return Outcome.SENT


async def wanted(
    world: World, mail: "Mail", judged: Judged
) -> tuple[bytes | Path, Letter | None, Onward] | Outcome:
    """Return the bytes, the parsed message and the forward, or the reason not to forward.

    The parsed message is None if the bytes were encrypted for the forward. Raises NotFound if the
    account does not exist, Unavailable if the message can't be encrypted.
    """
    to, source, letter = judged.to, mail.source, mail.letter
    if judged.verdict.is_spam or judged.verdict.score >= world.options.spam_forward_max:
        return Outcome.SPAM
    row = next(iter(await world.database.find(_ACCOUNT, {"user": to.user_id})), None)
    if row is None:
        raise NotFound(str(to.user_id), path=["user"])
    been = await _been(source, letter)
    onward = await _onward(world, to, row, been)
    if not (onward.targets or onward.via):
        return Outcome.NOBODY
    if row.encrypt_forwarded:
        key = (row.id, row.pub_key or "")
        hidden = await openpgp_encryption.sealed(world, source, letter, key)
        if hidden is not None:
            return hidden, None, onward
    return source, letter, onward


async def _been(source: bytes | Path, letter: Letter) -> list[str]:
    """Return the values of the Delivered-To header fields."""
    header = await autoreply.header_of(source, letter)
    return [field.value.strip() for field in header if field.key.casefold() == "delivered-to"]


async def _onward(world: World, to: Recipient, row: Picked, been: Sequence[str]) -> Onward:
    """Return the targets without the account itself and without addresses in Delivered-To."""
    pairs = list(zip(row.targets, forward_targets.whole(world, row), strict=True))
    named = [shown for shown, _ in pairs if "://" not in shown]
    own = {
        text
        for text, found in (await resolve_all(world, named)).items()
        if found.user_id == to.user_id
    }
    passed = {normal(address) for address in been}
    address = to.instead or to.address
    return Onward(
        address,
        None,
        to.tenant_id,
        [one for one in named if one not in own and normal(one) not in passed],
        [Via(address, shown, whole) for shown, whole in pairs if "://" in shown],
        user_id=to.user_id,
    )
