"""Fixtures of SCIM: clients with API keys for domains."""

import httpx
import pytest

from models.runtime.environment import Environment
from tests.support.scim.scim_client import ScimTestClient, make_scim_client, make_scim_domain


@pytest.fixture
async def scim(http: httpx.AsyncClient, environment: Environment) -> ScimTestClient:
    """A SCIM client of the domain example.org."""
    return await make_scim_client(http, environment, await make_scim_domain(environment))


@pytest.fixture
async def other_scim(http: httpx.AsyncClient, environment: Environment) -> ScimTestClient:
    """A SCIM client of the domain other.example."""
    domain_id = await make_scim_domain(environment, "other.example")
    return await make_scim_client(http, environment, domain_id)
