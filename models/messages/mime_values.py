"""Closed sets of values in MIME messages."""

from enum import StrEnum


class AttachmentDisposition(StrEnum):
    """Disposition type of a part (RFC 2183). An unknown type counts as ATTACHMENT."""

    ATTACHMENT = "ATTACHMENT"
    INLINE = "INLINE"

    @classmethod
    def from_header_word(cls, word: str | None) -> "AttachmentDisposition | None":
        """Return the disposition of a Content-Disposition header; None without the header."""
        if not word:
            return None
        return cls.INLINE if word.lower() == "inline" else cls.ATTACHMENT


class CalendarMethod(StrEnum):
    """iTIP method of a calendar (RFC 5546)."""

    PUBLISH = "PUBLISH"
    REQUEST = "REQUEST"
    REPLY = "REPLY"
    ADD = "ADD"
    CANCEL = "CANCEL"
    REFRESH = "REFRESH"
    COUNTER = "COUNTER"
    DECLINECOUNTER = "DECLINECOUNTER"
