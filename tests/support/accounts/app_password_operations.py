"""Creation of application passwords."""

from typing import Any

from tests.conftest import GraphQLClient
from tests.support.accounts.two_factor_operations import run_auth_mutation

SHOWN_FIELDS = (
    "appPassword { id description scopes active lastUse { at } createdAt updatedAt expiresAt }"
)


async def create_app_password(client: GraphQLClient, **arguments: Any) -> Any:
    payload = await run_auth_mutation(
        client,
        "appPasswordCreate",
        f"{SHOWN_FIELDS} password",
        **{"description": "Phone", **arguments},
    )
    assert payload["errors"] == [], payload
    return payload
