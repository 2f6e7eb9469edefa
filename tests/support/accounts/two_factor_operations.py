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
from resolvers.context import Context
from resolvers.viewer import Viewer
from tests.conftest import GraphQLClient
from tests.support.accounts.authenticators import mutation_document

VIEWER_FIELDS = "user { username twoFactorMethods }"
FAILED_CODES = ["AUTHENTICATION_FAILED"]


async def run_auth_mutation(
    client: GraphQLClient, name: str, fields: str = "", /, **input_values: Any
) -> Any:
    """Run a mutation and return its payload."""
    return (await client(mutation_document(name, fields), input=input_values))[name]


async def mutation_error_codes(
    client: GraphQLClient, name: str, /, **input_values: Any
) -> list[str]:
    """Run a mutation and return its error codes."""
    return [
        error["code"] for error in (await run_auth_mutation(client, name, **input_values))["errors"]
    ]


async def load_user_row(environment: Environment, user_id: int) -> Any:
    query = select(core_table(User)).where(col(User.id) == user_id)
    (row,) = await environment.database.read(query)
    return row


async def load_all_rows(environment: Environment, model: type[SQLModel]) -> list[Any]:
    table = core_table(model)
    return list(await environment.database.read(select(table).order_by(*table.primary_key)))


async def make_token_client(
    client: GraphQLClient, name: str = "one", *, pending: bool = False
) -> GraphQLClient:
    """Add an access token of the client's user, and return a client with that token."""
    environment, now = client.environment, client.environment.now()
    secret = f"mgt_{name}".ljust(47, "t")
    row = await load_user_row(environment, client.user.id)
    async with environment.write_session() as session:
        session.add(
            AccessToken(
                id=environment.new_id(),
                user_id=client.user.id,
                digest=hashlib.sha256(secret.encode()).hexdigest(),
                auth_version=row.auth_version,
                pending=pending,
                created_at=now,
                last_used_at=now,
                expires_at=now + timedelta(days=1),
            )
        )
    return GraphQLClient(client.http, environment, client.user, secret)


async def make_pending_context(client: GraphQLClient) -> Context:
    """The context of a request with a token that still needs a second factor."""
    await make_token_client(client, "waits", pending=True)
    query = select(col(AccessToken.id)).where(col(AccessToken.pending))
    (row,) = await client.environment.database.read(query)
    viewer = Viewer(token_id=row.id, pending_user_id=client.user.id)
    return Context(client.environment, viewer, client_ip="192.0.2.7")


async def load_viewer(client: GraphQLClient) -> dict[str, Any] | None:
    """Load the viewer of a request by the client. Returns None if the credential is invalid."""
    response = await client.execute("{ viewer { role user { username } } }")
    return None if "errors" in response else response["data"]["viewer"]


async def load_domain_admin_context(
    client: GraphQLClient, *permissions: AdminPermission, domain: str = "example.org"
) -> Context:
    """The context of a request by the client's user as DOMAIN_ADMIN of this domain."""
    domain_query = select(col(Domain.id)).where(col(Domain.name) == domain)
    domain_ids = frozenset(row.id for row in await client.environment.database.read(domain_query))
    scopes = frozenset({Scope.FULL})
    viewer = Viewer(client.user.id, Role.DOMAIN_ADMIN, scopes, frozenset(permissions), domain_ids)
    return Context(client.environment, viewer)
