"""Calls about keys that domains sign with. Small keys of Ed25519 are made at once."""

import base64
from typing import Any

from tests.conftest import Client
from tests.support.sample_mutations.mutation_call import Call, call

RAW = base64.b64encode(bytes(range(32))).decode()
KEY: dict[str, Any] = {"domains": ["example.org"], "privateKey": RAW}


async def _made(root: Client, **more: Any) -> str:
    made = await Call("dkimKeySet", KEY | more, "keys { id }")(root)
    return str(made["keys"][0]["id"])


@call
async def dkim_key_set(_ada: Client, root: Client) -> Call:
    await _made(root, selector="old")  # one that is retired
    return Call("dkimKeySet", KEY, "keys { domain selector }", by_root=True)


@call
async def dkim_key_rotate(_ada: Client, root: Client) -> Call:
    await _made(root)
    given = {"domains": ["example.org"], "selector": "new"}
    return Call("dkimKeyRotate", given, "keys { domain selector }", by_root=True)


@call
async def dkim_key_activate(ada: Client, root: Client) -> Call:
    rotate = await dkim_key_rotate(ada, root)
    made = await Call(rotate.name, rotate.input, "keys { id }")(root)
    return Call("dkimKeyActivate", {"ids": [made["keys"][0]["id"]]}, "keys { state }", by_root=True)


@call
async def dkim_key_copy(_ada: Client, root: Client) -> Call:
    await _made(root)
    await Call("domainCreate", {"name": "copied.example"})(root)
    given = {"from": "example.org", "to": ["copied.example"]}
    return Call("dkimKeyCopy", given, "keys { domain selector }", by_root=True)


@call
async def dkim_key_delete(_ada: Client, root: Client) -> Call:
    return Call("dkimKeyDelete", {"ids": [await _made(root)]}, "deletedIds", by_root=True)
