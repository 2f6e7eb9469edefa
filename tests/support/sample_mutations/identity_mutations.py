"""Sample calls of mutations of identities."""

from tests.conftest import GraphQLClient
from tests.support.sample_mutations.mutation_call import Call, call

IDENTITIES_SELECTION = "identities { name address default bcc signatureHtml }"


@call
async def identity_create(ada: GraphQLClient, _root: GraphQLClient) -> Call:
    input_fields = {
        "address": ada.address,
        "name": "Ada",
        "default": True,
        "bcc": ["log@example.net"],
    }
    return Call("identityCreate", input_fields, IDENTITIES_SELECTION)


@call
async def identity_delete(ada: GraphQLClient, _root: GraphQLClient) -> Call:
    return Call("identityDelete", {"ids": [await _create_identity(ada)]}, "deletedIds")


@call
async def identity_update(ada: GraphQLClient, _root: GraphQLClient) -> Call:
    patch = {"name": "Ada L.", "signatureHtml": "<b>Ada</b>", "sentMailbox": {"path": "Sent"}}
    return Call(
        "identityUpdate", {"ids": [await _create_identity(ada)], "set": patch}, IDENTITIES_SELECTION
    )


async def _create_identity(ada: GraphQLClient) -> str:
    input_fields = {"address": ada.address, "name": "Ada"}
    create = Call("identityCreate", input_fields, "identities { id }")
    return str((await create(ada))["identities"][0]["id"])
