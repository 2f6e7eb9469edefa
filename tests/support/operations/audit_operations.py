"""Audits of a user."""

from typing import Any

from resolvers.admin import tasks
from tests.conftest import GraphQLClient
from tests.support.accounts.user_operations import execute_mutation, user_global_id

AUDIT_EXPIRES = "2035-01-01T00:00:00Z"
AUDIT_FIELDS = """id username start end expires endedAt reason createdBy messageCount size state
  brokenPosition"""
AUDIT_PAYLOAD = f"audit {{ {AUDIT_FIELDS} }}"


async def start_audit(
    administrator: GraphQLClient,
    user_client: GraphQLClient,
    *,
    runs_task: bool = True,
    **fields: Any,
) -> str:
    """Start an audit of a user and return its id; run its first task if `runs_task` is true."""
    payload = await execute_mutation(
        administrator,
        "auditCreate",
        AUDIT_PAYLOAD,
        user={"id": user_global_id(user_client)},
        **{"expires": AUDIT_EXPIRES, **fields},
    )
    assert payload["errors"] == []
    if runs_task:
        assert await tasks.run_next_task(administrator.environment)
    audit_id: str = payload["audit"]["id"]
    return audit_id
