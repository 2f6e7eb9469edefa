"""Calls about relay hosts, transports, TLS policies and forwarding hosts."""

from typing import Any

from tests.conftest import Client
from tests.support.sample_mutations.mutation_call import Call, call

RELAY = {"host": "relay.example:587", "username": "us", "password": "a password of ours"}
TRANSPORT = {"destination": ".far.example", "nextHop": "hop.example"}
POLICY = {"destination": "bank.example", "policy": "SECURE", "parameters": "match=.bank.example"}
FORWARDER = {"hostname": "192.0.2.7"}


async def _made(root: Client, kind: str, given: dict[str, Any]) -> str:
    done = await Call(f"{kind}Create", given, f"{kind} {{ id }}")(root)
    assert done["errors"] == []
    return str(done[kind]["id"])


@call
async def relay_host_create(_ada: Client, _root: Client) -> Call:
    return Call("relayHostCreate", RELAY, "relayHost { host port hasPassword }", by_root=True)


@call
async def relay_host_update(_ada: Client, root: Client) -> Call:
    given = {"ids": [await _made(root, "relayHost", RELAY)], "active": False}
    return Call("relayHostUpdate", given, "relayHosts { active }", by_root=True)


@call
async def relay_host_delete(_ada: Client, root: Client) -> Call:
    given = {"ids": [await _made(root, "relayHost", RELAY)]}
    return Call("relayHostDelete", given, "deletedIds", by_root=True)


@call
async def transport_create(_ada: Client, _root: Client) -> Call:
    return Call("transportCreate", TRANSPORT, "transport { destination nextHop }", by_root=True)


@call
async def transport_update(_ada: Client, root: Client) -> Call:
    given = {"ids": [await _made(root, "transport", TRANSPORT)], "nextHop": "[192.0.2.1]"}
    return Call("transportUpdate", given, "transports { nextHop }", by_root=True)


@call
async def transport_delete(_ada: Client, root: Client) -> Call:
    given = {"ids": [await _made(root, "transport", TRANSPORT)]}
    return Call("transportDelete", given, "deletedIds", by_root=True)


@call
async def tls_policy_create(_ada: Client, _root: Client) -> Call:
    payload = "tlsPolicy { destination policy parameters }"
    return Call("tlsPolicyCreate", POLICY, payload, by_root=True)


@call
async def tls_policy_update(_ada: Client, root: Client) -> Call:
    key = await _made(root, "tlsPolicy", POLICY)
    given = {"ids": [key], "policy": "ENCRYPT", "parameters": None}
    return Call("tlsPolicyUpdate", given, "tlsPolicies { policy }", by_root=True)


@call
async def tls_policy_delete(_ada: Client, root: Client) -> Call:
    given = {"ids": [await _made(root, "tlsPolicy", POLICY)]}
    return Call("tlsPolicyDelete", given, "deletedIds", by_root=True)


@call
async def route_test(_ada: Client, _root: Client) -> Call:
    given = {"recipient": "ada@example.org"}  # who is here: nobody is asked
    return Call("routeTest", given, "ok log", journaled=False, by_root=True)


@call
async def forwarding_host_create(_ada: Client, _root: Client) -> Call:
    return Call("forwardingHostCreate", FORWARDER, "hosts { host source }", by_root=True)


@call
async def forwarding_host_delete(_ada: Client, root: Client) -> Call:
    made = await Call("forwardingHostCreate", FORWARDER, "hosts { host }")(root)
    given = {"hosts": [made["hosts"][0]["host"]]}
    return Call("forwardingHostDelete", given, "deletedIds", by_root=True)
