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

from mail.addresses.address_syntax import UNSTORABLE, normalized_domain
from mail.recipients.batch_resolution import load_receiving_address_rows
from models.domains.tables import Domain, DomainAlias
from models.errors import NotFound
from models.runtime.environment import Environment
from models.store.prepared_statements import PreparedStatement

_DOMAIN_NAME: Any = bindparam("name", type_=String)
_ALIAS_TARGET_IDS = select(col(DomainAlias.domain_id)).where(
    col(DomainAlias.alias) == _DOMAIN_NAME, col(DomainAlias.active)
)
_SELECT_RELAYING_DOMAIN = PreparedStatement(
    select(col(Domain.id)).where(
        or_(col(Domain.name) == _DOMAIN_NAME, col(Domain.id).in_(_ALIAS_TARGET_IDS)),
        col(Domain.active),
        col(Domain.backup_mx),
        col(Domain.relay_all_recipients),
    )
)


async def require_relaying_domain_id(environment: Environment, not_found: NotFound) -> int:
    """Return the ID of the domain that relays mail for an address that was not found.

    Raises the given NotFound if there is none. A disabled address is not unknown: it refuses mail.
    """
    local, _, domain = not_found.ref.rpartition("@")
    if not local or UNSTORABLE.search(not_found.ref):
        raise not_found
    rows = await environment.database.read_prepared(
        _SELECT_RELAYING_DOMAIN, {"name": normalized_domain(domain)}
    )
    if not rows or await load_receiving_address_rows(environment, [not_found.ref]):
        raise not_found
    return int(rows[0].id)
