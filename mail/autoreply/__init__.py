"""Automatic replies (RFC 3834, RFC 5230): when they are sent, once per sender, by the queue."""

from mail.autoreply.decision import (
    AutoreplyContent,
    AutoreplyRule,
    AutoreplyTrigger,
    NoReplyReason,
    decide_reply,
    normalized_sender,
    reason_never_to_reply,
    reply_content_unless_empty,
)
from mail.autoreply.reply_sender import (
    find_receiving_address_record,
    from_address_of_reply,
    is_account_in_header_addresses,
    is_address_of_user_or_same,
    is_address_reply_limit_reached_sql,
    is_sender_answered_sql,
    is_sender_internal_sql,
    is_user_reply_limit_reached_sql,
    read_header_fields,
    try_autoreply_after_delivery,
)

__all__ = [
    "AutoreplyContent",
    "AutoreplyRule",
    "AutoreplyTrigger",
    "NoReplyReason",
    "decide_reply",
    "find_receiving_address_record",
    "from_address_of_reply",
    "is_account_in_header_addresses",
    "is_address_of_user_or_same",
    "is_address_reply_limit_reached_sql",
    "is_sender_answered_sql",
    "is_sender_internal_sql",
    "is_user_reply_limit_reached_sql",
    "normalized_sender",
    "read_header_fields",
    "reason_never_to_reply",
    "reply_content_unless_empty",
    "try_autoreply_after_delivery",
]
