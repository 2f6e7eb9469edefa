"""Recipients who are here: no SMTP between us and ourselves."""

import logging

from sqlalchemy import select, union_all
from sqlmodel import col

from mail import addresses, encrypting, rewrites
from mail.addresses import Recipient, normal_domain
from mail.compose import without_bcc
from mail.delivery import Letter, read
from mail.queue.jobs import Job, Result, To
from mail.rewrites import Came
from models.domains import Domain, DomainAlias
from models.errors import NotFound, OverQuota, Unavailable
from models.queue import DeliveryState
from models.rewrites import RecipientRewrite
from models.world import World

log = logging.getLogger(__name__)


async def is_ours(world: World, domain: str) -> bool:
    """Whether we take the mail of this domain, be it that all of it is rewritten."""
    name = normal_domain(domain)
    own = select(col(Domain.id)).where(col(Domain.name) == name, col(Domain.active))
    alias = (
        select(col(Domain.id))
        .join(DomainAlias, col(DomainAlias.domain_id) == col(Domain.id))
        .where(col(DomainAlias.alias) == name, col(DomainAlias.active), col(Domain.active))
    )
    whole = select(col(RecipientRewrite.id)).where(
        col(RecipientRewrite.domain) == name,
        col(RecipientRewrite.local) == "",
        col(RecipientRewrite.active),
    )
    return bool(await world.database.read(select(union_all(own, alias, whole).subquery()).limit(1)))


async def deliver(world: World, job: Job, raw: bytes) -> dict[int, Result]:
    """Put the message into each recipient's INBOX; one that was put there before is known.

    What rules have copied of it is in the queue then.
    """
    returns = f"Return-Path: <{job.sender}>\r\n".encode()
    bare = without_bcc(raw)
    source = returns + bare
    letter = await read(source)
    results = {
        to.delivery_id: await _one(world, job, (source, letter), to) for to in job.recipients
    }
    if not job.copy:
        named = [to.address for to in job.recipients]
        came = Came(bare, letter, job.sender, named, job.submission_id)
        reached = [there for there, _ in results.values() if there]
        await rewrites.copies_of_received(world, came, reached)
    return {key: result for key, (_, result) in results.items()}


async def _one(
    world: World, job: Job, mail: tuple[bytes, Letter], to: To
) -> tuple[Recipient | None, Result]:
    """Who has received it, if anybody, and what came of it."""
    host = world.options.hostname
    try:
        there = await addresses.recipient(world, to.address)
        await encrypting.receive(world, *mail, there, job.sender)
    except NotFound:
        return None, Result.refused(550, "5.1.1 Nobody has this address", host)
    except OverQuota:
        return None, Result.refused(452, "4.2.2 The mailbox is full", host)
    except Unavailable:
        return None, Result.refused(451, "4.3.0 It cannot be taken now", host)
    return there, Result(DeliveryState.DELIVERED, 250, "2.0.0 Delivered here", host)
