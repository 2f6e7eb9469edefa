"""Find the MTA-STS policy of a domain by host name (RFC 8461)."""

import idna
from sqlalchemy import select
from sqlmodel import col

from mail.addresses.address_syntax import normal_domain
from mail.domains import mta_sts_policy
from mail.domains.mta_sts_policy import BEFORE, OFF
from models.domains.tables import Domain, DomainAlias
from models.runtime.environment import World

LONGEST = 300


async def of_host(world: World, host: str) -> str | None:
    """Return the MTA-STS policy of the domain in a host name `mta-sts.DOMAIN`, or None.

    A domain with backup MX has no policy here, since other mail servers receive its mail.
    """
    options = world.options
    name = host.rpartition(":")[0] or host
    if options.mta_sts == OFF or "." not in options.hostname or len(name) > LONGEST:
        return None
    if not name.lower().startswith(BEFORE):
        return None
    try:
        domain = normal_domain(name[len(BEFORE) :])
    except (idna.IDNAError, ValueError):
        return None
    second = select(col(DomainAlias.domain_id)).where(
        col(DomainAlias.alias) == domain, col(DomainAlias.active)
    )
    asked = select(col(Domain.id)).where(
        (col(Domain.name) == domain) | col(Domain.id).in_(second),
        col(Domain.active),
        ~col(Domain.backup_mx),
    )
    there = await world.database.read(asked)
    return mta_sts_policy.policy(options.hostname, options.mta_sts) if there else None
