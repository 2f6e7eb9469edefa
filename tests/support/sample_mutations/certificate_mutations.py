"""Calls about certificates."""

from tests.conftest import Client
from tests.support.operations.certificate_operations import Signer, put, stored
from tests.support.sample_mutations.mutation_call import Call, call


@call
async def certificate_set(_ada: Client, _root: Client) -> Call:
    cert, key = Signer().issue()
    given = {"serverName": "mx.example.org", "cert": cert, "privateKey": key}
    return Call("certificateSet", given, "certificate { serverName }", by_root=True)


@call
async def certificate_delete(_ada: Client, root: Client) -> Call:
    given = {"ids": [(await stored(root))["id"]]}
    return Call("certificateDelete", given, "deletedIds", by_root=True)


@call
async def certificate_renew(_ada: Client, root: Client) -> Call:
    cert, key = Signer().issue()
    given = {"serverName": "mx.example.org", "cert": cert, "privateKey": key}
    made = await put(root, **given, acme=True)
    ids = {"ids": [made["certificate"]["id"]]}
    return Call("certificateRenew", ids, "certificates { serverName }", by_root=True)
