"""Sample calls of mutations of certificates."""

from tests.conftest import GraphQLClient
from tests.support.operations.certificate_operations import Signer, put, stored
from tests.support.sample_mutations.mutation_call import Call, call


@call
async def certificate_set(_ada: GraphQLClient, _root: GraphQLClient) -> Call:
    certificate, key = Signer().issue()
    input_fields = {"serverName": "mx.example.org", "cert": certificate, "privateKey": key}
    return Call("certificateSet", input_fields, "certificate { serverName }", by_root=True)


@call
async def certificate_delete(_ada: GraphQLClient, root: GraphQLClient) -> Call:
    input_fields = {"ids": [(await stored(root))["id"]]}
    return Call("certificateDelete", input_fields, "deletedIds", by_root=True)


@call
async def certificate_renew(_ada: GraphQLClient, root: GraphQLClient) -> Call:
    certificate, key = Signer().issue()
    input_fields = {"serverName": "mx.example.org", "cert": certificate, "privateKey": key}
    payload = await put(root, **input_fields, acme=True)
    ids = {"ids": [payload["certificate"]["id"]]}
    return Call("certificateRenew", ids, "certificates { serverName }", by_root=True)
