"""Reading the trace of a message."""

from typing import Any

from tests.conftest import GraphQLClient

MESSAGE_TRACE_QUERY = """query ($queueId: String, $messageIdHeader: String, $address: String) {
  messageTrace(queueId: $queueId, messageIdHeader: $messageIdHeader, address: $address) {
    at queueId component event detail address } }"""


async def trace_steps(client: GraphQLClient, **variables: Any) -> list[tuple[Any, ...]]:
    """Component, event, address and detail of each step of a message trace."""
    steps = (await client(MESSAGE_TRACE_QUERY, **variables))["messageTrace"]
    names = ("component", "event", "address", "detail")
    return [tuple(step[name] for name in names) for step in steps]


async def trace_events(client: GraphQLClient, **variables: Any) -> list[str]:
    """The events of a message trace."""
    return [event for _, event, _, _ in await trace_steps(client, **variables)]


def message_id_header(raw: bytes) -> str:
    """The Message-ID of a message."""
    return raw.partition(b"Message-ID: ")[2].partition(b"\r\n")[0].decode()
