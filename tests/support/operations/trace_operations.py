"""Reading the trace of a message."""

from typing import Any

from tests.conftest import GraphQLClient

DELIVERY_TRACE_QUERY = """query ($filter: DeliveryTraceFilter!) {
  deliveryTrace(filter: $filter, orderBy: AT_ASC, first: 250) {
    nodes { at queueId component event detail address } } }"""


async def trace_steps(client: GraphQLClient, **conditions: Any) -> list[tuple[Any, ...]]:
    """Component, event, address and detail of each step of a delivery trace, oldest first."""
    steps = (await client(DELIVERY_TRACE_QUERY, filter=conditions))["deliveryTrace"]["nodes"]
    names = ("component", "event", "address", "detail")
    return [tuple(step[name] for name in names) for step in steps]


async def trace_events(client: GraphQLClient, **conditions: Any) -> list[str]:
    """The events of a delivery trace, oldest first."""
    return [event for _, event, _, _ in await trace_steps(client, **conditions)]


def message_id_header(raw: bytes) -> str:
    """The Message-ID of a message."""
    return raw.partition(b"Message-ID: ")[2].partition(b"\r\n")[0].decode()
