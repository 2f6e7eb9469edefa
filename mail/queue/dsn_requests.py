"""What a sender is to be told of recipients (RFC 3461), and what the next server is asked for.

Whoever hands mail over to a server that offers DSN leaves the reports to it. For that it is given
what was asked of us, and the id of the envelope: one of ours has a proof in it, which only those
know who were handed the mail for a domain. By it a report that comes back is believed.
"""

import hmac
import re
from base64 import b32encode
from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime

from mail.envelope.delivery_jobs import Job, Result, To
from mail.envelope.dsn_parameters import NOTHING, On, Wish, mail_parameters, rcpt_parameters, typed
from models.queue.tables import DeliveryState
from models.runtime.environment import World

PROOF = 16  # letters of base32, which are 80 bits
THERE = frozenset({DeliveryState.DELIVERED, DeliveryState.RELAYED})
FAILED = frozenset({DeliveryState.BOUNCED, DeliveryState.EXPIRED})

_OURS = re.compile(r"([0-9a-f]{20})\.([a-z2-7]{16})")


# ---------------------------------------------------------------- reports of ours


def due(
    world: World, job: Job, results: Mapping[int, Result], now: datetime
) -> dict[On, dict[int, Result]]:
    """The results that the sender is to be told of, by what he is told.

    Nobody is told of what has no sender, which reports have not, and of copies.
    """
    found: dict[On, dict[int, Result]] = {}
    if not job.sender or job.copy:
        return found
    for to in job.recipients:
        result = results.get(to.delivery_id)
        on = _on(world, job, to, result, now) if result is not None else None
        if result is not None and on is not None and to.wish.wants(on):
            found.setdefault(on, {})[to.delivery_id] = result
    return found


def _on(world: World, job: Job, to: To, result: Result, now: datetime) -> On | None:
    if result.state in FAILED:
        return On.FAILURE
    if result.state in THERE:
        return None if result.told_there else On.SUCCESS
    at = delay_at(world, job, to)
    return On.DELAY if at is not None and now >= at else None


def delay_at(world: World, job: Job, to: To) -> datetime | None:
    """When the sender is told that a recipient waits; None: he knows, or is not to know."""
    after = world.options.queue_delay_notice
    if not after or to.delay_told or job.copy or not job.sender or not to.wish.wants(On.DELAY):
        return None
    return (job.begun_at or job.created_at) + after


def next_at(world: World, job: Job, to: To, at: datetime) -> datetime:
    """The time of the next attempt, no later than the sender is told of a delay, or it ends."""
    told = delay_at(world, job, to)
    soon = [told] if told is not None and world.now() < told else []
    return min(at, to.expires_at, *soon)


# ---------------------------------------------------------------- reports of others


def of(world: World, job: Job, to: To) -> Wish:
    """What is wanted for a recipient, as it goes on to whoever has the mail next."""
    if not job.sender or job.copy:
        return NOTHING
    envid = to.wish.envid
    if envid is None and job.user_id is not None:
        envid = f"{job.queue_id}.{proof(world, job.queue_id, job.domain)}"
    return replace(to.wish, envid=envid, orcpt=to.wish.orcpt or typed(to.address))


def of_message(world: World, job: Job) -> list[str]:
    """Parameters of MAIL, for a server that offers DSN."""
    return mail_parameters(of(world, job, job.recipients[0]))


def of_recipient(to: To) -> list[str]:
    """Parameters of RCPT, likewise."""
    return rcpt_parameters(replace(to.wish, orcpt=to.wish.orcpt or typed(to.address)))


def proof(world: World, queue_id: str, domain: str) -> str:
    """What shows that somebody was handed the mail of a submission for a domain."""
    told = "\0".join(["envid", queue_id, domain.lower()]).encode()
    return b32encode(hmac.digest(world.secret, told, "sha256")).decode()[:PROOF].lower()


def apart(envid: str) -> tuple[str, str] | None:
    """The id of the queue and the proof, where it is an envelope id of ours; some fold it."""
    found = _OURS.fullmatch(envid.strip().lower())
    return (found[1], found[2]) if found else None


def proven(world: World, queue_id: str, domain: str, shown: str) -> bool:
    """Whether this is the proof for the domain."""
    return hmac.compare_digest(shown, proof(world, queue_id, domain))
