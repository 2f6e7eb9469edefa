"""The replies to errors and refusals (RFC 5321, section 4.2; RFC 3463)."""

import logging

from sqlalchemy.exc import StatementError

from mail.delivery.account_forwards import SpamForwardRefused
from mail.delivery.script_rejection import RejectedByScript
from mail.envelope.smtp_replies import (
    BAD_RECIPIENT_REPLY,
    MAIL_LOOP_REPLY,
    MAILBOX_FULL_REPLY,
    NO_SPACE_REPLY,
    POLICY_REPLY,
    RECIPIENT_RATE_REPLY,
    SPAM_FORWARD_REPLY,
    SPAM_REPLY,
    TRY_LATER_REPLY,
    USER_UNKNOWN_REPLY,
    VIRUS_REPLY,
    dmarc_reply,
)
from mail.inbound.scan_rejection import SpamRefused, VirusRefused
from mail.inbound.sender_verification import RejectedByDmarc
from mail.recipients.recipient_routes import MailLoop
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

# RFC 3463: an unknown user is final; a full mailbox is temporary
REPLIES_BY_REFUSAL: dict[type, str] = {
    NotFound: USER_UNKNOWN_REPLY,
    OverQuota: MAILBOX_FULL_REPLY,
    InvalidInput: BAD_RECIPIENT_REPLY,
    RateLimited: RECIPIENT_RATE_REPLY,
    ServiceUnavailable: TRY_LATER_REPLY,
    MailLoop: MAIL_LOOP_REPLY,
    SpamForwardRefused: SPAM_FORWARD_REPLY,
    SpamRefused: SPAM_REPLY,
    VirusRefused: VIRUS_REPLY,
}


def reply_from_error(error: BaseException, *, user_id: int | None = None) -> str:
    """Return the reply to an error. Unexpected errors are logged with the account ID only."""
    if isinstance(error, RejectedByScript):
        return error.smtp_reply
    if isinstance(error, RejectedByDmarc):
        return dmarc_reply(error.from_domain)
    if isinstance(error, RequestError):
        return next(
            (
                REPLIES_BY_REFUSAL[kind]
                for kind in type(error).__mro__
                if kind in REPLIES_BY_REFUSAL
            ),
            POLICY_REPLY,
        )
    if isinstance(error, OutOfSpoolSpace):
        return NO_SPACE_REPLY
    if (failure := storage_failure(error)) is not None:
        OUTAGES.note_suppressed_record(failure)
        return NO_SPACE_REPLY if isinstance(failure, DiskFull) else TRY_LATER_REPLY
    if isinstance(error, StatementError):
        error.hide_parameters = True  # they contain mail
    log.error("receiving failed", exc_info=error, extra={"user": user_id})
    return TRY_LATER_REPLY
