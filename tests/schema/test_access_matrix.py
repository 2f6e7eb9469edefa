"""Access to every root field and guarded field by every kind of caller (access_matrix.toml)."""

from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
from sqlalchemy import select
from sqlmodel import col

from graph.app import create_app
from models.runtime.environment import Environment
from models.store.columns import core_table
from models.users.tables import User
from resolvers.auth.token_scopes import TOKEN_SCOPES
from tests.support.accounts.access_tokens import make_access_token
from tests.support.schema.access_matrix import (
    BOOTSTRAP_KEY,
    CALLERS,
    CALLERS_BY_CLASS,
    DEFAULT_REFUSALS,
    FIELD_RULES,
    OBJECT_OWNERS,
    OPERATION_BY_ROOT_TYPE,
    SCOPES_BY_CALLER,
    build_operation,
    field_coordinates,
    make_credentials,
    request_verdict,
    subscription_verdict,
)

SCOPED_TOKEN_CALLERS = sorted(
    caller for caller, scope in SCOPES_BY_CALLER.items() if scope in TOKEN_SCOPES
)


@pytest.fixture
async def server(environment: Environment, tmp_path: Path) -> AsyncIterator[httpx.AsyncClient]:
    app = create_app(environment, spool_folder=tmp_path, bootstrap_key=BOOTSTRAP_KEY)
    async with httpx.AsyncClient(
        transport=httpx.ASGITransport(app=app), base_url="http://test"
    ) as client:
        yield client


def test_every_field_has_an_access_rule() -> None:
    coordinates = {f"{kind}.{name}" for kind, name in field_coordinates()}
    assert coordinates == set(FIELD_RULES)
    assert set(FIELD_RULES.values()) <= set(CALLERS_BY_CLASS)
    assert set(CALLERS) >= set().union(*CALLERS_BY_CLASS.values())


async def test_fields_are_accessible_as_in_access_matrix(
    environment: Environment, server: httpx.AsyncClient
) -> None:
    credentials = await make_credentials(environment, server)
    assert set(credentials) == set(CALLERS)
    failures = []
    for kind, name in field_coordinates():
        text, variables = build_operation(kind, name)
        allowed = CALLERS_BY_CLASS[FIELD_RULES[f"{kind}.{name}"]]
        for caller, secret in credentials.items():
            operation = text.replace("WHOSE", OBJECT_OWNERS.get(kind, {}).get(caller, "ada"))
            if kind == "Subscription":
                code = await subscription_verdict(environment, secret, operation, variables)
            else:
                code = await request_verdict(server, secret, operation, variables)
            expected = "ALLOWED" if caller in allowed else DEFAULT_REFUSALS.get(caller, "FORBIDDEN")
            if code != expected:
                failures.append((f"{kind}.{name}", caller, code))
    assert not failures


@pytest.mark.parametrize("caller", SCOPED_TOKEN_CALLERS)
async def test_token_has_the_access_of_a_key_with_the_same_scope(
    environment: Environment, server: httpx.AsyncClient, caller: str
) -> None:
    """Each mutation gets a new token, since a token can revoke itself."""
    await make_credentials(environment, server)
    (ada,) = await environment.database.read(
        select(core_table(User)).where(col(User.username) == "ada")
    )
    failures, scopes = [], [SCOPES_BY_CALLER[caller].value]
    reading_secret = await make_access_token(environment, ada, scopes=scopes)
    for kind, name in field_coordinates():
        if kind not in OPERATION_BY_ROOT_TYPE:
            continue
        operation, variables = build_operation(kind, name)
        secret = reading_secret
        if kind == "Mutation":
            secret = await make_access_token(environment, ada, scopes=scopes)
        if kind == "Subscription":
            code = await subscription_verdict(environment, secret, operation, variables)
        else:
            code = await request_verdict(server, secret, operation, variables)
        is_allowed = caller in CALLERS_BY_CLASS[FIELD_RULES[f"{kind}.{name}"]]
        if code != ("ALLOWED" if is_allowed else "FORBIDDEN"):
            failures.append((f"{kind}.{name}", code))
    assert not failures
