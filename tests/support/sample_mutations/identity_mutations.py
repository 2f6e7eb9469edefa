"""Sample calls of mutations of identities."""

from tests.conftest import GraphQLClient
from tests.support.sample_mutations.mutation_call import MutationCall, register_call

IDENTITIES_SELECTION = "identities { name address default bcc signatureHtml }"


@register_call
async def identity_create(ada: GraphQLClient, _root: GraphQLClient) -> MutationCall:
    input_fields = {
        "address": ada.address,
        "name": "Ada",
        "default": True,
        "bcc": ["log@example.net"],
    }
    return MutationCall("identityCreate", input_fields, IDENTITIES_SELECTION)


@register_call
async def identity_delete(ada: GraphQLClient, _root: GraphQLClient) -> MutationCall:
    return MutationCall("identityDelete", {"ids": [await _create_identity(ada)]}, "deletedIds")


@register_call
async def identity_update(ada: GraphQLClient, _root: GraphQLClient) -> MutationCall:
    patch = {"name": "Ada L.", "signatureHtml": "<b>Ada</b>", "sentMailbox": {"path": "Sent"}}
    return MutationCall(
        "identityUpdate", {"ids": [await _create_identity(ada)], "set": patch}, IDENTITIES_SELECTION
    )


async def _create_identity(ada: GraphQLClient) -> str:
    input_fields = {"address": ada.address, "name": "Ada"}
    create = MutationCall("identityCreate", input_fields, "identities { id }")
    return str((await create(ada))["identities"][0]["id"])
