"""SMTP replies to errors (RFC 5321, section 4.2; RFC 3463)."""

import logging

from sqlalchemy.exc import StatementError

from mail.delivery.account_forwards import Held
from mail.delivery.plan_execution import Rejected
from mail.inbound.scan_rejection import Infected, Unwanted
from mail.recipients.recipient_routes import Loop
from mail.smtp.line_protocol import NO_ADDRESS
from mail.smtp.spool_file import NoRoom
from models.errors import Invalid, NotFound, OverQuota, RateLimited, Refused, Unavailable
from models.store.outage_log import OUTAGES
from models.store.outages import DiskFull, unavailable

log = logging.getLogger(__name__)

MISTAKES = ("500", "501", "502", "503", "504", "555")  # protocol errors of the client

TRY_LATER = "451 4.3.0 Try again later"
NO_ROOM = "452 4.3.1 No room for it now, try again later"
TOO_LARGE = "552 5.3.4 Message too large"
FAR_TOO_LARGE = "421 4.3.0 Far too large, hanging up"
LINE_TOO_LONG = "500 5.5.2 Line too long"
CLOSING = "421 4.3.2 Shutting down, come back later"
CROWDED = "421 4.3.2 Too many connections, come back later"
WAITED = "421 4.4.2 Waited too long for you"

# RFC 3463: an unknown user is final; a full mailbox is temporary
REFUSALS: dict[type, str] = {
    NotFound: "550 5.1.1 No such user here",
    OverQuota: "452 4.2.2 Mailbox full",
    Invalid: NO_ADDRESS,
    RateLimited: "450 4.2.1 Too much mail for this mailbox, try again later",
    Unavailable: TRY_LATER,
    Loop: "554 5.4.6 The mail goes in circles",
    Held: "554 5.7.1 Spam is not sent on",
    Unwanted: "550 5.7.1 Refused as spam",
    Infected: "550 5.7.1 Refused: there is a virus in it",
}
REFUSED_REPLY = "550 5.7.1 Refused"  # to other refusals


def refusal(error: BaseException, *, user: int | None = None) -> str:
    """Return the reply to an error. Unexpected errors are logged with the account ID only."""
    if isinstance(error, Rejected):
        return f"550 5.7.1 {error.words}"
    if isinstance(error, Refused):
        return next(
            (REFUSALS[kind] for kind in type(error).__mro__ if kind in REFUSALS), REFUSED_REPLY
        )
    if isinstance(error, NoRoom):
        return NO_ROOM
    if (failure := unavailable(error)) is not None:
        OUTAGES.note_record(failure)
        return NO_ROOM if isinstance(failure, DiskFull) else TRY_LATER
    if isinstance(error, StatementError):
        error.hide_parameters = True  # they contain mail
    log.error("receiving failed", exc_info=error, extra={"user": user})
    return TRY_LATER
