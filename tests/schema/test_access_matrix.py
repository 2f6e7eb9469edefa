"""Access to every root field and guarded field by every kind of caller (access_matrix.toml)."""

from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

from graph.app import create_app
from models.runtime.environment import Environment
from tests.support.schema.access_matrix import (
    BOOTSTRAP_KEY,
    CALLERS,
    CALLERS_BY_CLASS,
    DEFAULT_REFUSALS,
    FIELD_RULES,
    OBJECT_OWNERS,
    build_operation,
    field_coordinates,
    make_credentials,
    request_verdict,
    subscription_verdict,
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
