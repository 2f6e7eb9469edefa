"""Calls about what users may send as."""

from tests.conftest import Client
from tests.support.sample_mutations.mutation_call import Call, call

SHOWN = "identities { name address default bcc signatureHtml }"


@call
async def identity_create(ada: Client, _root: Client) -> Call:
    given = {"address": ada.address, "name": "Ada", "default": True, "bcc": ["log@example.net"]}
    return Call("identityCreate", given, SHOWN)


@call
async def identity_delete(ada: Client, _root: Client) -> Call:
    return Call("identityDelete", {"ids": [await _identity(ada)]}, "deletedIds")


@call
async def identity_update(ada: Client, _root: Client) -> Call:
    patch = {"name": "Ada L.", "signatureHtml": "<b>Ada</b>", "sentMailbox": {"path": "Sent"}}
    return Call("identityUpdate", {"ids": [await _identity(ada)], "set": patch}, SHOWN)


async def _identity(ada: Client) -> str:
    given = {"address": ada.address, "name": "Ada"}
    made = Call("identityCreate", given, "identities { id }")
    return str((await made(ada))["identities"][0]["id"])
