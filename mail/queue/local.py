"""Recipients who are here: no SMTP between us and ourselves."""

import logging

from sqlalchemy import select
from sqlmodel import col

from mail import addresses, autoreply, encrypting
from mail.addresses import normal_domain
from mail.compose import without_bcc
from mail.delivery import Letter, read
from mail.queue.jobs import Job, Result, To
from models.domains import Domain, DomainAlias
from models.errors import NotFound, OverQuota, Unavailable
from models.queue import DeliveryState
from models.world import World

log = logging.getLogger(__name__)


async def is_ours(world: World, domain: str) -> bool:
    """Whether we take the mail of this domain."""
    name = normal_domain(domain)
    own = select(col(Domain.id)).where(col(Domain.name) == name, col(Domain.active))
    alias = (
        select(col(Domain.id))
        .join(DomainAlias, col(DomainAlias.domain_id) == col(Domain.id))
        .where(col(DomainAlias.alias) == name, col(DomainAlias.active), col(Domain.active))
    )
    return bool(await world.database.read(own) or await world.database.read(alias))


async def deliver(world: World, job: Job, raw: bytes) -> dict[int, Result]:
    """Put the message into each recipient's INBOX; one that was put there before is known."""
    returns = f"Return-Path: <{job.sender}>\r\n".encode()
    source = returns + without_bcc(raw)
    letter = await read(source)
    return {to.delivery_id: await _one(world, job, (source, letter), to) for to in job.recipients}


async def _one(world: World, job: Job, mail: tuple[bytes, Letter], to: To) -> Result:
    host = world.options.hostname
    try:
        there = await addresses.recipient(world, to.address)
        await encrypting.receive(world, *mail, there, job.sender)
        await autoreply.after(world, mail, there, job.sender)
    except NotFound:
        return Result.refused(550, "5.1.1 Nobody has this address", host)
    except OverQuota:
        return Result.refused(452, "4.2.2 The mailbox is full", host)
    except Unavailable:
        return Result.refused(451, "4.3.0 It cannot be taken now", host)
    return Result(DeliveryState.DELIVERED, 250, "2.0.0 Delivered here", host)
