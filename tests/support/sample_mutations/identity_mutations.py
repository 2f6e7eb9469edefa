"""Sample calls of mutations of identities."""

from tests.conftest import GraphQLClient
from tests.support.sample_mutations.mutation_call import MutationCall, register_call

IDENTITY_SELECTION = "{ name address default bcc signatureHtml }"


@register_call
async def identity_create(ada: GraphQLClient, _root: GraphQLClient) -> MutationCall:
    input_fields = {
        "address": ada.address,
        "name": "Ada",
        "default": True,
        "bcc": ["log@example.net"],
    }
    return MutationCall("identityCreate", input_fields, f"identity {IDENTITY_SELECTION}")


@register_call
async def identity_delete(ada: GraphQLClient, _root: GraphQLClient) -> MutationCall:
    input_fields = {"identities": [{"id": await _create_identity(ada)}]}
    return MutationCall("identityDelete", input_fields, "deletedIds")


@register_call
async def identity_update(ada: GraphQLClient, _root: GraphQLClient) -> MutationCall:
    patch = {"name": "Ada L.", "signatureHtml": "<b>Ada</b>", "sentMailbox": {"path": "Sent"}}
    input_fields = {"identities": [{"id": await _create_identity(ada)}], "set": patch}
    return MutationCall("identityUpdate", input_fields, f"identities {IDENTITY_SELECTION}")


async def _create_identity(ada: GraphQLClient) -> str:
    input_fields = {"address": ada.address, "name": "Ada"}
    create = MutationCall("identityCreate", input_fields, "identity { id }")
    return str((await create(ada))["identity"]["id"])
