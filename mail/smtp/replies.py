"""SMTP replies to errors (RFC 5321, section 4.2; RFC 3463)."""

import logging

from sqlalchemy.exc import StatementError

from mail.delivery.account_forwards import SpamForwardRefused
from mail.delivery.plan_execution import RejectedByScript
from mail.inbound.scan_rejection import SpamRefused, VirusRefused
from mail.recipients.recipient_routes import MailLoop
from mail.smtp.line_protocol import BAD_ADDRESS_REPLY
from mail.smtp.spool_file import OutOfSpoolSpace
from models.errors import (
    InvalidInput,
    NotFound,
    OverQuota,
    RateLimited,
    RequestError,
    ServiceUnavailable,
)
from models.store.outage_log import OUTAGES
from models.store.outages import DiskFull, storage_failure

log = logging.getLogger(__name__)

MISTAKE_CODES = ("500", "501", "502", "503", "504", "555")  # protocol errors of the client

TRY_LATER_REPLY = "451 4.3.0 Try again later"
NO_ROOM_REPLY = "452 4.3.1 No room for it now, try again later"
TOO_LARGE_REPLY = "552 5.3.4 Message too large"
FAR_TOO_LARGE_REPLY = "421 4.3.0 Far too large, hanging up"
LINE_TOO_LONG_REPLY = "500 5.5.2 Line too long"
CLOSING_REPLY = "421 4.3.2 Shutting down, come back later"
TOO_MANY_CONNECTIONS_REPLY = "421 4.3.2 Too many connections, come back later"
TIMEOUT_REPLY = "421 4.4.2 Waited too long for you"

# RFC 3463: an unknown user is final; a full mailbox is temporary
REPLIES_BY_REFUSAL: dict[type, str] = {
    NotFound: "550 5.1.1 No such user here",
    OverQuota: "452 4.2.2 Mailbox full",
    InvalidInput: BAD_ADDRESS_REPLY,
    RateLimited: "450 4.2.1 Too much mail for this mailbox, try again later",
    ServiceUnavailable: TRY_LATER_REPLY,
    MailLoop: "554 5.4.6 The mail goes in circles",
    SpamForwardRefused: "554 5.7.1 Spam is not sent on",
    SpamRefused: "550 5.7.1 Refused as spam",
    VirusRefused: "550 5.7.1 Refused: there is a virus in it",
}
DEFAULT_REFUSED_REPLY = "550 5.7.1 Refused"  # to other refusals


def reply_from_error(error: BaseException, *, user_id: int | None = None) -> str:
    """Return the reply to an error. Unexpected errors are logged with the account ID only."""
    if isinstance(error, RejectedByScript):
        return f"550 5.7.1 {error.reply_text}"
    if isinstance(error, RequestError):
        return next(
            (
                REPLIES_BY_REFUSAL[kind]
                for kind in type(error).__mro__
                if kind in REPLIES_BY_REFUSAL
            ),
            DEFAULT_REFUSED_REPLY,
        )
    if isinstance(error, OutOfSpoolSpace):
        return NO_ROOM_REPLY
    if (failure := storage_failure(error)) is not None:
        OUTAGES.note_suppressed_record(failure)
        return NO_ROOM_REPLY if isinstance(failure, DiskFull) else TRY_LATER_REPLY
    if isinstance(error, StatementError):
        error.hide_parameters = True  # they contain mail
    log.error("receiving failed", exc_info=error, extra={"user": user_id})
    return TRY_LATER_REPLY
