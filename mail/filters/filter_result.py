"""What the filters of an account say of a message: the default that its script goes out from."""

from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Target:
    """Where a filter sends a message on to: an address, a relay or a page."""

    filter_id: int
    shown: str  # without a password
    whole: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class Reply:
    """What a filter answers to the sender."""

    filter_id: int
    subject: str  # "": that of what is answered
    text: str
    html: str


@dataclass(frozen=True, slots=True)
class Decision:
    """What is to be done with a message; without a filter that fits it is as usual."""

    delete: bool = False  # it is not stored; the rest is done all the same
    spam: bool | None = None  # None: no filter says so, or not
    mailbox_id: int | None = None  # where it goes; None: where it would go without filters
    copies: Sequence[int] = ()  # mailboxes where it goes as well
    seen: bool = False
    flagged: bool = False
    labels: Sequence[str] = ()  # keywords
    removed: Sequence[str] = ()  # keywords that it does not have, whoever says so
    targets: Sequence[Target] = ()  # each once
    replies: Sequence[Reply] = ()
    webhooks: Sequence[int] = ()
    matched: Sequence[int] = ()  # filters, in their order


NOTHING = Decision()
