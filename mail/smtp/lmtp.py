"""The LMTP server: mail from trusted servers (RFC 2033)."""

import asyncio
import logging
from pathlib import Path

from mail.delivery.listener_backend import ListenerBackend, LocalBackend
from mail.envelope import smtp_replies
from mail.recipients.recipient_routes import AcceptedRecipient
from mail.smtp import metrics
from mail.smtp.connection_limits import SessionLimits
from mail.smtp.line_protocol import SmtpTransaction
from mail.smtp.listener import SmtpFamilyListener
from mail.smtp.replies import reply_from_error
from mail.smtp.session import SmtpFamilySession
from mail.smtp.spool_file import SpoolFile
from mail.storage import message_trace
from models.runtime.environment import Environment
from models.sessions.live_sessions import SessionService

log = logging.getLogger(__name__)


class LmtpListener(SmtpFamilyListener):
    """The LMTP listener. Its backend accepts recipients and delivers messages."""

    metrics = metrics.LMTP
    service = SessionService.LMTP

    def __init__(
        self,
        environment: Environment,
        spool_folder: Path,
        limits: SessionLimits | None = None,
        backend: ListenerBackend | None = None,
        *,
        process_count: int = 1,
    ) -> None:
        super().__init__(environment, spool_folder, limits, process_count=process_count)
        self.backend = backend or LocalBackend(environment)

    def create_session(self) -> asyncio.BaseProtocol:
        """Return a session for a new connection."""
        return LmtpSession(self)


class LmtpSession(SmtpFamilySession):
    """An LMTP session without AUTH and STARTTLS: clients are trusted by their network."""

    greeting_commands = "LHLO"

    def __init__(self, listener: LmtpListener) -> None:
        super().__init__(listener)
        self._backend = listener.backend
        self._handlers |= {
            "LHLO": self._handle_lhlo,
            "HELO": self._handle_helo,
            "EHLO": self._handle_helo,
        }

    async def _set_up_session_and_get_greeting(self) -> str:
        return f"220 {self.hostname} LMTP"

    async def _handle_lhlo(self, argument: str) -> str:
        return (
            self._reset_and_reply_to_greeting()
            if argument
            else smtp_replies.syntax_reply("LHLO hostname")
        )

    async def _handle_helo(self, _argument: str) -> str:
        return smtp_replies.LHLO_REQUIRED_REPLY

    async def _handle_help(self, _argument: str) -> str:
        return smtp_replies.help_reply("LHLO MAIL RCPT DATA RSET NOOP VRFY HELP QUIT")

    async def _accept_recipient(
        self, transaction: SmtpTransaction, address: str
    ) -> AcceptedRecipient:
        return await self._backend.accept_recipient(address, transaction.envelope_sender)

    def _count_refusal_and_reply(self, transaction: SmtpTransaction, smtp_reply: str) -> list[str]:
        return super()._count_refusal_and_reply(transaction, smtp_reply) * len(
            transaction.accepted_recipients
        )

    async def _deliver(self, spool: SpoolFile, transaction: SmtpTransaction) -> list[str]:
        """Deliver the message and return one reply per recipient."""
        size = spool.size
        recipients = self._recipients_with_queue_id(
            transaction, message_trace.new_queue_id(self.listener.environment)
        )
        with spool:
            try:
                source = await spool.raw_message()
                outcomes = await self._backend.deliver(
                    source, recipients, transaction.envelope_sender
                )
            except Exception as error:  # noqa: BLE001 - nothing is lost: the sender tries again
                return self._count_refusal_and_reply(transaction, reply_from_error(error))
        self.listener.environment.reach_fault_point("reply")
        replies = [
            log_result_and_build_reply(*recipient, size)
            for recipient in zip(recipients, outcomes, strict=True)
        ]
        self.listener.metrics.count_replies(replies, size)
        return replies


def log_result_and_build_reply(
    accepted: AcceptedRecipient, result: object, message_size: int
) -> str:
    """Return the reply for a recipient and log the result."""
    user = accepted.user_id
    if isinstance(result, BaseException):
        reply = reply_from_error(result, user_id=user)
        log.info(
            "Message not delivered", extra={"user": user, "bytes": message_size, "reply": reply}
        )
        return reply
    log.info("Message delivered", extra={"user": user, "bytes": message_size})
    return smtp_replies.queued_reply(accepted.queue_id)


async def start_lmtp_listener(
    environment: Environment,
    host: str,
    port: int,
    *,
    spool_folder: Path,
    limits: SessionLimits | None = None,
) -> LmtpListener:
    """Start an LMTP listener for local accounts. Port 0 selects a free port."""
    lmtp = LmtpListener(environment, spool_folder, limits)
    await lmtp.start(host=host, port=port)
    return lmtp
