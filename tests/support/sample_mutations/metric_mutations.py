"""Sample call of the mutation of usage counters."""

from tests.conftest import GraphQLClient
from tests.support.sample_mutations.mutation_call import MutationCall, register_call


@register_call
async def metrics_reset(_ada: GraphQLClient, _root: GraphQLClient) -> MutationCall:
    return MutationCall(
        "metricsReset", {"names": ["COMMANDS"]}, "resetAt", journaled=False, by_root=True
    )
