"""Closed sets of values in MIME messages."""

from enum import StrEnum


class AttachmentDisposition(StrEnum):
    """Disposition type of a part (RFC 2183). An unknown type counts as ATTACHMENT."""

    ATTACHMENT = "ATTACHMENT"
    INLINE = "INLINE"

    @classmethod
    def from_disposition_type(cls, disposition_type: str | None) -> "AttachmentDisposition | None":
        """Return the disposition that a Content-Disposition header names; None without it."""
        if not disposition_type:
            return None
        return cls.INLINE if disposition_type.lower() == "inline" else cls.ATTACHMENT


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
