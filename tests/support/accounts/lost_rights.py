"""Ways in which an administrator loses the right to what it gave for others."""

from typing import Any

from models.runtime.environment import Environment
from tests.conftest import GraphQLClient
from tests.support.accounts.user_operations import execute_mutation
from tests.support.stores.counter_check import select_rows

GRANT_PREFIXES = ("ACCESS_", "BCC_RULE_", "IDENTITY_", "MAILBOX_SHARE_", "WEBHOOK_")  # of actions
PERMISSION_LOSS = "permission"
# mutation and input by the kind of the loss; of a DOMAIN_ADMIN
LOSSES: dict[str, tuple[str, dict[str, Any]]] = {
    "role": ("userRoleSet", {"role": "USER"}),
    "domain": ("userRoleSet", {"administers": []}),
    PERMISSION_LOSS: ("userRoleSet", {"adminPermissions": []}),
    "suspended": ("userUpdate", {"set": {"suspended": True}}),
    "disabled": ("userUpdate", {"set": {"active": False}}),
    "deleted": ("userDelete", {}),
}


async def lose_rights(root: GraphQLClient, administrator: GraphQLClient, loss: str) -> None:
    """Let an administrator lose its rights in one of the ways of `LOSSES`."""
    mutation, arguments = LOSSES[loss]
    users = {"usernames": [administrator.user.username]}
    payload = await execute_mutation(root, mutation, "", users=users, **arguments)
    assert payload["errors"] == []


async def load_security_actions(environment: Environment, user: GraphQLClient) -> list[str]:
    """Load the actions of the security log of a user that give access, in their order."""
    query = "SELECT action FROM security_events WHERE user_id = :id ORDER BY id"
    rows = await select_rows(environment, query, id=user.user.id)
    return [action for (action,) in rows if action.startswith(GRANT_PREFIXES)]


async def count_notices(environment: Environment, user: GraphQLClient) -> int:
    """Count the queued messages that tell a user of changes by others."""
    query = "SELECT count(*) FROM tasks WHERE kind = 'SECURITY_NOTIFICATION' AND user_id = :id"
    ((count,),) = await select_rows(environment, query, id=user.user.id)
    return int(count)


async def load_audit_log_mutations(environment: Environment) -> list[str]:
    """Load the mutations of the audit log in their order."""
    rows = await select_rows(environment, "SELECT mutation FROM audit_log ORDER BY id")
    return [mutation for (mutation,) in rows]
