"""Calls about push channels."""

from tests.conftest import Client
from tests.support.sample_mutations.mutation_call import Call, call


@call
async def push_channel_delete(ada: Client, _root: Client) -> Call:
    return Call("pushChannelDelete", {"ids": [await _push_channel(ada)]}, "deletedIds", nudges=True)


@call
async def push_channel_set(_ada: Client, _root: Client) -> Call:
    given = {"kind": "HTTP", "endpoint": "https://ntfy.example.net/ada"}
    return Call("pushChannelSet", given, "channels { kind active title }", nudges=True)


@call
async def push_channel_test(ada: Client, _root: Client) -> Call:
    given = {"ids": [await _push_channel(ada)]}
    return Call("pushChannelTest", given, "channels { id }", journaled=False)


async def _push_channel(ada: Client) -> str:
    made = await (await push_channel_set(ada, ada))(ada)
    assert made["errors"] == []
    found = await ada("{ viewer { user { pushChannels { id } } } }")
    return str(found["viewer"]["user"]["pushChannels"][0]["id"])
