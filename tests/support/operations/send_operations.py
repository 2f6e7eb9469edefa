"""Sending and forwarding messages."""

from dataclasses import replace
from typing import Any

from mail.mime.header_encoding import NamedAddress
from resolvers.submission import create as submission_create
from resolvers.submission.create import SendRequest, SentMessage
from tests.conftest import GraphQLClient, client_context
from tests.support.schema.error_paths import field_path, item_index

MESSAGE_REDIRECT = """
mutation ($input: MessageRedirectInput!) { messageRedirect(input: $input) {
  submission { queueId } forwardTargets { number type value } replayed errors { code path } } }
"""
OUTSIDE_RECIPIENT = NamedAddress("carol@example.net", "Carol")
SHORT_MESSAGE = SendRequest(to=[OUTSIDE_RECIPIENT], subject="Hello", text="Hi there.")
SEND_WITH_UNDO = """mutation ($window: Duration, $later: DateTime, $options: MutationOptions) {
  messageSend(input: {to: [{address: "carol@example.com"}], text: "Hi.", undoWindow: $window,
  sendAt: $later, options: $options}) {
    submissions { id state undoableUntil } messages { id } undo { token expiresAt }
    errors { code } } }"""


def forward_errors(payload: Any) -> list[tuple[Any, ...]]:
    """Code, path and index of each error of a messageRedirect that sent nothing."""
    assert (payload["submission"], payload["forwardTargets"]) == (None, [])
    return [(error["code"], field_path(error), item_index(error)) for error in payload["errors"]]


async def send_outgoing_message(
    client: GraphQLClient, request: SendRequest = SHORT_MESSAGE, **changes: Any
) -> SentMessage:
    """Send a message with these changes, without a request."""
    return await submission_create.compose_and_queue_message(
        client_context(client), replace(request, **changes)
    )


async def send_with_undo_window(client: GraphQLClient, **variables: Any) -> Any:
    """Send a message that can be undone and return the payload."""
    return (await client(SEND_WITH_UNDO, **variables))["messageSend"]
