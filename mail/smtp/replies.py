"""The replies to errors and refusals (RFC 5321, section 4.2; RFC 3463)."""

import logging

from mail.delivery.refusal_replies import refusal_reply
from mail.envelope.smtp_replies import NO_SPACE_REPLY, TRY_LATER_REPLY
from mail.smtp.spool_file import OutOfSpoolSpace
from models.errors import RequestError
from models.store.outage_log import OUTAGES
from models.store.outages import DiskFull, storage_failure

log = logging.getLogger(__name__)

MISTAKE_CODES = ("500", "501", "502", "503", "504", "555")  # protocol errors of the client


def reply_from_error(error: BaseException, *, user_id: int | None = None) -> str:
    """Return the reply to an error. Unexpected errors are logged with the account ID only."""
    if isinstance(error, RequestError):
        return refusal_reply(error)
    if isinstance(error, OutOfSpoolSpace):
        return NO_SPACE_REPLY
    if (failure := storage_failure(error)) is not None:
        OUTAGES.note_suppressed_record(failure)
        return NO_SPACE_REPLY if isinstance(failure, DiskFull) else TRY_LATER_REPLY
    log.error("Receiving failed with an internal error", exc_info=error, extra={"user": user_id})
    return TRY_LATER_REPLY
