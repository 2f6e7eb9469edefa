"""Header fields of spam filters in a received message. They may be forged."""

from collections.abc import Sequence
from dataclasses import dataclass

from mail.mime.encoded_words import unfold_and_decode_utf8
from mail.mime.header_fields import RawField

SPAM_FIELD_NAMES = (  # in lower case
    "x-rspamd-action",
    "x-spam",
    "x-spam-flag",
    "x-spam-level",
    "x-spam-score",
    "x-spam-status",
    "x-spamd-result",
)
MAX_FIELDS_PER_END = (
    20  # fields that are read at each end: a filter writes above or below all other fields
)
MAX_FIELD_LENGTH = 200  # characters that are read of one field

_NAMES = frozenset(SPAM_FIELD_NAMES)


@dataclass(frozen=True, slots=True)
class SpamHeaderField:
    """A header field of a spam filter: name in lower case, and the start of its value."""

    name: str
    text: str


def spam_header_fields(header_fields: Sequence[RawField]) -> list[SpamHeaderField]:
    """Return the fields of spam filters, topmost first."""
    spam_fields = [(name, value) for name, value in header_fields if name in _NAMES]
    if len(spam_fields) > 2 * MAX_FIELDS_PER_END:
        spam_fields = [*spam_fields[:MAX_FIELDS_PER_END], *spam_fields[-MAX_FIELDS_PER_END:]]
    return [
        SpamHeaderField(name, unfold_and_decode_utf8(value[:MAX_FIELD_LENGTH]))
        for name, value in spam_fields
    ]
