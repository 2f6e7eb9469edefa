"""Sample calls of mutations that control components and servers."""

from tests.conftest import GraphQLClient
from tests.support.sample_mutations.mutation_call import MutationCall, register_call


@register_call
async def component_stop(_ada: GraphQLClient, _root: GraphQLClient) -> MutationCall:
    return MutationCall(
        "componentStop",
        {"components": ["lmtp", "tasks"]},
        "components { name } unresponsiveNodes",
        journaled=False,
        by_root=True,
    )


@register_call
async def component_start(ada: GraphQLClient, root: GraphQLClient) -> MutationCall:
    payload = await (await component_stop(ada, root))(root)
    assert payload["errors"] == []
    return MutationCall(
        "componentStart",
        {"components": ["lmtp"]},
        "components { name } unresponsiveNodes",
        journaled=False,
        by_root=True,
    )


@register_call
async def config_reload(_ada: GraphQLClient, _root: GraphQLClient) -> MutationCall:
    return MutationCall(
        "configReload",
        {},
        "changedKeys restartRequiredKeys unresponsiveNodes",
        journaled=False,
        by_root=True,
    )


@register_call
async def server_stop(_ada: GraphQLClient, _root: GraphQLClient) -> MutationCall:
    return MutationCall(
        "serverStop", {"grace": "PT5S"}, "stoppingAt", journaled=False, by_root=True
    )
