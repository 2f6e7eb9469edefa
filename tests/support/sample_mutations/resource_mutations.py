"""Sample calls of mutations of resources."""

from tests.conftest import GraphQLClient
from tests.support.sample_mutations.mutation_call import MutationCall, register_call

RESOURCE_INPUT = {
    "name": "Meeting Room 1",
    "domain": {"name": "example.org"},
    "kind": "LOCATION",
    "bookingPolicy": "LIMITED",
    "bookingLimit": 1,
}


@register_call
async def resource_create(_ada: GraphQLClient, _root: GraphQLClient) -> MutationCall:
    payload = "resource { name address kind bookingPolicy bookingLimit }"
    return MutationCall("resourceCreate", RESOURCE_INPUT, payload, by_root=True)


@register_call
async def resource_update(_ada: GraphQLClient, root: GraphQLClient) -> MutationCall:
    input_fields = {
        "resources": [{"address": await _create_resource(root)}],
        "set": {"bookingPolicy": "UNLIMITED_SHOW_BUSY"},
    }
    payload = "resources { bookingPolicy bookingLimit }"
    return MutationCall("resourceUpdate", input_fields, payload, by_root=True)


@register_call
async def resource_delete(_ada: GraphQLClient, root: GraphQLClient) -> MutationCall:
    input_fields = {"resources": [{"address": await _create_resource(root)}]}
    return MutationCall("resourceDelete", input_fields, "deletedIds", by_root=True)


async def _create_resource(root: GraphQLClient) -> str:
    payload = await MutationCall("resourceCreate", RESOURCE_INPUT, "resource { address }")(root)
    return str(payload["resource"]["address"])
