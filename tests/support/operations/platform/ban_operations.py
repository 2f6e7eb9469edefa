"""Ban policy and bans by GraphQL, and the state that a process has in memory."""

from dataclasses import replace
from typing import Any

from mail.throttling.ban_changes import refresh_refused_networks_from_database
from models.events.wakeups import Wakeups
from models.runtime.environment import Environment
from models.store.database import Database
from models.throttling.refused_networks import RefusedNetworks
from tests.conftest import GraphQLClient
from tests.support.operations.domain_operations import run_mutation

ERRORS = """errors { __typename code message path ... on ValidationError { constraint }
  ... on ForbiddenError { requires } }"""
BAN_FIELDS = "network cause reason failureCount banCount startedAt endsAt"
POLICY_FIELDS = """banTime banTimeIncrement maxAttempts retryWindow netmaskIpv4 netmaskIpv6
  allowlist denylist permanentBans hosts { name addresses problem }"""
BAN_ADD = f"""mutation ($input: BanAddInput!) {{ banAdd(input: $input) {{
  networkBans {{ id {BAN_FIELDS} }} {ERRORS} }} }}"""
BAN_LIFT = f"""mutation ($input: BanLiftInput!) {{ banLift(input: $input) {{
  networkBans {{ {BAN_FIELDS} }} banCount penaltyCount {ERRORS} }} }}"""
POLICY_UPDATE = f"""mutation ($input: BanPolicyUpdateInput!) {{ banPolicyUpdate(input: $input) {{
  banPolicy {{ {POLICY_FIELDS} }} {ERRORS} }} }}"""
BANS_QUERY = f"""query ($filter: NetworkBanFilter, $orderBy: NetworkBanOrder! = STARTED_AT_DESC,
  $first: Int, $after: String) {{ banPolicy {{ activeBans(filter: $filter, orderBy: $orderBy,
  first: $first, after: $after) {{ totalCount nodes {{ {BAN_FIELDS} }}
  pageInfo {{ endCursor hasNextPage }} }} }} }}"""
PENALTIES_QUERY = """query ($filter: LoginPenaltyFilter) { loginPenalties(filter: $filter) {
  totalCount nodes { network penalty failureCount lastPenaltyAt expiresAt } } }"""


async def update_policy(client: GraphQLClient, **values: Any) -> Any:
    """Change the policy, and return it. Applies it in the process of the client."""
    payload, errors = await run_mutation(client, POLICY_UPDATE, set=values)
    assert errors == [], errors
    await refresh_refused_networks_from_database(client.environment)
    return payload["banPolicy"]


async def add_bans(client: GraphQLClient, *networks: str, **fields: Any) -> Any:
    """Ban networks, and return the bans. Applies them in the process of the client."""
    payload, errors = await run_mutation(client, BAN_ADD, networks=networks, **fields)
    assert errors == [], errors
    await refresh_refused_networks_from_database(client.environment)
    return payload["networkBans"]


async def lift_bans(client: GraphQLClient, *networks: str, **fields: Any) -> Any:
    """Lift bans, and return the payload. Applies it in the process of the client."""
    payload, errors = await run_mutation(client, BAN_LIFT, networks=networks, **fields)
    assert errors == [], errors
    await refresh_refused_networks_from_database(client.environment)
    return payload


async def load_bans(client: GraphQLClient, **arguments: Any) -> Any:
    """Return the page of bans in force."""
    return (await client(BANS_QUERY, **arguments))["banPolicy"]["activeBans"]


def open_other_process(environment: Environment) -> Environment:
    """Return the environment of another process on the same database, with no bans in memory.

    The caller closes its database.
    """
    return replace(
        environment,
        database=Database(environment.database.url),
        wakeups=Wakeups(),
        refused_networks=RefusedNetworks(),
    )
