"""The result of the filters of an account, the default for its script."""

from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class FilterTarget:
    """An address, relay or webhook that a filter sends a message to."""

    filter_id: int
    public_url: str  # without the password; an address for mail targets
    secret_url: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class FilterReplyContent:
    """The automatic reply of a filter."""

    filter_id: int
    subject: str  # "": made from the original subject
    text: str
    html_text: str


@dataclass(frozen=True, slots=True)
class FilterResult:
    """What filters do with a message. The default is what happens without filters."""

    is_deleted: bool = False  # not stored; the other actions still apply
    is_spam: bool | None = None  # None: no filter decides
    mailbox_id: int | None = None  # None: the mailbox used without filters
    copy_mailbox_ids: Sequence[int] = ()  # mailboxes that get a copy
    is_seen: bool = False
    is_flagged: bool = False
    added_keywords: Sequence[str] = ()
    removed_keywords: Sequence[str] = ()  # keywords that are not set
    targets: Sequence[FilterTarget] = ()  # without duplicates
    replies: Sequence[FilterReplyContent] = ()
    webhook_ids: Sequence[int] = ()
    matched_filter_ids: Sequence[int] = ()  # filters that matched, in order
    stopped_filter_ids: Sequence[int] = ()  # filters that a step limit stopped or skipped


NO_FILTERS = FilterResult()
