"""The result of the filters of an account, the default for its script."""

from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Target:
    """An address, relay or webhook that a filter sends a message to."""

    filter_id: int
    shown: str  # without the password; an address for mail targets
    whole: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class Reply:
    """The automatic reply of a filter."""

    filter_id: int
    subject: str  # "": made from the original subject
    text: str
    html: str


@dataclass(frozen=True, slots=True)
class Decision:
    """What filters do with a message. The default is what happens without filters."""

    delete: bool = False  # not stored; the other actions still apply
    spam: bool | None = None  # None: no filter decides
    mailbox_id: int | None = None  # None: the mailbox used without filters
    copies: Sequence[int] = ()  # mailboxes that get a copy
    seen: bool = False
    flagged: bool = False
    labels: Sequence[str] = ()
    removed: Sequence[str] = ()  # keywords that are not set
    targets: Sequence[Target] = ()  # without duplicates
    replies: Sequence[Reply] = ()
    webhooks: Sequence[int] = ()
    matched: Sequence[int] = ()  # filters that matched, in order


NOTHING = Decision()
