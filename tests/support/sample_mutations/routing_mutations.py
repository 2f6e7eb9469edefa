"""Sample calls of mutations of relay hosts, transports, TLS policies and forwarding hosts."""

from typing import Any

from tests.conftest import GraphQLClient
from tests.support.sample_mutations.mutation_call import Call, call

RELAY_HOST_INPUT = {"host": "relay.example:587", "username": "us", "password": "a password of ours"}
TRANSPORT_INPUT = {"destination": ".far.example", "nextHop": "hop.example"}
TLS_POLICY_INPUT = {
    "destination": "bank.example",
    "policy": "SECURE",
    "parameters": "match=.bank.example",
}
FORWARDING_HOST_INPUT = {"hostname": "192.0.2.7"}


async def _create_object(root: GraphQLClient, field_name: str, input_fields: dict[str, Any]) -> str:
    payload = await Call(f"{field_name}Create", input_fields, f"{field_name} {{ id }}")(root)
    assert payload["errors"] == []
    return str(payload[field_name]["id"])


@call
async def relay_host_create(_ada: GraphQLClient, _root: GraphQLClient) -> Call:
    return Call(
        "relayHostCreate", RELAY_HOST_INPUT, "relayHost { host port hasPassword }", by_root=True
    )


@call
async def relay_host_update(_ada: GraphQLClient, root: GraphQLClient) -> Call:
    input_fields = {
        "ids": [await _create_object(root, "relayHost", RELAY_HOST_INPUT)],
        "active": False,
    }
    return Call("relayHostUpdate", input_fields, "relayHosts { active }", by_root=True)


@call
async def relay_host_delete(_ada: GraphQLClient, root: GraphQLClient) -> Call:
    input_fields = {"ids": [await _create_object(root, "relayHost", RELAY_HOST_INPUT)]}
    return Call("relayHostDelete", input_fields, "deletedIds", by_root=True)


@call
async def transport_create(_ada: GraphQLClient, _root: GraphQLClient) -> Call:
    return Call(
        "transportCreate", TRANSPORT_INPUT, "transport { destination nextHop }", by_root=True
    )


@call
async def transport_update(_ada: GraphQLClient, root: GraphQLClient) -> Call:
    input_fields = {
        "ids": [await _create_object(root, "transport", TRANSPORT_INPUT)],
        "nextHop": "[192.0.2.1]",
    }
    return Call("transportUpdate", input_fields, "transports { nextHop }", by_root=True)


@call
async def transport_delete(_ada: GraphQLClient, root: GraphQLClient) -> Call:
    input_fields = {"ids": [await _create_object(root, "transport", TRANSPORT_INPUT)]}
    return Call("transportDelete", input_fields, "deletedIds", by_root=True)


@call
async def tls_policy_create(_ada: GraphQLClient, _root: GraphQLClient) -> Call:
    payload = "tlsPolicy { destination policy parameters }"
    return Call("tlsPolicyCreate", TLS_POLICY_INPUT, payload, by_root=True)


@call
async def tls_policy_update(_ada: GraphQLClient, root: GraphQLClient) -> Call:
    policy_id = await _create_object(root, "tlsPolicy", TLS_POLICY_INPUT)
    input_fields = {"ids": [policy_id], "policy": "ENCRYPT", "parameters": None}
    return Call("tlsPolicyUpdate", input_fields, "tlsPolicies { policy }", by_root=True)


@call
async def tls_policy_delete(_ada: GraphQLClient, root: GraphQLClient) -> Call:
    input_fields = {"ids": [await _create_object(root, "tlsPolicy", TLS_POLICY_INPUT)]}
    return Call("tlsPolicyDelete", input_fields, "deletedIds", by_root=True)


@call
async def route_test(_ada: GraphQLClient, _root: GraphQLClient) -> Call:
    input_fields = {"recipient": "ada@example.org"}  # a local recipient needs no DNS
    return Call("routeTest", input_fields, "ok log", journaled=False, by_root=True)


@call
async def forwarding_host_create(_ada: GraphQLClient, _root: GraphQLClient) -> Call:
    return Call(
        "forwardingHostCreate", FORWARDING_HOST_INPUT, "hosts { host source }", by_root=True
    )


@call
async def forwarding_host_delete(_ada: GraphQLClient, root: GraphQLClient) -> Call:
    payload = await Call("forwardingHostCreate", FORWARDING_HOST_INPUT, "hosts { host }")(root)
    input_fields = {"hosts": [payload["hosts"][0]["host"]]}
    return Call("forwardingHostDelete", input_fields, "deletedIds", by_root=True)
