"""Sample calls of mutations of identities."""

from tests.conftest import Client
from tests.support.sample_mutations.mutation_call import Call, call

IDENTITIES_SELECTION = "identities { name address default bcc signatureHtml }"


@call
async def identity_create(ada: Client, _root: Client) -> Call:
    input_fields = {
        "address": ada.address,
        "name": "Ada",
        "default": True,
        "bcc": ["log@example.net"],
    }
    return Call("identityCreate", input_fields, IDENTITIES_SELECTION)


@call
async def identity_delete(ada: Client, _root: Client) -> Call:
    return Call("identityDelete", {"ids": [await _create_identity(ada)]}, "deletedIds")


@call
async def identity_update(ada: Client, _root: Client) -> Call:
    patch = {"name": "Ada L.", "signatureHtml": "<b>Ada</b>", "sentMailbox": {"path": "Sent"}}
    return Call(
        "identityUpdate", {"ids": [await _create_identity(ada)], "set": patch}, IDENTITIES_SELECTION
    )


async def _create_identity(ada: Client) -> str:
    input_fields = {"address": ada.address, "name": "Ada"}
    create = Call("identityCreate", input_fields, "identities { id }")
    return str((await create(ada))["identities"][0]["id"])
