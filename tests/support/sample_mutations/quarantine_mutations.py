"""Sample calls of mutations of quarantined messages."""

from tests.conftest import GraphQLClient
from tests.support.operations import quarantine_operations
from tests.support.sample_mutations.mutation_call import Call, call


@call
async def quarantine_release(ada: GraphQLClient, _root: GraphQLClient) -> Call:
    input_fields = {"ids": [await quarantine_operations.hold(ada, "Held news")]}
    return Call("quarantineRelease", input_fields, "messages { subject mailbox { path } }")


@call
async def quarantine_delete(ada: GraphQLClient, _root: GraphQLClient) -> Call:
    return Call(
        "quarantineDelete",
        {"ids": [await quarantine_operations.hold(ada, "Held news")]},
        "deletedIds",
    )


@call
async def quarantine_notification_set(_ada: GraphQLClient, _root: GraphQLClient) -> Call:
    return Call("quarantineNotificationSet", {"frequency": "HOURLY"}, "users { username }")
