"""Mutations and lists of rate limits and their holds."""

from typing import Any

from resolvers.auth.authentication import wait_for_background_tasks
from tests.conftest import GraphQLClient
from tests.support.accounts.quota_accounts import try_send_message
from tests.support.accounts.user_operations import execute_mutation, user_global_id

FIELDS = "messages per used exhausted resetsAt user { username } domain { name }"
LIMITS = f"""
query ($filter: RateLimitFilter, $orderBy: RateLimitOrder! = CREATED_ASC, $first: Int,
    $after: String, $last: Int, $before: String) {{
  rateLimits(filter: $filter, orderBy: $orderBy, first: $first, after: $after, last: $last,
      before: $before) {{
    nodes {{ {FIELDS} }} totalCount
    pageInfo {{ hasNextPage hasPreviousPage startCursor endCursor }} }} }}
"""
HOLDS = """
query ($filter: RateLimitHoldFilter, $orderBy: RateLimitHoldOrder! = HELD_AT_DESC, $first: Int,
    $after: String) {
  rateLimitHolds(filter: $filter, orderBy: $orderBy, first: $first, after: $after) {
    nodes { user { username } source domain { name } messages per heldAt resetsAt }
    totalCount pageInfo { hasNextPage endCursor } } }
"""


UNLIMITED = -1


async def set_rate_limit(
    client: GraphQLClient, value: int | None, frame: str = "HOUR", **owners: Any
) -> Any:
    """Set the limit of users and domains; UNLIMITED is null in the input, None inherits it."""
    messages = None if value == UNLIMITED else value
    new_limit: dict[str, Any] = {"rateLimit": {"messages": messages, "per": frame}}
    if value is None:
        new_limit = {"inheritRateLimit": True}
    answer = await execute_mutation(
        client, "rateLimitSet", f"rateLimits {{ {FIELDS} }}", **new_limit, **owners
    )
    return answer["rateLimits"], answer["errors"]


async def reset_rate(client: GraphQLClient, **owners: Any) -> Any:
    answer = await execute_mutation(
        client, "rateLimitReset", f"rateLimits {{ {FIELDS} }}", **owners
    )
    return answer["rateLimits"], answer["errors"]


def users_input(*clients_or_ids: GraphQLClient | int) -> dict[str, Any]:
    return {"users": {"ids": [user_global_id(client_or_id) for client_or_id in clients_or_ids]}}


def domains_input(*names: str) -> dict[str, Any]:
    return {"domains": [{"name": name} for name in names]}


async def list_limits(client: GraphQLClient, **filter: Any) -> list[tuple[str, int, str]]:
    """Return owner, value and frame of each limit."""
    page = (await client(LIMITS, filter=filter or None))["rateLimits"]
    limits = [
        ((node["user"] or {}).get("username") or node["domain"]["name"], node["messages"],
         node["per"])
        for node in page["nodes"]
    ]  # fmt: skip
    assert page["totalCount"] == len(limits)
    return limits


async def list_holds(client: GraphQLClient, **variables: Any) -> list[tuple[Any, ...]]:
    page = (await client(HOLDS, **variables))["rateLimitHolds"]
    holds = [
        (node["user"]["username"], node["source"], node["domain"] and node["domain"]["name"])
        for node in page["nodes"]
    ]
    assert page["totalCount"] == len(holds)
    return holds


async def send_until_refused(client: GraphQLClient) -> None:
    while await try_send_message(client, "a@example.net") == []:
        pass
    await wait_for_background_tasks(client.environment)
