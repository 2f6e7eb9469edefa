"""Keys of the platform, which belong to no user, must name one in the input."""

from typing import Any

import httpx
import pytest

from models.runtime.environment import Environment
from models.users.roles import Role
from tests.conftest import make_api_key
from tests.support.accounts.authenticators import mutation_document
from tests.support.clients.http_requests import post_document


@pytest.mark.parametrize(
    ("name", "values", "path"),
    [
        ("appPasswordCreate", {"description": "Phone", "scopes": ["SMTP"]}, ["user"]),
        ("totpSetup", {}, ["user"]),
        ("autoreplySet", {"set": {"enabled": False}}, ["users"]),
        ("labelCreate", {"keyword": "work", "name": "Work"}, []),
    ],
)
async def test_missing_user_is_named_by_the_error(
    http: httpx.AsyncClient,
    environment: Environment,
    name: str,
    values: dict[str, Any],
    path: list[str],
) -> None:
    secret = await make_api_key(environment, "admin", role=Role.ADMIN)
    response = await post_document(http, mutation_document(name), secret, input=values)
    (error,) = response["data"][name]["errors"]
    assert (error["code"], error["path"]) == ("FORBIDDEN", path)
    assert "belongs to no account" in error["message"]
