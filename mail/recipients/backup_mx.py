"""Backup MX: domains with mail that is held for other servers.

| the domain has                | mail for a local account | for an unknown address |
|-------------------------------|--------------------------|------------------------|
| `backup_mx`                   | is relayed               | is refused             |
| and `relay_all_recipients`    | is relayed               | is relayed             |
| and `relay_unknown_only`      | is delivered here        | is relayed             |

Forwarding, discarding and training addresses keep their function. Relayed mail keeps its envelope
and gets neither Delivered-To nor an ARC seal. The queue looks up the preferred servers in DNS
(mail/routing/mx_hosts.py) or uses the configured transport, and returns the mail if there is
neither.
"""

from typing import Any

from sqlalchemy import String, bindparam, or_, select
from sqlmodel import col

from mail.addresses.address_syntax import ODD, normal_domain
from mail.recipients.batch_resolution import resolve_all
from models.domains.tables import Domain, DomainAlias
from models.errors import NotFound
from models.runtime.environment import World
from models.store.prepared_statements import Prepared

_NAME: Any = bindparam("name", type_=String)
_BEHIND = select(col(DomainAlias.domain_id)).where(
    col(DomainAlias.alias) == _NAME, col(DomainAlias.active)
)
_ALL = Prepared(
    select(col(Domain.id)).where(
        or_(col(Domain.name) == _NAME, col(Domain.id).in_(_BEHIND)),
        col(Domain.active),
        col(Domain.backup_mx),
        col(Domain.relay_all_recipients),
    )
)


async def home_of_unknown(world: World, refusal: NotFound) -> int:
    """Return the ID of the domain that relays mail for an address that was not found.

    Raises the given NotFound if there is none. A disabled address is not unknown: it refuses mail.
    """
    local, _, domain = refusal.ref.rpartition("@")
    if not local or ODD.search(refusal.ref):
        raise refusal
    rows = await world.database.find(_ALL, {"name": normal_domain(domain)})
    if not rows or await resolve_all(world, [refusal.ref]):
        raise refusal
    return int(rows[0].id)
