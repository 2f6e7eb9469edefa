"""Nodes and user affinities by GraphQL, and other servers on the database of a test."""

from dataclasses import replace
from typing import Any

from sqlalchemy import insert, update
from sqlmodel import col

from models.cluster.nodes import AdministrativeNodeState, ClusterNode, NodeKind
from models.cluster.own_node import NodeAddress, OwnNode
from models.events.wakeups import Wakeups
from models.runtime import leases
from models.runtime.components import ComponentRegistry
from models.runtime.environment import Environment
from models.runtime.registration import ProcessRegistration
from models.sessions.live_sessions import LiveSessionRegistry
from resolvers.cluster.registration import register_node
from tests.conftest import GraphQLClient
from tests.support.operations.domain_operations import run_mutation

ERRORS = "errors { __typename code message path ... on ValidationError { constraint } }"
NODE_FIELDS = """id host port kind tag weight state administrativeState local syncState permanent
  drainEndsAt lastFailure lastFailureAt lastHeartbeatAt unreachableSince version processCount"""
NODES = f"""query ($filter: ClusterNodeFilter, $orderBy: ClusterNodeOrder! = HOST_ASC, $first: Int,
  $after: String, $last: Int, $before: String) {{
  clusterNodes(filter: $filter, orderBy: $orderBy, first: $first, after: $after, last: $last,
    before: $before) {{
    totalCount nodes {{ {NODE_FIELDS} }} pageInfo {{ endCursor startCursor hasNextPage }} }} }}"""
NODE_COUNTS = "{ clusterNodes { nodes { host userCount sessionCount } } }"
CONFIG = "{ clusterConfig { nodes { host } asInputs } }"
NODE_ADD = f"""mutation ($input: ClusterNodeAddInput!) {{ clusterNodeAdd(input: $input) {{
  clusterNode {{ {NODE_FIELDS} }} {ERRORS} }} }}"""
NODE_UPDATE = f"""mutation ($input: ClusterNodeUpdateInput!) {{ clusterNodeUpdate(input: $input) {{
  clusterNodes {{ {NODE_FIELDS} }} {ERRORS} }} }}"""
NODE_REMOVE = f"""mutation ($input: ClusterNodeRemoveInput!) {{ clusterNodeRemove(input: $input) {{
  deletedIds {ERRORS} }} }}"""
NODE_FLUSH = f"""mutation ($input: ClusterNodeFlushInput!) {{ clusterNodeFlush(input: $input) {{
  redistributedCount terminatedCount pendingCount unresponsiveNodes {ERRORS} }} }}"""
AFFINITY_FIELDS = """user { username } hash pinned expiresAt node { host } hashedNode { host }
  pinnedNode { host } sessionNodes { host }"""
AFFINITY = f"""query ($user: UserRef!) {{ userAffinity(user: $user) {{ {AFFINITY_FIELDS} }} }}"""
AFFINITIES = """query ($filter: UserAffinityFilter, $orderBy: UserAffinityOrder! = USERNAME_ASC,
  $first: Int, $after: String, $last: Int, $before: String) {
  userAffinities(filter: $filter, orderBy: $orderBy, first: $first, after: $after, last: $last,
    before: $before) {
    totalCount nodes { user { username } node { host } pinned }
    pageInfo { endCursor startCursor hasNextPage hasPreviousPage } } }"""
AFFINITY_SET = f"""mutation ($input: UserAffinitySetInput!) {{ userAffinitySet(input: $input) {{
  userAffinities {{ {AFFINITY_FIELDS} }} terminatedCount pendingCount unresponsiveNodes
  {ERRORS} }} }}"""


async def run_successful_mutation(client: GraphQLClient, document: str, **fields: Any) -> Any:
    """Run a mutation, and return its payload; fails on errors."""
    payload, errors = await run_mutation(client, document, **fields)
    assert errors == [], errors
    return payload


async def add_node(client: GraphQLClient, host: str, **fields: Any) -> Any:
    """Add a node, and return it."""
    return (await run_successful_mutation(client, NODE_ADD, host=host, **fields))["clusterNode"]


async def update_node(client: GraphQLClient, host: str, **values: Any) -> Any:
    """Change a node, and return it."""
    refs = [{"host": host}]
    payload = await run_successful_mutation(client, NODE_UPDATE, nodes=refs, set=values)
    return payload["clusterNodes"][0]


async def pin_users(client: GraphQLClient, host: str | None, *names: str, **fields: Any) -> Any:
    """Pin users to a node, or remove their pins; return the payload."""
    node = {"host": host} if host else None
    users = {"usernames": list(names)}
    return await run_successful_mutation(client, AFFINITY_SET, users=users, node=node, **fields)


async def load_nodes(client: GraphQLClient, **arguments: Any) -> Any:
    """Return a page of nodes."""
    return (await client(NODES, **arguments))["clusterNodes"]


async def load_affinity(client: GraphQLClient, username: str) -> Any:
    """Return the affinity of a user."""
    return (await client(AFFINITY, user={"username": username}))["userAffinity"]


async def load_affinities(client: GraphQLClient, **arguments: Any) -> Any:
    """Return a page of user affinities."""
    return (await client(AFFINITIES, **arguments))["userAffinities"]


async def insert_node(environment: Environment, host: str, port: int = 8025, **values: Any) -> int:
    """Insert the row of a reachable BACKEND node, and return its id."""
    node_id, now = environment.new_id(), environment.now()
    row = {
        "id": node_id,
        "host": host,
        "port": port,
        "kind": NodeKind.BACKEND,
        "state": AdministrativeNodeState.UP,
        "state_changed_at": now,
        "created_at": now,
        **values,
    }
    await environment.run_transaction(
        lambda transaction: transaction.connection.execute(insert(ClusterNode), row)
    )
    return node_id


async def set_node_values(environment: Environment, host: str, **values: Any) -> None:
    """Change the row of a node without its journal."""
    statement = update(ClusterNode).where(col(ClusterNode.host) == host).values(**values)
    await environment.run_transaction(lambda transaction: transaction.connection.execute(statement))


def other_server(environment: Environment, name: str = "other") -> Environment:
    """Return the environment of a process of another server on the same database."""
    return replace(
        environment,
        process=ProcessRegistration(name=name, answers_requests=True),
        wakeups=Wakeups(),
        live_sessions=LiveSessionRegistry(),
        components=ComponentRegistry(),
        own_node=OwnNode(),
    )


async def register_server(environment: Environment, host: str, port: int = 8025) -> int:
    """Register the process of an environment, and its server as a node; return the node's id."""
    environment.process.answers_requests = True
    await leases.ensure_process_registered(environment)
    node_id = await register_node(environment, NodeAddress(host, port))
    environment.own_node.node_id = node_id
    return node_id
