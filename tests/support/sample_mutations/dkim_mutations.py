"""Sample calls of mutations of DKIM keys. Ed25519 keys are used, since they take no time."""

import base64
from typing import Any

from tests.conftest import GraphQLClient
from tests.support.sample_mutations.mutation_call import MutationCall, register_call

PRIVATE_KEY = base64.b64encode(bytes(range(32))).decode()
KEY_INPUT: dict[str, Any] = {"domains": [{"name": "example.org"}], "privateKey": PRIVATE_KEY}


async def _create_dkim_key(root: GraphQLClient, **fields: Any) -> str:
    payload = await MutationCall("dkimKeySet", KEY_INPUT | fields, "dkimKeys { id }")(root)
    return str(payload["dkimKeys"][0]["id"])


@register_call
async def dkim_key_set(_ada: GraphQLClient, root: GraphQLClient) -> MutationCall:
    await _create_dkim_key(root, selector="old")  # this key is retired
    return MutationCall("dkimKeySet", KEY_INPUT, "dkimKeys { domain selector }", by_root=True)


@register_call
async def dkim_key_rotate(_ada: GraphQLClient, root: GraphQLClient) -> MutationCall:
    await _create_dkim_key(root)
    input_fields = {"domains": [{"name": "example.org"}], "selector": "new"}
    return MutationCall("dkimKeyRotate", input_fields, "dkimKeys { domain selector }", by_root=True)


@register_call
async def dkim_key_activate(ada: GraphQLClient, root: GraphQLClient) -> MutationCall:
    rotate = await dkim_key_rotate(ada, root)
    payload = await MutationCall(rotate.name, rotate.input, "dkimKeys { id }")(root)
    return MutationCall(
        "dkimKeyActivate",
        {"dkimKeys": [{"id": payload["dkimKeys"][0]["id"]}]},
        "dkimKeys { state }",
        by_root=True,
    )


@register_call
async def dkim_key_copy(_ada: GraphQLClient, root: GraphQLClient) -> MutationCall:
    await _create_dkim_key(root)
    await MutationCall("domainCreate", {"name": "copied.example", "createDkim": False})(root)
    input_fields = {
        "fromDomain": {"name": "example.org"},
        "toDomains": [{"name": "copied.example"}],
    }
    return MutationCall("dkimKeyCopy", input_fields, "dkimKeys { domain selector }", by_root=True)


@register_call
async def dkim_key_delete(_ada: GraphQLClient, root: GraphQLClient) -> MutationCall:
    return MutationCall(
        "dkimKeyDelete",
        {"dkimKeys": [{"id": await _create_dkim_key(root)}]},
        "deletedIds",
        by_root=True,
    )
