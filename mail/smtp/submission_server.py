"""The submission server: mail of local users (RFC 6409) after sign-in (RFC 4954)."""

import asyncio
import base64
import binascii
import logging
import re
from collections.abc import Awaitable
from dataclasses import replace
from pathlib import Path
from typing import cast

from mail.addresses.address_syntax import normalize_and_validate_address
from mail.envelope import smtp_replies
from mail.recipients.recipient_routes import AcceptedRecipient
from mail.smtp import bearer_responses, metrics
from mail.smtp.connection_limits import SessionLimits
from mail.smtp.credential_watch import CredentialWatch
from mail.smtp.line_protocol import CommandRejected, SmtpTransaction
from mail.smtp.replies import reply_from_error
from mail.smtp.smtp_server import SmtpListener, SmtpListenerConfig, SmtpSession
from mail.smtp.spool_file import SpoolFile
from mail.smtp.submission_backend import SmtpSubmitter, SubmissionBackend
from models.errors import (
    AuthenticationFailed,
    Forbidden,
    InvalidInput,
    RateLimited,
    RequestError,
    Unauthenticated,
)
from models.runtime.environment import Environment
from models.sessions.live_sessions import SessionService

log = logging.getLogger(__name__)

MAX_FAILURES = 3  # failed sign-ins per session
PASSWORD_MECHANISMS = ("PLAIN", "LOGIN")
TOKEN_MECHANISMS = ("XOAUTH2", "OAUTHBEARER")
UNPRINTABLE = re.compile(r"[^\x20-\x7e]+")


class SubmissionListener(SmtpListener):
    """The submission listener."""

    metrics = metrics.SUBMISSION
    service = SessionService.SUBMISSION

    def __init__(
        self,
        environment: Environment,
        spool_folder: Path,
        config: SmtpListenerConfig,
        backend: SubmissionBackend,
    ) -> None:
        super().__init__(environment, spool_folder, config)
        self.backend = backend
        sessions = cast("set[SubmissionSession]", self.sessions)
        self.credential_watch = CredentialWatch(environment, backend, sessions)

    @property
    def limits(self) -> SessionLimits:
        """The limits of a session that begins now."""
        return replace(
            super().limits, max_recipients=self.environment.options.submission_max_recipients
        )

    def create_session(self) -> asyncio.BaseProtocol:
        """Return a session for a new connection."""
        return SubmissionSession(self)

    async def close(self, timeout: float = 30) -> None:  # noqa: ASYNC109 - as in the base class
        """Close all connections as the base class does, and stop the watch of credentials."""
        await super().close(timeout)
        self.credential_watch.close()


