"""Sample calls of mutations of the objects of the object stores."""

import hashlib

from tests.conftest import GraphQLClient
from tests.support.sample_mutations.mutation_call import MutationCall, register_call

PATH = "admin/reports/2030.txt"
PUT_INPUT = {
    "path": PATH,
    "content": {"text": "Ducks."},
    "sha256": hashlib.sha256(b"Ducks.").hexdigest(),
}
BLOB_PAYLOAD = "blob { path size sha256 }"


async def _put(root: GraphQLClient) -> None:
    payload = await MutationCall("blobPut", PUT_INPUT)(root)
    assert payload["errors"] == []


@register_call
async def blob_put(_ada: GraphQLClient, _root: GraphQLClient) -> MutationCall:
    return MutationCall("blobPut", PUT_INPUT, BLOB_PAYLOAD, journaled=False, by_root=True)


@register_call
async def blob_copy(_ada: GraphQLClient, root: GraphQLClient) -> MutationCall:
    await _put(root)
    input_fields = {"from": PATH, "to": "admin/reports/copy.txt"}
    return MutationCall("blobCopy", input_fields, BLOB_PAYLOAD, journaled=False, by_root=True)


@register_call
async def blob_delete(_ada: GraphQLClient, root: GraphQLClient) -> MutationCall:
    await _put(root)
    payload = "deletedCount task { kind }"
    input_fields = {"paths": ["admin/reports"], "recursive": True}
    return MutationCall("blobDelete", input_fields, payload, by_root=True)


@register_call
async def blob_collect(_ada: GraphQLClient, _root: GraphQLClient) -> MutationCall:
    return MutationCall("blobCollect", {}, "task { kind }", by_root=True)
