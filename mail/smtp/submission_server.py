"""The submission server: mail of local users (RFC 6409) after sign-in (RFC 4954)."""

import asyncio
import base64
import binascii
import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from mail.addresses.address_syntax import checked
from mail.envelope.dsn_parameters import Wish
from mail.recipients.recipient_routes import Taken
from mail.smtp import metrics
from mail.smtp.connection_limits import Limits
from mail.smtp.line_protocol import Transaction, Wrong
from mail.smtp.replies import TRY_LATER, refusal
from mail.smtp.smtp_server import Smtp, SmtpSession, Terms
from mail.smtp.spool_file import Spool
from models.errors import (
    AuthenticationFailed,
    Forbidden,
    Invalid,
    RateLimited,
    Refused,
    Unauthenticated,
)
from models.runtime.environment import World

log = logging.getLogger(__name__)

FAILURES = 3  # failed sign-ins per session
ODD = re.compile(r"[^\x20-\x7e]+")

NOT_SIGNED_IN = "530 5.7.0 Sign in first"
SIGN_IN_FAILED = "535 5.7.8 That does not sign anybody in"
TOO_MANY_FAILURES = "454 4.7.0 Too many failures, wait before the next try"


@dataclass(frozen=True, slots=True)
class Writer:
    """The user who has signed in to a session."""

    user_id: int
    name: str
    auth_version: int
    ip: str | None
    app_password_id: int | None = None  # None: signed in with the password of the account


class Clerk(Protocol):
    """The backend that signs users in and queues their messages."""

    async def sign_in(self, name: str, password: str, ip: str | None) -> Writer:
        """Sign a user in. Raises Refused if that fails."""

    async def may_send(self, writer: Writer, sender: str) -> None:
        """Raise Refused if the user must not send as this address now; "" is the null sender."""

    async def submit(
        self, writer: Writer, source: bytes | Path, sender: str, to: Sequence[tuple[str, Wish]]
    ) -> str:
        """Queue a message for recipients, each with its DSN request; return the queue ID.

        Raises Refused; then nothing is queued.
        """


class Submission(Smtp):
    """The submission listener."""

    intake = metrics.SUBMISSION

    def __init__(self, world: World, spool: Path, terms: Terms, clerk: Clerk) -> None:
        super().__init__(world, spool, terms)
        self.clerk = clerk

    @property
    def limits(self) -> Limits:
        """The limits of a session that begins now."""
        return replace(super().limits, recipients=self.world.options.max_recipients)

    def converse(self) -> asyncio.BaseProtocol:
        """Return a session for a new connection."""
        return SubmissionSession(self)


