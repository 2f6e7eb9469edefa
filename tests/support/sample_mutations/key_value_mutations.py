"""Sample calls of mutations of key-value stores."""

from tests.conftest import GraphQLClient
from tests.support.sample_mutations.mutation_call import MutationCall, register_call


@register_call
async def key_value_delete(ada: GraphQLClient, root: GraphQLClient) -> MutationCall:
    await (await key_value_set(ada, root))(ada)
    return MutationCall("keyValueDelete", {"key": "ui", "recursive": True}, "deletedCount")


@register_call
async def key_value_increment(_ada: GraphQLClient, _root: GraphQLClient) -> MutationCall:
    input_fields = {"key": "ui/visits", "delta": 1, "createMissing": True}
    return MutationCall("keyValueIncrement", input_fields, "keyValueEntry { key value }")


@register_call
async def key_value_set(_ada: GraphQLClient, _root: GraphQLClient) -> MutationCall:
    return MutationCall(
        "keyValueSet", {"key": "ui/theme", "value": "dark"}, "keyValueEntry { key value version }"
    )


@register_call
async def user_preferences_reset(ada: GraphQLClient, root: GraphQLClient) -> MutationCall:
    await (await key_value_set(ada, root))(ada)
    return MutationCall("userPreferencesReset", {}, "users { username }")
