"""Contexts of subscriptions: without the client for a group, and from a position for a restart."""

from dataclasses import replace

from graph.execution.operation_execution import OperationContext
from models.events.journal import StreamPositions
from resolvers.context import Context, SubscriptionStart

URL_HEADERS = "host", "x-forwarded-proto"  # URLs in results depend on them


def context_without_credential_and_client(context: Context) -> Context:
    """Return the context of a group: without credential, session and address of the viewer.

    URLs that are signed with it end with an event that ends all credentials, as a new password.
    """
    viewer = replace(context.viewer, token_id=None, api_key_id=None, expires_at=None)
    context_copy = replace(
        context,
        viewer=viewer,
        connection_params=None,
        client_ip=None,
        session_id=None,
        subscription_start=None,
    )
    if isinstance(context_copy, OperationContext):
        return replace(
            context_copy,
            headers=url_headers(context_copy),
            observer=None,
            presence=None,
            connection_slot=None,
            reader=None,
            live=None,
        )
    return context_copy


def context_from_position(context: Context, positions: StreamPositions) -> Context:
    """Return the same context for a stream that starts after these positions."""
    return replace(context, subscription_start=SubscriptionStart(lambda _position: None, positions))


def url_headers(context: Context) -> dict[str, str]:
    """Return the request headers that URLs in results depend on."""
    headers = context.headers if isinstance(context, OperationContext) else {}
    return {name: headers[name] for name in URL_HEADERS if name in headers}
