"""Domains whose mail we hold for other servers: a backup MX.

| the domain has                | mail for an account here | for an address nobody has here |
|-------------------------------|--------------------------|--------------------------------|
| `backup_mx`                   | goes on                  | is refused                     |
| and `relay_all_recipients`    | goes on                  | goes on                        |
| and `relay_unknown_only`      | is delivered here        | goes on                        |

Addresses that forward, drop or learn do so, whatever the domain says. What goes on keeps its
envelope, and gets neither Delivered-To nor a seal: it is as if the sender had waited. The queue
asks DNS for the servers that are better than we are (mail/routing/mx_hosts.py), or takes the
transport
there is for them, and gives the mail back where there are none.
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
    """The domain that takes mail for an address which was not found; else the refusal is raised.

    One that is switched off here is not unknown: it refuses.
    """
    local, _, domain = refusal.ref.rpartition("@")
    if not local or ODD.search(refusal.ref):
        raise refusal
    rows = await world.database.find(_ALL, {"name": normal_domain(domain)})
    if not rows or await resolve_all(world, [refusal.ref]):
        raise refusal
    return int(rows[0].id)
