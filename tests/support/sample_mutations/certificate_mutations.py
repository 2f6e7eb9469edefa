"""Sample calls of mutations of certificates."""

from tests.conftest import GraphQLClient
from tests.support.operations.platform.certificate_operations import (
    CertificateSigner,
    set_certificate,
    store_certificate,
)
from tests.support.sample_mutations.mutation_call import MutationCall, register_call


@register_call
async def certificate_set(_ada: GraphQLClient, _root: GraphQLClient) -> MutationCall:
    certificate, key = CertificateSigner().issue_certificate()
    input_fields = {"serverName": "mx.example.org", "cert": certificate, "privateKey": key}
    return MutationCall("certificateSet", input_fields, "certificate { serverName }", by_root=True)


@register_call
async def certificate_delete(_ada: GraphQLClient, root: GraphQLClient) -> MutationCall:
    input_fields = {"certificates": [{"id": (await store_certificate(root))["id"]}]}
    return MutationCall("certificateDelete", input_fields, "deletedIds", by_root=True)


@register_call
async def certificate_renew(_ada: GraphQLClient, root: GraphQLClient) -> MutationCall:
    certificate, key = CertificateSigner().issue_certificate()
    input_fields = {"serverName": "mx.example.org", "cert": certificate, "privateKey": key}
    payload = await set_certificate(root, **input_fields, acme=True)
    ids = {"certificates": [{"id": payload["certificate"]["id"]}]}
    return MutationCall("certificateRenew", ids, "certificates { serverName }", by_root=True)
