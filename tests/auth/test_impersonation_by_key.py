"""API keys without a user and the bootstrap key act as users, and the logs name the key."""

from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import httpx
import pytest
from sqlalchemy import select, update
from sqlmodel import col

from graph.app import create_app
from models.admin.audit_log import AuditLogEntry
from models.auth.credentials import ApiKey
from models.auth.security_log import SecurityEvent
from models.runtime.environment import Environment
from models.users.roles import Role
from resolvers.auth.credential_cache import drop_cached_credentials
from tests.conftest import GraphQLClient, ManualClock, make_api_key, make_client
from tests.support.schema.access_matrix import BOOTSTRAP_KEY

IMPERSONATION = """mutation ($name: String!) { userImpersonate(input: {user: {username: $name}}) {
  token errors { code message path } } }"""
VIEWER_QUERY = "{ viewer { role impersonating { username } user { username } } }"


@pytest.fixture
async def server(environment: Environment, tmp_path: Path) -> AsyncIterator[httpx.AsyncClient]:
    app = create_app(environment, spool_folder=tmp_path, bootstrap_key=BOOTSTRAP_KEY)
    transport = httpx.ASGITransport(app=app)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        yield client
    await app.end_subscriptions()


async def load_logged_actors(environment: Environment) -> tuple[list[str], list[str | None]]:
    """Return the actors in the audit log, and in the security log of the user."""
    audit_log_query = select(col(AuditLogEntry.actor)).where(
        col(AuditLogEntry.mutation) == "userImpersonate"
    )
    security_log_query = select(col(SecurityEvent.by)).where(
        col(SecurityEvent.action) == "IMPERSONATION_STARTED"
    )
    read = environment.database.read
    return [row.actor for row in await read(audit_log_query)], [
        row.by for row in await read(security_log_query)
    ]


@pytest.mark.parametrize(
    ("name", "role"), [("panel", Role.ROOT), ("panel", Role.ADMIN), (None, Role.ROOT)]
)
async def test_key_acts_as_user_and_is_named_in_the_logs(
    server: httpx.AsyncClient, ada: GraphQLClient, name: str | None, role: Role, clock: ManualClock
) -> None:
    environment = ada.environment
    secret = await make_api_key(environment, name, role=role) if name else BOOTSTRAP_KEY
    key_client = replace(ada, http=server, secret=secret)
    payload = (await key_client(IMPERSONATION, name="ada"))["userImpersonate"]
    assert payload["errors"] == []
    acting_client = replace(key_client, secret=payload["token"])
    ada_fields = {"username": "ada"}
    assert (await acting_client(VIEWER_QUERY))["viewer"] == {
        "role": "USER",
        "impersonating": ada_fields,
        "user": ada_fields,
    }
    actor = f"key {name}" if name else "operator"
    assert await load_logged_actors(environment) == ([actor], [actor])
    (error,) = (await acting_client(IMPERSONATION, name="ada"))["userImpersonate"]["errors"]
    assert error["code"] == "FORBIDDEN"
    clock.tick(minutes=31)
    assert "errors" in await acting_client.execute(VIEWER_QUERY)


async def test_impersonation_token_ends_with_its_key(
    ada: GraphQLClient, admin_client: GraphQLClient
) -> None:
    environment = ada.environment
    key_client = replace(ada, secret=await make_api_key(environment, "panel", role=Role.ROOT))
    acting_client = replace(
        ada, secret=(await key_client(IMPERSONATION, name="ada"))["userImpersonate"]["token"]
    )
    assert (await acting_client(VIEWER_QUERY))["viewer"]["role"] == "USER"
    async with environment.write_session() as session:
        statement = update(ApiKey).where(col(ApiKey.name) == "panel").values(active=False)
        await (await session.connection()).execute(statement)
    drop_cached_credentials(environment, ada.user.id)
    assert "errors" in await acting_client.execute(VIEWER_QUERY)
    assert admin_client.user.id


async def test_key_does_not_impersonation_user_of_higher_role(
    ada: GraphQLClient, environment: Environment, http: httpx.AsyncClient
) -> None:
    await make_client(environment, http, "top", role=Role.ROOT)
    key_client = replace(ada, secret=await make_api_key(environment, "panel", role=Role.ADMIN))
    (error,) = (await key_client(IMPERSONATION, name="top"))["userImpersonate"]["errors"]
    assert (error["code"], error["path"]) == ("FORBIDDEN", ["user"])
