"""State of one incoming message during its delivery."""

import asyncio
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property
from pathlib import Path

from mail import sieve
from mail.envelope.client import SmtpClientInfo
from mail.envelope.dsn_parameters import DEFAULT_REPORTS, FULL, DsnRequest, NotifyCondition
from mail.envelope.local_recipient import LocalRecipient
from mail.inbound.dsn_parser import ReceivedDsn
from mail.mime import FileSource
from mail.storage.message_insert import InsertedMessage
from mail.storage.message_trace import TraceRecorder
from mail.storage.storable_message import StorableMessage
from models.submission.tables import COPY_OF_RECEIVED

InboxKey = tuple[int, int]  # an account, and its INBOX
MAX_INLINE_SIZE = 8 * 1024  # bytes of a message that may be looked through on the spot


@dataclass(frozen=True, slots=True)
class FetchedMessageState:
    """The state that a message had on the server it was fetched from."""

    received_at: datetime  # of its arrival there
    scanner_names: frozenset[str]  # scanners that check it
    is_new_mail: bool = False  # it is reported as newly received
    seen: bool = False
    flagged: bool = False
    answered: bool = False
    draft: bool = False
    keywords: tuple[str, ...] = ()


@dataclass
class IncomingMessage:
    """A message while it passes the delivery steps."""

    raw_message: bytes | Path
    message: StorableMessage
    envelope_sender: str  # empty for the null path
    client: SmtpClientInfo | None = None  # None: it was not received by SMTP
    from_trusted_server: bool = False  # its spam and authentication fields are trusted
    skip_spam_filter: bool = False  # it comes from a trusted forwarding host
    is_scanned: bool = False  # the scan is finished; its result is in `message.scan`
    fetched: FetchedMessageState | None = None  # None: no connector fetched it
    applies_bcc_rules: bool = True  # False for a copy
    submission_id: int = COPY_OF_RECEIVED  # of a local user who sent it
    dsn: ReceivedDsn | None = None  # None: it is no DSN of another server
    dsn_requests: dict[InboxKey, DsnRequest] = field(default_factory=dict)
    # None: quarantined, or not stored by a rule
    results: dict[InboxKey, InsertedMessage | BaseException | None] = field(default_factory=dict)
    # held while an encrypted copy is in memory
    encryption_lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    trace: TraceRecorder = field(default_factory=TraceRecorder)

    @cached_property
    def sieve_message(self) -> sieve.SieveMessage:
        """The message as filters and scripts read it. All recipients share decoded parts."""
        source = self.raw_message
        raw = FileSource(source, self.message.size) if isinstance(source, Path) else source
        return sieve.ParsedSieveMessage(raw, self.message.facts.structure)

    def dsn_request_of_recipient_or_default(self, recipient: LocalRecipient) -> DsnRequest:
        """Return the DSN request for an account, in any of its mailboxes."""
        dsn_requests = (
            dsn_request
            for (user, _), dsn_request in self.dsn_requests.items()
            if user == recipient.user_id
        )
        return next(dsn_requests, DEFAULT_REPORTS)

    def dsn_request_for_forward_without_success(self, recipient: LocalRecipient) -> DsnRequest:
        """Return the DSN request for the targets of an account.

        Success is not reported: the message has reached the account. A failure returns a fetched
        message completely, since its source can be deleted.
        """
        dsn_request = self.dsn_request_of_recipient_or_default(recipient)
        return DsnRequest(
            dsn_request.without_condition(NotifyCondition.SUCCESS).conditions,
            ret=dsn_request.ret if self.fetched is None else FULL,
        )

    def redirect_sender(self, recipient: LocalRecipient) -> str:
        """Return the envelope sender of redirects that an account makes of the message.

        A fetched message has no envelope sender, but its account must learn of failures.
        """
        return self.envelope_sender if self.fetched is None else recipient.receiving_address

    @property
    def is_small_and_in_memory(self) -> bool:
        """True if the message is in memory and at most MAX_INLINE_SIZE bytes long."""
        return isinstance(self.raw_message, bytes) and self.message.size <= MAX_INLINE_SIZE

    @property
    def content_digest(self) -> str:
        """The digest of the message as it was received. It identifies a repeated delivery."""
        return self.message.received_digest or self.message.digest

    @property
    def authentication_results(self) -> str | None:
        """The Authentication-Results of the message for an ARC seal, None if it was not checked."""
        return (self.message.authentication or {}).get("results")
