"""The SMTP replies to refused deliveries (RFC 5321, section 4.2; RFC 3463).

The listeners and the queue use the same replies, so that both treat a refusal in the same way.
"""

from mail.delivery.account_forwards import SpamForwardRefused
from mail.delivery.script_rejection import RejectedByScript
from mail.envelope.resource_refusal import ResourceMailRefused
from mail.envelope.smtp_replies import (
    BAD_RECIPIENT_REPLY,
    MAIL_LOOP_REPLY,
    MAILBOX_FULL_REPLY,
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
from models.errors import (
    InvalidInput,
    NotFound,
    OverQuota,
    RateLimited,
    RequestError,
    ServiceUnavailable,
)

# RFC 3463: an unknown user is final; a full mailbox is temporary
_REPLIES_BY_REFUSAL: dict[type, str] = {
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


def refusal_reply(refusal: RequestError) -> str:
    """Return the reply to a refusal: 4xx if a retry can help, else 5xx."""
    if isinstance(refusal, RejectedByScript | ResourceMailRefused):
        return refusal.smtp_reply
    if isinstance(refusal, RejectedByDmarc):
        return dmarc_reply(refusal.from_domain)
    kinds = (kind for kind in type(refusal).__mro__ if kind in _REPLIES_BY_REFUSAL)
    return next((_REPLIES_BY_REFUSAL[kind] for kind in kinds), POLICY_REPLY)


def is_permanent_refusal(error: BaseException) -> bool:
    """Return True if a retry does not help. An unexpected error is temporary."""
    return isinstance(error, RequestError) and refusal_reply(error).startswith("5")


def is_spam_refusal(error: BaseException) -> bool:
    """Return True if the message was refused as spam or because of a virus."""
    return isinstance(error, SpamRefused | SpamForwardRefused)
