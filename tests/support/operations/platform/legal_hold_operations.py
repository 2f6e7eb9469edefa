"""Legal holds of a user."""

from typing import Any

from resolvers.admin import tasks
from tests.conftest import GraphQLClient
from tests.support.accounts.user_operations import execute_mutation, user_global_id

LEGAL_HOLD_EXPIRES = "2035-01-01T00:00:00Z"
LEGAL_HOLD_FIELDS = """id username startsAt endsAt expiresAt endedAt reason createdBy messageCount
  size state brokenPosition"""
LEGAL_HOLD_PAYLOAD = f"legalHold {{ {LEGAL_HOLD_FIELDS} }}"


async def start_legal_hold(
    administrator: GraphQLClient,
    user_client: GraphQLClient,
    *,
    runs_task: bool = True,
    **fields: Any,
) -> str:
    """Start a legal hold of a user and return its id; run its first task if `runs_task` is true."""
    payload = await execute_mutation(
        administrator,
        "legalHoldCreate",
        LEGAL_HOLD_PAYLOAD,
        user={"id": user_global_id(user_client)},
        **{"expiresAt": LEGAL_HOLD_EXPIRES, **fields},
    )
    assert payload["errors"] == []
    if runs_task:
        assert await tasks.run_next_task(administrator.environment)
    legal_hold_id: str = payload["legalHold"]["id"]
    return legal_hold_id
