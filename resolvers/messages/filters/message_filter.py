"""The conditions of a message filter."""

from datetime import datetime
from typing import NamedTuple

from models.files.blobs import StorageTier
from models.submission.tables import SubmissionState
from resolvers.mailboxes.loaders import MailboxSelector


class MessageConditions(NamedTuple):
    """Conditions that must all hold. None tests nothing; an empty list holds for no message.

    A named tuple with so many fields is made and copied five times as fast as a dataclass.
    """

    every: tuple["MessageConditions", ...] | None = None
    some: tuple["MessageConditions", ...] | None = None
    none: "MessageConditions | None" = None
    query: str | None = None
    text: str | None = None
    body: str | None = None
    from_: str | None = None
    to: str | None = None  # not Cc
    to_or_cc: str | None = None
    cc: str | None = None
    bcc: str | None = None
    any_recipient: str | None = None  # To, Cc, Bcc or the envelope
    subject: str | None = None
    list_id: str | None = None
    header: tuple[str, str | None] | None = None  # name, and a part of its value
    message_id_header: str | None = None
    mailbox: MailboxSelector | None = None
    mailboxes: tuple[MailboxSelector, ...] | None = None
    mailbox_patterns: tuple[str, ...] | None = None  # with * and %
    searchable: bool | None = None
    thread_id: int | None = None
    uids: str | None = None
    seqs: str | None = None
    email_ids: tuple[str, ...] | None = None
    seen: bool | None = None
    flagged: bool | None = None
    answered: bool | None = None
    draft: bool | None = None
    deleted: bool | None = None
    forwarded: bool | None = None
    keyword: str | None = None
    tier: StorageTier | None = None  # the tier of the body
    received_since: datetime | None = None
    received_before: datetime | None = None
    sent_since: datetime | None = None
    sent_before: datetime | None = None
    saved_since: datetime | None = None
    saved_before: datetime | None = None
    expires_before: datetime | None = None
    larger: int | None = None
    smaller: int | None = None
    has_attachment: bool | None = None
    attachment: tuple[str | None, str | None] | None = None  # parts of file name and type
    modified_since: int | None = None
    snoozed: bool | None = None
    submission_states: tuple[SubmissionState, ...] | None = (
        None  # states of the submission that the message is a copy of
    )

    @property
    def is_empty(self) -> bool:
        """True if there are no conditions, so that all messages match."""
        return self == _ANY


_ANY = MessageConditions()
