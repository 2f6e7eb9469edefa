"""Messages delivered by the backend of the listeners."""

from mail.delivery.listener_backend import LocalBackend
from models.runtime.environment import Environment
from tests.conftest import GraphQLClient

OUTSIDE_SENDER = "carol@example.com"
SPAM_FLAG_HEADER = {"X_Spam_Flag": "YES"}


async def deliver_to_users(
    environment: Environment, *to: GraphQLClient, raw: bytes, sender: str = OUTSIDE_SENDER
) -> None:
    """Deliver a message to users by the backend of the listeners."""
    backend = LocalBackend(environment)
    recipients = [await backend.accept_recipient(client.address, sender) for client in to]
    outcomes = await backend.deliver(raw, recipients, sender)
    assert not [outcome for outcome in outcomes if isinstance(outcome, BaseException)]
