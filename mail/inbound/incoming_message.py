"""State of one incoming message during its delivery."""

import asyncio
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property
from pathlib import Path

from mail import sieve
from mail.envelope.client import Client
from mail.envelope.dsn_parameters import USUAL, On, Wish
from mail.envelope.local_recipient import Recipient
from mail.inbound.dsn_parser import Report
from mail.mime import OnDisk
from mail.storage.message_insert import Letter, Placed
from mail.storage.message_trace import Way
from models.submission.tables import ARRIVED

Key = tuple[int, int]  # an account, and its INBOX
SMALL = 8 * 1024  # bytes of a message that may be looked through on the spot


@dataclass(frozen=True, slots=True)
class Fetched:
    """The state that a message had on the server it was fetched from."""

    at: datetime  # of its arrival there
    scanners: frozenset[str]  # that are to look at it, of those there are
    news: bool = False  # it is told as mail that has just come
    seen: bool = False
    flagged: bool = False
    answered: bool = False
    draft: bool = False
    keywords: tuple[str, ...] = ()


@dataclass
class Mail:
    """A message while it passes the delivery steps."""

    source: bytes | Path
    letter: Letter
    sender: str  # envelope; empty for the null path
    client: Client | None = None  # who handed it in by SMTP
    handed: bool = False  # by a neighbour, whose filters are believed
    unfiltered: bool = False  # from a forwarding host: no filter is asked whether it is spam
    fetched: Fetched | None = None  # from an account elsewhere
    copied: bool = True  # by rules; a copy itself is not
    submission_id: int = ARRIVED  # by which one of our users sent it
    report: Report | None = None  # that it is, of another server
    wishes: dict[Key, Wish] = field(default_factory=dict)  # of its sender
    placed: dict[Key, Placed | BaseException | None] = field(default_factory=dict)  # None: held
    apart: asyncio.Lock = field(default_factory=asyncio.Lock)  # of who holds a copy of its bytes
    way: Way = field(default_factory=Way)  # what is told of it: mail/delivery/trace_steps.py

    @cached_property
    def read(self) -> sieve.Message:
        """The message as filters and scripts read it. All recipients share decoded parts."""
        source = self.source
        raw = OnDisk(source, self.letter.size) if isinstance(source, Path) else source
        return sieve.Letter(raw, self.letter.facts.structure)

    def wish_of(self, to: Recipient) -> Wish:
        """Return the DSN request for an account, in any of its mailboxes."""
        theirs = (wish for (user, _), wish in self.wishes.items() if user == to.user_id)
        return next(theirs, USUAL)

    def passed_on(self, to: Recipient) -> Wish:
        """Return the DSN request for the targets of an account.

        Success is not reported: the message has reached the account.
        """
        wish = self.wish_of(to)
        return Wish(wish.without(On.SUCCESS).on, ret=wish.ret)

    @property
    def near(self) -> bool:
        """True if the message is in memory and at most MAX_INLINE_SIZE bytes long."""
        return isinstance(self.source, bytes) and self.letter.size <= SMALL

    @property
    def came(self) -> str:
        """The digest of the message as it was received. It identifies a repeated delivery."""
        return self.letter.came or self.letter.digest

    @property
    def results(self) -> str | None:
        """The Authentication-Results of the message for an ARC seal, None if it was not checked."""
        return (self.letter.verification or {}).get("results")
