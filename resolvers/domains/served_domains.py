"""Find the active domains with accounts on this server."""

import idna
from sqlalchemy import select
from sqlmodel import col

from mail.addresses.address_syntax import UNSTORABLE, normalized_domain
from models.domains.tables import Domain, DomainAlias
from models.runtime.environment import Environment


async def find_served_domain_id(environment: Environment, name: str) -> int | None:
    """Return the ID of the active domain with this name or alias; None if there is none.

    A domain with backup MX is not found, since other mail servers have its accounts.
    """
    if UNSTORABLE.search(name):
        return None
    try:
        domain = normalized_domain(name)
    except (idna.IDNAError, ValueError):
        return None
    alias_statement = select(col(DomainAlias.domain_id)).where(
        col(DomainAlias.alias) == domain, col(DomainAlias.active)
    )
    statement = select(col(Domain.id)).where(
        (col(Domain.name) == domain) | col(Domain.id).in_(alias_statement),
        col(Domain.active),
        ~col(Domain.backup_mx),
    )
    rows = await environment.database.read(statement)
    return rows[0].id if rows else None
