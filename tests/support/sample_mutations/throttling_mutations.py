"""Sample calls of mutations of the ban policy and of bans."""

from tests.conftest import GraphQLClient
from tests.support.sample_mutations.mutation_call import MutationCall, register_call

NETWORK = "203.0.113.0/24"


@register_call
async def ban_add(_ada: GraphQLClient, _root: GraphQLClient) -> MutationCall:
    return MutationCall(
        "banAdd",
        {"networks": [NETWORK], "duration": "PT2H", "reason": "password guessing"},
        "networkBans { network endsAt }",
        by_root=True,
    )


@register_call
async def ban_lift(ada: GraphQLClient, root: GraphQLClient) -> MutationCall:
    payload = await (await ban_add(ada, root))(root)
    assert payload["errors"] == []
    return MutationCall(
        "banLift",
        {"networks": ["203.0.113.7"], "reason": "wrong client"},
        "networkBans { network } banCount",
        by_root=True,
    )


@register_call
async def ban_policy_update(_ada: GraphQLClient, _root: GraphQLClient) -> MutationCall:
    return MutationCall(
        "banPolicyUpdate",
        {"set": {"maxAttempts": 7, "denylist": ["198.51.100.0/24"]}},
        "banPolicy { maxAttempts denylist }",
        by_root=True,
    )
