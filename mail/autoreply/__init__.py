"""Automatic replies (RFC 3834, RFC 5230): when they are sent, once per sender, by the queue."""

from mail.autoreply.decision import (
    Came,
    Reply,
    Rule,
    Silence,
    answer,
    quiet,
    sender_key,
    written,
)
from mail.autoreply.reply_sender import (
    after,
    answered,
    header_of,
    internal,
    is_of,
    spent,
    spent_by_address,
    stands,
    taker,
    writer,
)

__all__ = [
    "Came",
    "Reply",
    "Rule",
    "Silence",
    "after",
    "answer",
    "answered",
    "header_of",
    "internal",
    "is_of",
    "quiet",
    "sender_key",
    "spent",
    "spent_by_address",
    "stands",
    "taker",
    "writer",
    "written",
]
