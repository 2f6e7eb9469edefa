"""Sample calls of mutations of nodes and user affinities."""

from tests.conftest import GraphQLClient
from tests.support.operations.platform.cluster_operations import insert_node
from tests.support.sample_mutations.mutation_call import MutationCall, register_call

HOST = "mx1.example.org"
NODE_REF = {"host": HOST}


@register_call
async def cluster_node_add(_ada: GraphQLClient, _root: GraphQLClient) -> MutationCall:
    return MutationCall(
        "clusterNodeAdd",
        {"host": "lb1.example.org", "port": 443, "kind": "FRONT"},
        "clusterNode { host port kind state }",
        by_root=True,
    )


@register_call
async def cluster_node_update(_ada: GraphQLClient, root: GraphQLClient) -> MutationCall:
    await insert_node(root.environment, HOST)
    return MutationCall(
        "clusterNodeUpdate",
        {"nodes": [NODE_REF], "set": {"weight": 50}},
        "clusterNodes { host state weight }",
        by_root=True,
    )


@register_call
async def cluster_node_remove(_ada: GraphQLClient, root: GraphQLClient) -> MutationCall:
    await insert_node(root.environment, HOST)
    return MutationCall("clusterNodeRemove", {"nodes": [NODE_REF]}, "deletedIds", by_root=True)


@register_call
async def cluster_node_flush(ada: GraphQLClient, root: GraphQLClient) -> MutationCall:
    call = await user_affinity_set(ada, root)
    payload = await call(root)
    assert payload["errors"] == []
    return MutationCall(
        "clusterNodeFlush", {"node": NODE_REF}, "redistributedCount terminatedCount", by_root=True
    )


@register_call
async def user_affinity_set(_ada: GraphQLClient, root: GraphQLClient) -> MutationCall:
    await insert_node(root.environment, HOST)
    return MutationCall(
        "userAffinitySet",
        {"users": {"usernames": ["ada"]}, "node": NODE_REF},
        "userAffinities { user { username } node { host } } terminatedCount",
        by_root=True,
    )
