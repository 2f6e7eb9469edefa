"""Domain administrators."""

from collections.abc import Sequence
from typing import Any

import httpx
from sqlalchemy import select
from sqlmodel import col

from models.domains.tables import Domain
from models.runtime.environment import Environment
from models.users.roles import AdminPermission, Role, Scope
from models.users.tables import DomainAdmin, User
from resolvers.context import Context
from resolvers.viewer import Viewer
from tests.conftest import GraphQLClient, make_client
from tests.support.stores.counter_check import select_rows


async def make_domain_admin(
    environment: Environment,
    http: httpx.AsyncClient,
    name: str,
    permissions: Sequence[AdminPermission] = (),
    *,
    domains: Sequence[str] = ("example.org",),
    **columns: Any,
) -> GraphQLClient:
    """Create a user of example.org who administers these existing domains."""
    client = await make_client(environment, http, name, role=Role.DOMAIN_ADMIN, **columns)
    domain_query = select(col(Domain.id)).where(col(Domain.name).in_(domains))
    domain_ids = [row.id for row in await environment.database.read(domain_query)]
    assert len(domain_ids) == len(domains)
    async with environment.write_session(client.user.id) as session:
        session.add_all(
            DomainAdmin(user_id=client.user.id, domain_id=domain_id) for domain_id in domain_ids
        )
        user = await session.get_one(User, client.user.id)
        user.admin_permissions = [permission.value for permission in permissions]
    return client


async def domain_admin_context(
    client: GraphQLClient,
    *permissions: AdminPermission,
    administers: tuple[str, ...] = ("example.org",),
) -> Context:
    """The context of a request by a DOMAIN_ADMIN of these domains, who is the client's user."""
    id_by_name = {
        name: key
        for key, name in await select_rows(client.environment, "SELECT id, name FROM domains")
    }
    viewer = Viewer(
        client.user.id,
        Role.DOMAIN_ADMIN,
        frozenset({Scope.FULL}),
        frozenset(permissions),
        frozenset(id_by_name[name] for name in administers),
    )
    return Context(client.environment, viewer)
