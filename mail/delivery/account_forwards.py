"""Sending on what comes for accounts that have targets, once it is stored; and spam, which is not.

It counts against a limit of the account, whose owner is told when it is used up. Nothing is lost
then: it is stored all the same.
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
    """What came of a message to an account that forwards."""

    SENT = "SENT"
    SPAM = "SPAM"
    LIMIT = "LIMIT"  # as much was forwarded as may be in a day
    LOOP = "LOOP"
    NOBODY = "NOBODY"  # all targets are the account itself, or have had it
    UNENCRYPTED = "UNENCRYPTED"  # it cannot be encrypted, and is to be


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
    """It is spam, and goes to nobody else."""


def is_spam(world: World, letter: Letter, sender: str, *, handed: bool) -> bool:
    """Whether the filters of a neighbour who has handed it over say so much against it."""
    opinions, believed = letter.facts.opinions if handed else (), world.options.spam_headers
    found = verdict.known(opinions, believed, sender, letter.verification)
    return found.score.value >= world.options.spam_forward_max


async def after(
    world: World, mail: "Mail", judged: Judged, placed: Placed | None = None
) -> Outcome | None:
    """Queue a message that is stored for the targets of its account; None where it has none.

    Where it is `placed`, that copy remembers them. On return it is durable; what goes wrong lets
    the message come again, and it is stored once.
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
    except NotFound:  # the account has gone meanwhile
        return None
    FORWARDS.add(outcome.lower())
    if outcome is not Outcome.SENT:
        log.info("not forwarded", extra={"user": judged.to.user_id, "outcome": outcome})
    return outcome


async def _sent(world: World, mail: "Mail", judged: Judged, placed: Placed | None) -> Outcome:
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
    """What is sent on for an account that forwards, and to whom; or why nothing is.

    With the message is what was read of it, unless it is another that was encrypted. NotFound
    where the account has gone, Unavailable where it cannot be encrypted.
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
    """Where the message has been delivered to, as its header says."""
    header = await autoreply.header_of(source, letter)
    return [field.value.strip() for field in header if field.key.casefold() == "delivered-to"]


async def _onward(world: World, to: Recipient, row: Picked, been: Sequence[str]) -> Onward:
    """The targets that are neither the account itself nor have had the message."""
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
