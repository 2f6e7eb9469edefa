"""Sample calls of mutations of relay hosts, transports, TLS policies and forwarding hosts."""

from typing import Any

from tests.conftest import GraphQLClient
from tests.support.sample_mutations.mutation_call import MutationCall, register_call

RELAY_HOST_INPUT = {"host": "relay.example:587", "username": "us", "password": "a password of ours"}
TRANSPORT_INPUT = {"destination": ".far.example", "nextHop": "hop.example"}
TLS_POLICY_INPUT = {
    "destination": "bank.example",
    "level": "SECURE",
    "parameters": "match=.bank.example",
}
FORWARDING_HOST_INPUT = {"hostname": "192.0.2.7"}


async def _create_object(root: GraphQLClient, field_name: str, input_fields: dict[str, Any]) -> str:
    payload = await MutationCall(f"{field_name}Create", input_fields, f"{field_name} {{ id }}")(
        root
    )
    assert payload["errors"] == []
    return str(payload[field_name]["id"])


@register_call
async def relay_host_create(_ada: GraphQLClient, _root: GraphQLClient) -> MutationCall:
    return MutationCall(
        "relayHostCreate", RELAY_HOST_INPUT, "relayHost { host port hasPassword }", by_root=True
    )


@register_call
async def relay_host_update(_ada: GraphQLClient, root: GraphQLClient) -> MutationCall:
    input_fields = {
        "relayHosts": [{"id": await _create_object(root, "relayHost", RELAY_HOST_INPUT)}],
        "set": {"active": False},
    }
    return MutationCall("relayHostUpdate", input_fields, "relayHosts { active }", by_root=True)


@register_call
async def relay_host_delete(_ada: GraphQLClient, root: GraphQLClient) -> MutationCall:
    input_fields = {
        "relayHosts": [{"id": await _create_object(root, "relayHost", RELAY_HOST_INPUT)}]
    }
    return MutationCall("relayHostDelete", input_fields, "deletedIds", by_root=True)


@register_call
async def transport_create(_ada: GraphQLClient, _root: GraphQLClient) -> MutationCall:
    return MutationCall(
        "transportCreate", TRANSPORT_INPUT, "transport { destination nextHop }", by_root=True
    )


@register_call
async def transport_update(_ada: GraphQLClient, root: GraphQLClient) -> MutationCall:
    input_fields = {
        "transports": [{"id": await _create_object(root, "transport", TRANSPORT_INPUT)}],
        "set": {"nextHop": "[192.0.2.1]"},
    }
    return MutationCall("transportUpdate", input_fields, "transports { nextHop }", by_root=True)


@register_call
async def transport_delete(_ada: GraphQLClient, root: GraphQLClient) -> MutationCall:
    input_fields = {
        "transports": [{"id": await _create_object(root, "transport", TRANSPORT_INPUT)}]
    }
    return MutationCall("transportDelete", input_fields, "deletedIds", by_root=True)


@register_call
async def tls_policy_create(_ada: GraphQLClient, _root: GraphQLClient) -> MutationCall:
    payload = "tlsPolicy { destination level parameters }"
    return MutationCall("tlsPolicyCreate", TLS_POLICY_INPUT, payload, by_root=True)


@register_call
async def tls_policy_update(_ada: GraphQLClient, root: GraphQLClient) -> MutationCall:
    policy_id = await _create_object(root, "tlsPolicy", TLS_POLICY_INPUT)
    input_fields = {
        "tlsPolicies": [{"id": policy_id}],
        "set": {"level": "ENCRYPT", "parameters": None},
    }
    return MutationCall("tlsPolicyUpdate", input_fields, "tlsPolicies { level }", by_root=True)


@register_call
async def tls_policy_delete(_ada: GraphQLClient, root: GraphQLClient) -> MutationCall:
    input_fields = {
        "tlsPolicies": [{"id": await _create_object(root, "tlsPolicy", TLS_POLICY_INPUT)}]
    }
    return MutationCall("tlsPolicyDelete", input_fields, "deletedIds", by_root=True)


@register_call
async def route_test(_ada: GraphQLClient, _root: GraphQLClient) -> MutationCall:
    input_fields = {"recipient": "ada@example.org"}  # a local recipient needs no DNS
    return MutationCall("routeTest", input_fields, "ok log", journaled=False, by_root=True)


@register_call
async def forwarding_host_create(_ada: GraphQLClient, _root: GraphQLClient) -> MutationCall:
    payload = "forwardingHosts { host source }"
    return MutationCall("forwardingHostCreate", FORWARDING_HOST_INPUT, payload, by_root=True)


@register_call
async def forwarding_host_delete(_ada: GraphQLClient, root: GraphQLClient) -> MutationCall:
    payload = await MutationCall(
        "forwardingHostCreate", FORWARDING_HOST_INPUT, "forwardingHosts { host }"
    )(root)
    input_fields = {"forwardingHosts": [{"host": payload["forwardingHosts"][0]["host"]}]}
    return MutationCall("forwardingHostDelete", input_fields, "deletedIds", by_root=True)
