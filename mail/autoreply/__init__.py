"""Automatic replies (RFC 3834, RFC 5230): when they are sent, once per sender, by the queue."""

from mail.autoreply.decision import (
    AutoreplyContent,
    AutoreplyRule,
    AutoreplyTrigger,
    NoReplyReason,
    autoreply_or_reason_for_none,
    reason_never_to_reply,
    reply_content_unless_empty,
    sender_without_label_and_batv_tag,
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
    try_autoreply_and_return_outcome,
)

__all__ = [
    "AutoreplyContent",
    "AutoreplyRule",
    "AutoreplyTrigger",
    "NoReplyReason",
    "autoreply_or_reason_for_none",
    "find_receiving_address_record",
    "from_address_of_reply",
    "is_account_in_header_addresses",
    "is_address_of_user_or_same",
    "is_address_reply_limit_reached_sql",
    "is_sender_answered_sql",
    "is_sender_internal_sql",
    "is_user_reply_limit_reached_sql",
    "read_header_fields",
    "reason_never_to_reply",
    "reply_content_unless_empty",
    "sender_without_label_and_batv_tag",
    "try_autoreply_and_return_outcome",
]
