"""Find the MTA-STS policy of a domain by host name (RFC 8461)."""

import idna
from sqlalchemy import select
from sqlmodel import col

from mail.addresses.address_syntax import normalized_domain
from mail.domains import mta_sts_policy
from mail.domains.mta_sts_policy import HOST_PREFIX, MODE_OFF
from models.domains.tables import AliasDomain, Domain
from models.runtime.environment import Environment

MAX_HOST_LENGTH = 300


async def policy_text_of_host(environment: Environment, host: str) -> str | None:
    """Return the MTA-STS policy of the domain in a host name `mta-sts.DOMAIN`, or None.

    A domain with backup MX has no policy here, since other mail servers receive its mail.
    """
    options = environment.options
    host_name = host.rpartition(":")[0] or host
    if (
        options.mta_sts_mode == MODE_OFF
        or "." not in options.hostname
        or len(host_name) > MAX_HOST_LENGTH
    ):
        return None
    if not host_name.lower().startswith(HOST_PREFIX):
        return None
    try:
        domain = normalized_domain(host_name[len(HOST_PREFIX) :])
    except (idna.IDNAError, ValueError):
        return None
    alias_statement = select(col(AliasDomain.domain_id)).where(
        col(AliasDomain.alias) == domain, col(AliasDomain.active)
    )
    statement = select(col(Domain.id)).where(
        (col(Domain.name) == domain) | col(Domain.id).in_(alias_statement),
        col(Domain.active),
        ~col(Domain.backup_mx),
    )
    domain_rows = await environment.database.read(statement)
    return (
        mta_sts_policy.policy_text(options.hostname, options.mta_sts_mode) if domain_rows else None
    )
