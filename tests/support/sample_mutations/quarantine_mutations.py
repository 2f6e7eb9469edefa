"""Sample calls of mutations of quarantined messages."""

from tests.conftest import GraphQLClient
from tests.support.operations import quarantine_operations
from tests.support.sample_mutations.mutation_call import MutationCall, register_call


@register_call
async def quarantine_release(ada: GraphQLClient, _root: GraphQLClient) -> MutationCall:
    input_fields = {
        "quarantineItems": [
            {"id": await quarantine_operations.quarantine_message(ada, "Held news")}
        ]
    }
    return MutationCall("quarantineRelease", input_fields, "messages { subject mailbox { path } }")


@register_call
async def quarantine_delete(ada: GraphQLClient, _root: GraphQLClient) -> MutationCall:
    return MutationCall(
        "quarantineDelete",
        {
            "quarantineItems": [
                {"id": await quarantine_operations.quarantine_message(ada, "Held news")}
            ]
        },
        "deletedIds",
    )
