"""What spam filters have written on top of a message, or somebody in their name."""

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
MOST = 20  # fields that are read, at either end: a filter writes on top, or behind all others
LONGEST = 200  # characters of one: what counts stands at its beginning

_NAMES = frozenset(NAMES)


@dataclass(frozen=True, slots=True)
class Opinion:
    """A field of a spam filter: its name in lower case, and how it begins."""

    name: str
    text: str


def opinions(own: Sequence[Field]) -> list[Opinion]:
    """The fields of spam filters, of a message's own, topmost first."""
    found = [(name, value) for name, value in own if name in _NAMES]
    if len(found) > 2 * MOST:
        found = [*found[:MOST], *found[-MOST:]]
    return [Opinion(name, unfolded(value[:LONGEST])) for name, value in found]
