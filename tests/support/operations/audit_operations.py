"""Audits of a user."""

from typing import Any

from resolvers.admin import tasks
from tests.conftest import Client
from tests.support.accounts.user_operations import id_of, run

AUDIT_EXPIRES = "2035-01-01T00:00:00Z"
AUDIT_FIELDS = """id username start end expires endedAt reason createdBy messageCount size state
  brokenPosition"""
AUDIT_PAYLOAD = f"audit {{ {AUDIT_FIELDS} }}"


async def start_audit(over: Client, ada: Client, *, work: bool = True, **given: Any) -> str:
    """Start an audit of a user and return its id; run its first task unless `work` is false."""
    done = await run(
        over,
        "auditCreate",
        AUDIT_PAYLOAD,
        user={"id": id_of(ada)},
        **{"expires": AUDIT_EXPIRES, **given},
    )
    assert done["errors"] == []
    if work:
        assert await tasks.run_next_task(over.world)
    audit_id: str = done["audit"]["id"]
    return audit_id
