"""Sample calls of mutations of push channels."""

from tests.conftest import GraphQLClient
from tests.support.sample_mutations.mutation_call import MutationCall, register_call


@register_call
async def push_channel_delete(ada: GraphQLClient, _root: GraphQLClient) -> MutationCall:
    return MutationCall(
        "pushChannelDelete",
        {"pushChannels": [{"id": await _create_push_channel(ada)}]},
        "deletedIds",
        nudges_clients=True,
    )


@register_call
async def push_channel_set(_ada: GraphQLClient, _root: GraphQLClient) -> MutationCall:
    input_fields = {"kind": "HTTP", "endpoint": "https://ntfy.example.net/ada"}
    return MutationCall(
        "pushChannelSet", input_fields, "pushChannels { kind active title }", nudges_clients=True
    )


@register_call
async def push_channel_test(ada: GraphQLClient, _root: GraphQLClient) -> MutationCall:
    input_fields = {"pushChannels": [{"id": await _create_push_channel(ada)}]}
    return MutationCall("pushChannelTest", input_fields, "pushChannels { id }", journaled=False)


async def _create_push_channel(ada: GraphQLClient) -> str:
    payload = await (await push_channel_set(ada, ada))(ada)
    assert payload["errors"] == []
    data = await ada("{ viewer { user { pushChannels { id } } } }")
    return str(data["viewer"]["user"]["pushChannels"][0]["id"])
