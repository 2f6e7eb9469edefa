"""Those who sign in, and those who wait to."""

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


async def ask(client: Client, name: str, payload: str = "", /, **given: Any) -> Any:
    """The payload of a mutation."""
    return (await client(document(name, payload), input=given))[name]


async def codes(client: Client, name: str, /, **given: Any) -> list[str]:
    """The codes of what a mutation refuses."""
    return [error["code"] for error in (await ask(client, name, **given))["errors"]]


async def row_of(world: Environment, user_id: int) -> Any:
    asked = select(core_table(User)).where(col(User.id) == user_id)
    (row,) = await world.database.read(asked)
    return row


async def all_of(world: Environment, table: type[SQLModel]) -> list[Any]:
    rows = core_table(table)
    return list(await world.database.read(select(rows).order_by(*rows.primary_key)))


async def token_of(client: Client, name: str = "one", *, pending: bool = False) -> Client:
    """The same user, signed in by a token."""
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
    """What an operation is handed that comes with a token whose second factor is outstanding."""
    await token_of(client, "waits", pending=True)
    asked = select(col(AccessToken.id)).where(col(AccessToken.pending))
    (row,) = await client.world.database.read(asked)
    viewer = Viewer(token_id=row.id, pending_user_id=client.user.id)
    return Context(client.world, viewer, client_ip="192.0.2.7")


async def viewer_of(client: Client) -> dict[str, Any] | None:
    """Who the server takes the client for; None where its credential has ended."""
    answer = await client.raw("{ viewer { role user { username } } }")
    return None if "errors" in answer else answer["data"]["viewer"]


async def admin_of(
    client: Client, *permissions: AdminPermission, domain: str = "example.org"
) -> Context:
    """What an operation of a DOMAIN_ADMIN of this domain is handed."""
    asked = select(col(Domain.id)).where(col(Domain.name) == domain)
    domains = frozenset(row.id for row in await client.world.database.read(asked))
    scopes = frozenset({Scope.MASTER})
    viewer = Viewer(client.user.id, Role.DOMAIN_ADMIN, scopes, frozenset(permissions), domains)
    return Context(client.world, viewer)