class SubmissionSession(SmtpSession):
    """A submission session. MAIL is refused before TLS and AUTH."""

    def __init__(self, listener: Submission) -> None:
        super().__init__(listener)
        self._clerk = listener.clerk
        self._signed: Writer | None = None
        self._failures = 0
        self._verbs["AUTH"] = self._auth

    def _offers(self) -> list[str]:
        offers = super()._offers()
        return [*offers, "AUTH PLAIN LOGIN"] if self.tls and not self._signed else offers

    def _ending(self) -> str | None:
        if self._failures >= FAILURES:
            return "421 4.7.0 Too many failures"
        return super()._ending()

    async def _auth(self, argument: str) -> str:
        if not self._greeted or self._signed or self._transaction:
            return "503 5.5.1 Not now"
        if not self.tls:
            return "538 5.7.11 Only over TLS: say STARTTLS first"
        mechanism, _, initial = argument.partition(" ")
        if mechanism.upper() not in {"PLAIN", "LOGIN"}:
            return "504 5.5.4 Sign in by PLAIN or LOGIN"
        plain = mechanism.upper() == "PLAIN"
        try:
            shown = await (self._plain(initial) if plain else self._login(initial))
        except (binascii.Error, UnicodeDecodeError):
            return "501 5.5.2 That is not as it has to be"
        if shown is None:
            return "501 5.7.0 Not signed in"
        return await self._signed_in(*shown)

    async def _plain(self, initial: str) -> tuple[str, str] | None:
        """Return name and password of AUTH PLAIN (RFC 4616), None if it is cancelled."""
        text = await self._answer("", initial)
        if text is None:
            return None
        wanted, *shown = text.split("\0")
        if len(shown) != 2 or wanted not in ("", shown[0]):  # noqa: PLR2004
            raise binascii.Error
        return shown[0], shown[1]

    async def _login(self, initial: str) -> tuple[str, str] | None:
        """Return name and password of AUTH LOGIN, None if it is cancelled."""
        name = await self._answer("Username:", initial)
        password = None if name is None else await self._answer("Password:")
        return None if name is None or password is None else (name, password)

    async def _answer(self, challenge: str, initial: str = "") -> str | None:
        """Return the decoded initial response, or the response to a challenge.

        None if the client cancels. Raises binascii.Error, UnicodeDecodeError.
        """
        line = initial.encode()
        if not line:
            await self.push(f"334 {base64.b64encode(challenge.encode()).decode()}")
            line = await self._wire.line()
            self._reset_timeout()
            if line == b"*":
                return None
        return base64.b64decode(b"" if line == b"=" else line, validate=True).decode()

    async def _signed_in(self, name: str, password: str) -> str:
        """Sign the user in and return the reply."""
        try:
            self._signed = await self._clerk.sign_in(name, password, self.ip)
        except RateLimited:
            self._failures += 1
            return TOO_MANY_FAILURES
        except (AuthenticationFailed, Unauthenticated, Forbidden, Invalid):
            self._failures += 1
            return SIGN_IN_FAILED
        self.user = self._signed.name
        return "235 2.7.0 Signed in"

    def _reply(self, error: Refused, *, sender: bool = False) -> str:
        """Return the reply to a refusal. After 421 the session ends (RFC 5321, section 4.2.2)."""
        text = reply(error, sender=sender)
        self._leaving |= text.startswith("421")
        return text

    def _who(self) -> Writer:
        """Return the user. Raises CommandRejected before sign-in."""
        if self._signed is None:
            raise Wrong(NOT_SIGNED_IN)
        return self._signed

    async def _begun(self, sender: str, parameters: dict[str, str]) -> Transaction:
        writer = self._who()
        parameters.pop("AUTH", None)  # RFC 4954, section 5: the signed-in user is used
        transaction = await super()._begun(sender, parameters)
        try:
            await self._clerk.may_send(writer, sender)
        except Refused as error:
            raise Wrong(self._reply(error, sender=True)) from error
        return transaction

    async def _accepted(self, transaction: Transaction, address: str) -> Taken:
        del transaction
        return Taken(checked(address))

    def _on_top(self, transaction: Transaction) -> bytes:
        return self._hop(transaction, f"{self.listener.world.key():x}")

    async def _done(self, spool: Spool, transaction: Transaction) -> list[str]:
        """Queue the message and return one reply for all recipients."""
        writer, size = self._who(), spool.size
        to = [(taken.address, taken.wish) for taken in transaction.recipients]
        with spool:
            try:
                source = await spool.source()
                key = await self._clerk.submit(writer, source, transaction.sender, to)
            except Refused as error:
                return self._refused(transaction, self._reply(error))
            except Exception as error:  # noqa: BLE001 - nothing is lost: the client still has the message
                return self._refused(transaction, refusal(error, user=writer.user_id))
        answer = f"250 2.0.0 Queued as {key}"
        log.info("submitted", extra={"user": writer.user_id, "bytes": size, "id": key})
        self.listener.intake.count([answer] * len(to), size)
        self.listener.world.fault("reply")
        return [answer]


def reply(error: Refused, *, sender: bool = False) -> str:
    """Return the reply to a refusal, with its own text: the reader has signed in."""
    text = ODD.sub("?", error.message)[:200]
    if isinstance(error, RateLimited):
        return f"450 4.7.1 {text}"
    if isinstance(error, AuthenticationFailed | Unauthenticated):
        return "421 4.7.0 Sign in again"
    if isinstance(error, Forbidden):
        return f"{'553' if sender else '550'} 5.7.1 {text}"
    if isinstance(error, Invalid):
        return f"553 5.1.7 {text}" if sender else f"554 5.6.0 {text}"
    return TRY_LATER