class SubmissionSession(SmtpSession):
    """A submission session. MAIL is refused before TLS and AUTH."""

    def __init__(self, listener: SubmissionListener) -> None:
        super().__init__(listener)
        self._backend = listener.backend
        self._credential_watch = listener.credential_watch
        self._submitter: SmtpSubmitter | None = None
        self._failure_count = 0
        self._handlers["AUTH"] = self._handle_auth

    @property
    def submitter(self) -> SmtpSubmitter | None:
        """The user who has signed in, with the credential; None without one."""
        return self._submitter

    @property
    def user_id(self) -> int | None:
        """The user who has signed in; None without one."""
        return self._submitter.user_id if self._submitter else None

    def _extensions(self) -> list[str]:
        offers = super()._extensions()
        return (
            [*offers, f"AUTH {' '.join(self._mechanisms)}"]
            if self.tls_description and not self._submitter
            else offers
        )

    @property
    def _mechanisms(self) -> tuple[str, ...]:
        """The SASL mechanisms. Those with tokens are offered if OAuth clients can get tokens."""
        has_oauth = bool(self.listener.environment.options.public_url)
        return (*PASSWORD_MECHANISMS, *TOKEN_MECHANISMS) if has_oauth else PASSWORD_MECHANISMS

    def _closing_reply_at_limit(self) -> str | None:
        if self._failure_count >= MAX_FAILURES:
            return self._with_hostname(smtp_replies.TOO_MANY_AUTHENTICATION_FAILURES_REPLY)
        return super()._closing_reply_at_limit()

    async def _handle_auth(self, argument: str) -> str:
        if problem := self._reply_if_auth_not_allowed():
            return problem
        mechanism, _, initial = argument.partition(" ")
        if mechanism.upper() not in self._mechanisms:
            return smtp_replies.UNKNOWN_MECHANISM_REPLY
        if mechanism.upper() in TOKEN_MECHANISMS:
            return await self._handle_token_auth(mechanism.upper(), initial)
        plain = mechanism.upper() == "PLAIN"
        try:
            credentials = await (
                self._read_plain_credentials_or_none(initial)
                if plain
                else self._read_login_credentials_or_none(initial)
            )
        except (binascii.Error, UnicodeDecodeError):
            return smtp_replies.UNDECODABLE_RESPONSE_REPLY
        if credentials is None:
            return smtp_replies.AUTHENTICATION_ABORTED_REPLY
        return await self._sign_in_and_reply(self._backend.sign_in(*credentials, self.ip))

    async def _handle_token_auth(self, mechanism: str, initial: str) -> str:
        """Handle AUTH XOAUTH2 and AUTH OAUTHBEARER (RFC 7628)."""
        try:
            text = await self._read_response("", initial)
        except (binascii.Error, UnicodeDecodeError):
            return smtp_replies.UNDECODABLE_RESPONSE_REPLY
        if text is None:
            return smtp_replies.AUTHENTICATION_ABORTED_REPLY
        credentials = bearer_responses.parse_bearer_response_or_none(mechanism, text)
        if credentials is None:
            return smtp_replies.UNDECODABLE_RESPONSE_REPLY
        reply = await self._sign_in_and_reply(
            self._backend.sign_in_by_token(credentials.login_name, credentials.token, self.ip)
        )
        if reply == smtp_replies.CREDENTIALS_INVALID_REPLY:
            await self._send_token_error(mechanism)
        return reply

    async def _send_token_error(self, mechanism: str) -> None:
        """Send the error of a token as a challenge, and read the client's empty response."""
        issuer = self.listener.environment.options.public_url.rstrip("/")
        challenge = bearer_responses.error_challenge(mechanism, issuer)
        await self.push(f"334 {challenge}")
        await self._command_reader.read_line()
        self._reset_timeout()

    def _reply_if_auth_not_allowed(self) -> str | None:
        """Return the reply to AUTH if the session does not allow it now, else None."""
        if not self._has_greeted:
            return smtp_replies.greeting_required_reply(self.greeting_commands)
        if self._submitter:
            return smtp_replies.ALREADY_AUTHENTICATED_REPLY
        if self._transaction:
            return smtp_replies.AUTH_IN_TRANSACTION_REPLY
        return None if self.tls_description else smtp_replies.ENCRYPTION_REQUIRED_REPLY

    async def _read_plain_credentials_or_none(self, initial: str) -> tuple[str, str] | None:
        """Return name and password of AUTH PLAIN (RFC 4616), None if it is cancelled.

        Raises CommandRejected if the response has another form.
        """
        text = await self._read_response("", initial)
        if text is None:
            return None
        authorization_id, *credentials = text.split("\0")
        if len(credentials) != 2 or authorization_id not in ("", credentials[0]):  # noqa: PLR2004
            raise CommandRejected(smtp_replies.BAD_PLAIN_RESPONSE_REPLY)
        return credentials[0], credentials[1]

    async def _read_login_credentials_or_none(self, initial: str) -> tuple[str, str] | None:
        """Return name and password of AUTH LOGIN, None if it is cancelled."""
        name = await self._read_response("Username:", initial)
        password = None if name is None else await self._read_response("Password:")
        return None if name is None or password is None else (name, password)

    async def _read_response(self, challenge: str, initial: str = "") -> str | None:
        """Return the decoded initial response, or the response to a challenge.

        None if the client cancels. Raises binascii.Error, UnicodeDecodeError.
        """
        line = initial.encode()
        if not line:
            await self.push(f"334 {base64.b64encode(challenge.encode()).decode()}")
            line = await self._command_reader.read_line()
            self._reset_timeout()
            if line == b"*":
                return None
        return base64.b64decode(b"" if line == b"=" else line, validate=True).decode()

    async def _sign_in_and_reply(self, signing_in: Awaitable[SmtpSubmitter]) -> str:
        """Await a sign-in and return the reply."""
        change_count = self._credential_watch.change_count
        try:
            submitter = await signing_in
        except RateLimited:
            self._failure_count += 1
            return smtp_replies.AUTHENTICATION_THROTTLED_REPLY
        except (AuthenticationFailed, Unauthenticated, Forbidden, InvalidInput):
            self._failure_count += 1
            return smtp_replies.CREDENTIALS_INVALID_REPLY
        if not self.listener.environment.live_sessions.accepts_sessions_of(submitter.user_id):
            return smtp_replies.NOT_ACCEPTED_NOW_REPLY
        self._submitter, self.login_name = submitter, submitter.login_name
        self._credential_watch.note_sign_in(submitter.user_id, change_count)
        return smtp_replies.AUTHENTICATED_REPLY

    def _reply_to_refusal_and_end_after_421(
        self, error: RequestError, *, is_about_sender: bool = False
    ) -> str:
        """Return the reply to a refusal. After 421 the session ends (RFC 5321, section 4.2.2)."""
        text = submission_reply_from_error(error, self.hostname, is_about_sender=is_about_sender)
        self._is_ending |= text.startswith("421")
        return text

    def _require_submitter(self) -> SmtpSubmitter:
        """Return the user. Raises CommandRejected before sign-in."""
        if self._submitter is None:
            can_start_tls = self.config.has_tls and not self.tls_description
            raise CommandRejected(
                smtp_replies.STARTTLS_REQUIRED_REPLY
                if can_start_tls
                else smtp_replies.AUTHENTICATION_REQUIRED_REPLY
            )
        return self._submitter

    async def _begin_transaction(
        self, envelope_sender: str, parameters: dict[str, str]
    ) -> SmtpTransaction:
        writer = self._require_submitter()
        parameters.pop("AUTH", None)  # RFC 4954, section 5: the signed-in user is used
        transaction = await super()._begin_transaction(envelope_sender, parameters)
        try:
            await self._backend.require_sender_and_sending_limits(writer, envelope_sender)
        except RequestError as error:
            raise CommandRejected(
                self._reply_to_refusal_and_end_after_421(error, is_about_sender=True)
            ) from error
        return transaction

    async def _accept_recipient(
        self, transaction: SmtpTransaction, address: str
    ) -> AcceptedRecipient:
        del transaction
        return AcceptedRecipient(normalize_and_validate_address(address, allows_quotes=True))

    def _added_fields(self, transaction: SmtpTransaction) -> bytes:
        return self._received_field(transaction, f"{self.listener.environment.new_id():x}")

    async def _deliver(self, spool: SpoolFile, transaction: SmtpTransaction) -> list[str]:
        """Queue the message and return one reply for all recipients."""
        writer, size = self._require_submitter(), spool.size
        recipients = [
            (recipient.address, recipient.dsn_request)
            for recipient in transaction.accepted_recipients
        ]
        with spool:
            try:
                source = await spool.raw_message()
                key = await self._backend.submit(
                    writer, source, transaction.envelope_sender, recipients
                )
            except RequestError as error:
                return self._count_refusal_and_reply(
                    transaction, self._reply_to_refusal_and_end_after_421(error)
                )
            except Exception as error:  # noqa: BLE001 - nothing is lost: the client still has the message
                return self._count_refusal_and_reply(
                    transaction, reply_from_error(error, user_id=writer.user_id)
                )
        answer = smtp_replies.queued_reply(key)
        log.info("Message submitted", extra={"user": writer.user_id, "bytes": size, "id": key})
        self.listener.metrics.count_replies([answer] * len(recipients), size)
        self.listener.environment.reach_fault_point("reply")
        return [answer]


def submission_reply_from_error(
    error: RequestError, hostname: str, *, is_about_sender: bool = False
) -> str:
    """Return the reply to a refusal, with its own text: the reader has signed in."""
    text = UNPRINTABLE.sub("?", error.message)[:200]
    if isinstance(error, RateLimited):
        return smtp_replies.sending_limit_reply(text)
    if isinstance(error, AuthenticationFailed | Unauthenticated):
        return smtp_replies.CREDENTIALS_EXPIRED_REPLY.format(hostname=hostname)
    if isinstance(error, Forbidden):
        return (
            smtp_replies.sender_not_allowed_reply(text)
            if is_about_sender
            else smtp_replies.message_not_allowed_reply(text)
        )
    if isinstance(error, InvalidInput):
        return (
            smtp_replies.invalid_sender_reply(text)
            if is_about_sender
            else smtp_replies.invalid_message_reply(text)
        )
    return smtp_replies.TRY_LATER_REPLY
