"""Sieve scripts by GraphQL."""

from typing import Any

from models.runtime.environment import Environment
from tests.conftest import GraphQLClient
from tests.support.accounts.user_operations import execute_mutation
from tests.support.stores.counter_check import select_rows

SIEVE_SCRIPTS_FIELDS = "sieveScripts { id name content active size requires lastError }"
SIEVE_PUT_PAYLOAD = f"{SIEVE_SCRIPTS_FIELDS} warnings {{ code message }}"


async def put_sieve_script(
    client: GraphQLClient, content: str, *, name: str = "main", activate: bool = True
) -> Any:
    """Store a Sieve script and return the payload."""
    payload = await execute_mutation(
        client, "sieveScriptSet", SIEVE_PUT_PAYLOAD, name=name, content=content, activate=activate
    )
    assert payload["errors"] == []
    return payload


async def active_script_error(environment: Environment) -> Any:
    """The last error of the active script."""
    error_rows = await select_rows(environment, "SELECT last_error FROM sieve_scripts WHERE active")
    return error_rows[0][0]
