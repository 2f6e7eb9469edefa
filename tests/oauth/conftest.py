"""Fixtures of the OAuth tests: a browser, and a user with a password."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from models.runtime.environment import Environment
from tests.conftest import GraphQLClient
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
    """A browser at the public URL of the server, where Ada has a password."""
    await set_password(environment, ada.user.id)
    async with open_oauth_browser(environment, tmp_path) as opened:
        yield opened


@pytest.fixture
async def webmail(browser: OauthBrowser, environment: Environment) -> TestClient:
    """A confidential client with all scopes."""
    del browser
    return await add_client(environment)
