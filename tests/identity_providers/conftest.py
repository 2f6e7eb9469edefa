"""Fixtures of the tests of identity providers."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from models.runtime.environment import Environment
from tests.conftest import GraphQLClient
from tests.support.identity_providers.scripted_provider import (
    ScriptedProvider,
    run_scripted_provider,
)
from tests.support.oauth.oauth_flow import (
    OauthBrowser,
    TestClient,
    add_client,
    open_oauth_browser,
    set_password,
)


@pytest.fixture
async def browser(
    environment: Environment, ada: GraphQLClient, tmp_path: Path
) -> AsyncIterator[OauthBrowser]:
    """A browser at the public URL of the server, which can reach providers on loopback."""
    await set_password(environment, ada.user.id)
    async with open_oauth_browser(
        environment, tmp_path, identity_providers_allow_private_networks=True
    ) as opened:
        yield opened


@pytest.fixture
async def webmail(browser: OauthBrowser, environment: Environment) -> TestClient:
    """A confidential client with all scopes."""
    del browser
    return await add_client(environment)


@pytest.fixture
async def provider(environment: Environment) -> AsyncIterator[ScriptedProvider]:
    """A scripted provider, with the clock of the server, that signs in Ada."""
    async with run_scripted_provider(now=lambda: environment.now().timestamp()) as scripted:
        yield scripted
