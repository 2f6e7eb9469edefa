"""Which DSNs a sender gets (RFC 3461), and the DSN parameters for the next server.

If the next server offers DSN, it sends the reports. It gets the parameters of the sender and an
envelope id. An envelope id of this server contains a proof that only servers that got the mail for
that domain know, so that a returning report can be verified.
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

PROOF = 16  # base32 characters, 80 bits
THERE = frozenset({DeliveryState.DELIVERED, DeliveryState.RELAYED})
FAILED = frozenset({DeliveryState.BOUNCED, DeliveryState.EXPIRED})

_OURS = re.compile(r"([0-9a-f]{20})\.([a-z2-7]{16})")


def due(
    world: World, job: Job, results: Mapping[int, Result], now: datetime
) -> dict[On, dict[int, Result]]:
    """The results that the sender gets a DSN for, by NOTIFY condition and delivery id.

    Empty for messages without an envelope sender and for copies of BCC rules.
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
    """The NOTIFY condition that a result meets. None if it needs no report now."""
    if result.state in FAILED:
        return On.FAILURE
    if result.state in THERE:
        return None if result.told_there else On.SUCCESS
    at = delay_at(world, job, to)
    return On.DELAY if at is not None and now >= at else None


def delay_at(world: World, job: Job, to: To) -> datetime | None:
    """Time of the delay report to the sender. None if it was sent or is not wanted."""
    after = world.options.queue_delay_notice
    if not after or to.delay_told or job.copy or not job.sender or not to.wish.wants(On.DELAY):
        return None
    return (job.begun_at or job.created_at) + after


def next_at(world: World, job: Job, to: To, at: datetime) -> datetime:
    """Time of the next attempt, not later than the delay report or the expiry."""
    told = delay_at(world, job, to)
    soon = [told] if told is not None and world.now() < told else []
    return min(at, to.expires_at, *soon)


def of(world: World, job: Job, to: To) -> Wish:
    """The DSN request for a recipient that is sent to the next server."""
    if not job.sender or job.copy:
        return NOTHING
    envid = to.wish.envid
    if envid is None and job.user_id is not None:
        envid = f"{job.queue_id}.{proof(world, job.queue_id, job.domain)}"
    return replace(to.wish, envid=envid, orcpt=to.wish.orcpt or typed(to.address))


def of_message(world: World, job: Job) -> list[str]:
    """DSN parameters of MAIL FROM, for a server that offers DSN."""
    return mail_parameters(of(world, job, job.recipients[0]))


def of_recipient(to: To) -> list[str]:
    """DSN parameters of RCPT TO, for a server that offers DSN."""
    return rcpt_parameters(replace(to.wish, orcpt=to.wish.orcpt or typed(to.address)))


def proof(world: World, queue_id: str, domain: str) -> str:
    """HMAC that shows that its holder got the mail of a submission for a domain."""
    told = "\0".join(["envid", queue_id, domain.lower()]).encode()
    return b32encode(hmac.digest(world.secret, told, "sha256")).decode()[:PROOF].lower()


def apart(envid: str) -> tuple[str, str] | None:
    """Queue id and proof of an envelope id of this server. None for other ids. Ignores case."""
    found = _OURS.fullmatch(envid.strip().lower())
    return (found[1], found[2]) if found else None


def proven(world: World, queue_id: str, domain: str, shown: str) -> bool:
    """True if `candidate` is the proof of the submission for the domain."""
    return hmac.compare_digest(shown, proof(world, queue_id, domain))
