"""Lists of components by GraphQL."""

import asyncio
import time
from typing import Any

from tests.conftest import GraphQLClient

BUSY_MACHINE_SECONDS = 30.0
COMPONENTS = """query ($filter: ComponentFilter, $order: ComponentOrder! = NAME_ASC, $first: Int,
    $after: String, $last: Int, $before: String) {
  components(filter: $filter, orderBy: $order, first: $first, after: $after, last: $last,
      before: $before) {
    totalCount unresponsiveNodes pageInfo { endCursor hasNextPage }
    nodes { name kind state stateChangedAt node pid address version latency probedAt detail } } }"""


async def list_components(client: GraphQLClient, **variables: Any) -> Any:
    return (await client(COMPONENTS, **variables))["components"]


async def find_component(client: GraphQLClient, name: str) -> Any:
    (node,) = (await list_components(client, filter={"names": [name]}))["nodes"]
    return node


async def wait_for_component(client: GraphQLClient, name: str, state: str) -> Any:
    """Ask until a component has a state; its probe goes on in the background."""
    deadline = time.monotonic() + BUSY_MACHINE_SECONDS
    while (component := await find_component(client, name))["state"] != state:
        assert time.monotonic() < deadline, component
        await asyncio.sleep(0.1)
    return component
