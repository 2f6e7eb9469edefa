"""Messages that request DSNs, and the fields of a DSN."""

from email.message import EmailMessage
from typing import Any

from mail.envelope.dsn_parameters import DsnRequest
from mail.mime.header_encoding import NamedAddress
from resolvers.submission import composition
from resolvers.submission import create as submission_create
from resolvers.submission.create import ComposedMessage, SendRequest
from tests.conftest import GraphQLClient, client_context
from tests.support.mail_servers.queue_worker import REMOTE_RECIPIENTS

DSN_SENDER = "carol@example.net"
NOTIFY_ALL = "NOTIFY=SUCCESS,FAILURE,DELAY"
SUBMITTED_MESSAGE = b"Message-ID: <1@example.org>\r\nSubject: Hi\r\n\r\nsecret\r\n"


def dsn_fields(message: EmailMessage) -> tuple[Any, list[Any]]:
    """The fields of a DSN (RFC 3464): of the message, and of each recipient."""
    status_part: Any = list(message.iter_parts())[1]
    message_fields, *recipient_fields = status_part.get_payload()
    return message_fields, recipient_fields


async def send_with_dsn_request(ada: GraphQLClient, *to: NamedAddress) -> int:
    """Send a message that requests DSNs and return the id of its submission."""
    outgoing = SendRequest(
        to=to or REMOTE_RECIPIENTS, subject="Hello", text="Hi.", request_dsn=True
    )
    result = await submission_create.compose_and_queue_message(client_context(ada), outgoing)
    assert result.submission is not None
    return int(result.submission.id)


async def submit_with_dsn_request(
    ada: GraphQLClient, request: DsnRequest, *, sender: str | None = None
) -> int:
    """Submit a message with this DSN request for each recipient; return the submission's id."""
    ctx = client_context(ada)
    account = await composition.read_account(ctx, ada.user.id)
    to = ["carol@example.net", "dave@example.net"]
    requests = dict.fromkeys(to, request)
    envelope_from = ada.address if sender is None else sender
    message = ComposedMessage(SUBMITTED_MESSAGE, envelope_from, to, None, dsn_requests=requests)
    submission_id, _ = await submission_create.scan_and_queue_message_with_copy(
        ctx, account, message
    )
    assert submission_id is not None
    return submission_id
