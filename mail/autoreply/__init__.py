"""Automatic replies (RFC 3834, RFC 5230): when they are sent, once per sender, by the queue."""

from mail.autoreply.decision import (
    AutoreplyContent,
    AutoreplyRule,
    AutoreplyTrigger,
    NoReplyReason,
    decide_reply,
    normalized_sender,
    reason_never_to_reply,
    reply_from_rule,
)
from mail.autoreply.reply_sender import (
    belongs_to,
    find_address_record,
    is_address_limit_reached_sql,
    is_addressed,
    is_answered_sql,
    is_internal_sql,
    is_limit_reached_sql,
    read_header_fields,
    reply_from_address,
    reply_to_delivered,
)

__all__ = [
    "AutoreplyContent",
    "AutoreplyRule",
    "AutoreplyTrigger",
    "NoReplyReason",
    "belongs_to",
    "decide_reply",
    "find_address_record",
    "is_address_limit_reached_sql",
    "is_addressed",
    "is_answered_sql",
    "is_internal_sql",
    "is_limit_reached_sql",
    "normalized_sender",
    "read_header_fields",
    "reason_never_to_reply",
    "reply_from_address",
    "reply_from_rule",
    "reply_to_delivered",
]
