"""Sample calls of mutations of key-value stores."""

from tests.conftest import GraphQLClient
from tests.support.sample_mutations.mutation_call import Call, call


@call
async def key_value_delete(ada: GraphQLClient, root: GraphQLClient) -> Call:
    await (await key_value_set(ada, root))(ada)
    return Call("keyValueDelete", {"key": "ui", "recursive": True}, "deleted")


@call
async def key_value_increment(_ada: GraphQLClient, _root: GraphQLClient) -> Call:
    input_fields = {"key": "ui/visits", "difference": 1, "createMissing": True}
    return Call("keyValueIncrement", input_fields, "entry { key value }")


@call
async def key_value_set(_ada: GraphQLClient, _root: GraphQLClient) -> Call:
    return Call("keyValueSet", {"key": "ui/theme", "value": "dark"}, "entry { key value version }")


@call
async def profile_reset(ada: GraphQLClient, root: GraphQLClient) -> Call:
    await (await key_value_set(ada, root))(ada)
    return Call("profileReset", {}, "users { username }")
