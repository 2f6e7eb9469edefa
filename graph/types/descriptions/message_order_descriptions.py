"""Descriptions of the orders of lists of messages."""

_NAME = "the name in the header field From or, without one, the address"
_TEXT = "Case and accents are ignored, and at most 64 bytes are compared."
_DATE = "Without a valid one, the time of arrival counts."
_SEEN = (
    "both groups by time of arrival, newest first. A message whose flag changes between two pages "
    "can be missing, or on both."
)
_SUBJECT = "the subject without prefixes such as `Re:` (RFC 5256, section 2.1)"

MESSAGE_ORDER_DESCRIPTIONS = {
    "DeletedMessageOrder": {
        "DELETED_AT_ASC": "Sorted by time of deletion, oldest first.",
        "DELETED_AT_DESC": "Sorted by time of deletion, newest first.",
    },
    "MessageOrder": {
        "RECEIVED_AT_DESC": "Sorted by time of arrival, newest first.",
        "RECEIVED_AT_ASC": "Sorted by time of arrival, oldest first.",
        "DATE_ASC": f"Sorted by the header field Date, oldest first. {_DATE}",
        "DATE_DESC": f"Sorted by the header field Date, newest first. {_DATE}",
        "FROM_ASC": f"Sorted by sender from A to Z: {_NAME}. {_TEXT}",
        "FROM_DESC": f"Sorted by sender from Z to A: {_NAME}. {_TEXT}",
        "SEEN_ASC": f"Sorted by the flag \\Seen: unseen messages first, {_SEEN}",
        "SEEN_DESC": f"Sorted by the flag \\Seen: seen messages first, {_SEEN}",
        "SIZE_ASC": "Sorted by size, smallest first.",
        "SIZE_DESC": "Sorted by size, largest first.",
        "SUBJECT_ASC": f"Sorted by {_SUBJECT}, from A to Z. {_TEXT}",
        "SUBJECT_DESC": f"Sorted by {_SUBJECT}, from Z to A. {_TEXT}",
        "RELEVANCE": "Sorted by the place of the searched words, the best match first: subject, "
        "people, file names, beginning of the text. Ranks the newest 500 matches. Requires a "
        "search with words.",
    },
}
