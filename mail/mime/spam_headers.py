"""Header fields of spam filters in a received message. They may be forged."""

from collections.abc import Sequence
from dataclasses import dataclass

from mail.mime.encoded_words import unfolded
from mail.mime.header_fields import Field

NAMES = (  # in lower case
    "x-rspamd-action",
    "x-spam",
    "x-spam-flag",
    "x-spam-level",
    "x-spam-score",
    "x-spam-status",
    "x-spamd-result",
)
MOST = 20  # fields that are read at each end: a filter writes above or below all other fields
LONGEST = 200  # characters that are read of one field

_NAMES = frozenset(NAMES)


@dataclass(frozen=True, slots=True)
class Opinion:
    """A header field of a spam filter: name in lower case, and the start of its value."""

    name: str
    text: str


def opinions(own: Sequence[Field]) -> list[Opinion]:
    """Return the fields of spam filters, topmost first."""
    found = [(name, value) for name, value in own if name in _NAMES]
    if len(found) > 2 * MOST:
        found = [*found[:MOST], *found[-MOST:]]
    return [Opinion(name, unfolded(value[:LONGEST])) for name, value in found]
