"""Samples of the mutations of caches."""

from tests.conftest import GraphQLClient
from tests.support.sample_mutations.mutation_call import MutationCall, register_call

REMOVAL_PAYLOAD = "entryCount size unresponsiveNodes"
SMALL_MBOX = "From a@b.example Tue Jan  6 10:00:00 2026\nSubject: Ducks\n\nx\n"


@register_call
async def cache_flush(_ada: GraphQLClient, _root: GraphQLClient) -> MutationCall:
    payload = "entryCount lostCount unresponsiveNodes"
    return MutationCall("cacheFlush", {}, payload, journaled=False, by_root=True)


@register_call
async def cache_clean(_ada: GraphQLClient, _root: GraphQLClient) -> MutationCall:
    return MutationCall("cacheClean", {"days": 1}, REMOVAL_PAYLOAD, journaled=False, by_root=True)


@register_call
async def cache_remove(_ada: GraphQLClient, _root: GraphQLClient) -> MutationCall:
    input_fields = {"users": {"patterns": ["ada*"]}}
    return MutationCall("cacheRemove", input_fields, REMOVAL_PAYLOAD, journaled=False, by_root=True)


@register_call
async def cache_rescan(_ada: GraphQLClient, _root: GraphQLClient) -> MutationCall:
    return MutationCall(
        "cacheRescan",
        {},
        "entryCount size incompleteNodes unresponsiveNodes",
        journaled=False,
        by_root=True,
    )


@register_call
async def cache_unpack(_ada: GraphQLClient, _root: GraphQLClient) -> MutationCall:
    input_fields = {
        "bundleName": "ada",
        "bundle": {"text": SMALL_MBOX},
        "path": "admin/restore",
    }
    payload = "mailboxes { path uidValidity uidNext messageCount } files skippedCount"
    return MutationCall("cacheUnpack", input_fields, payload, journaled=False, by_root=True)
