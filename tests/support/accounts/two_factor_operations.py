"""Sign-ins with and without a second factor, and the rows that they store."""

import hashlib
from datetime import timedelta
from typing import Any

from sqlalchemy import select
from sqlmodel import SQLModel, col

from models.auth.credentials import AccessToken
from models.domains.tables import Domain
from models.runtime.environment import Environment
from models.store.columns import core_table
from models.users.roles import AdminPermission, Role, Scope
from models.users.tables import User
from resolvers.context import Context, Viewer
from tests.conftest import Client
from tests.support.accounts.authenticators import document

USER = "user { username enabled2fa }"


async def ask(client: Client, name: str, fields: str = "", /, **input_values: Any) -> Any:
    """Run a mutation and return its payload."""
    return (await client(document(name, fields), input=input_values))[name]


async def codes(client: Client, name: str, /, **input_values: Any) -> list[str]:
    """Run a mutation and return its error codes."""
    return [error["code"] for error in (await ask(client, name, **input_values))["errors"]]


async def row_of(world: Environment, user_id: int) -> Any:
    query = select(core_table(User)).where(col(User.id) == user_id)
    (row,) = await world.database.read(query)
    return row


async def all_of(world: Environment, model: type[SQLModel]) -> list[Any]:
    table = core_table(model)
    return list(await world.database.read(select(table).order_by(*table.primary_key)))


async def token_of(client: Client, name: str = "one", *, pending: bool = False) -> Client:
    """Add an access token of the client's user, and return a client with that token."""
    world, now = client.world, client.world.now()
    secret = f"mgt_{name}".ljust(47, "t")
    row = await row_of(world, client.user.id)
    async with world.write_session() as session:
        session.add(
            AccessToken(
                id=world.new_id(),
                user_id=client.user.id,
                digest=hashlib.sha256(secret.encode()).hexdigest(),
                auth_version=row.auth_version,
                pending=pending,
                created_at=now,
                last_used_at=now,
                expires_at=now + timedelta(days=1),
            )
        )
    return Client(client.http, world, client.user, secret)


async def waiting(client: Client) -> Context:
    """The context of a request with a token that still needs a second factor."""
    await token_of(client, "waits", pending=True)
    query = select(col(AccessToken.id)).where(col(AccessToken.pending))
    (row,) = await client.world.database.read(query)
    viewer = Viewer(token_id=row.id, pending_user_id=client.user.id)
    return Context(client.world, viewer, client_ip="192.0.2.7")


async def viewer_of(client: Client) -> dict[str, Any] | None:
    """Load the viewer of a request by the client. Returns None if the credential is invalid."""
    response = await client.raw("{ viewer { role user { username } } }")
    return None if "errors" in response else response["data"]["viewer"]


async def admin_of(
    client: Client, *permissions: AdminPermission, domain: str = "example.org"
) -> Context:
    """The context of a request by the client's user as DOMAIN_ADMIN of this domain."""
    domain_query = select(col(Domain.id)).where(col(Domain.name) == domain)
    domain_ids = frozenset(row.id for row in await client.world.database.read(domain_query))
    scopes = frozenset({Scope.MASTER})
    viewer = Viewer(client.user.id, Role.DOMAIN_ADMIN, scopes, frozenset(permissions), domain_ids)
    return Context(client.world, viewer)
