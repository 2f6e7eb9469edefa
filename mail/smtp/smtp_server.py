"""The part of the SMTP server that MX server and submission share (RFC 5321).

It handles the client's network, TLS, the greeting and the Received field.
"""

import asyncio
from dataclasses import dataclass, field, replace
from pathlib import Path

from mail.envelope import smtp_replies
from mail.envelope.client import SmtpClientInfo
from mail.network.byte_stream import ConnectionClosed
from mail.network.ip_networks import is_in_networks, network_for_limits
from mail.smtp import proxy_protocol
from mail.smtp.connection_limits import SessionLimits
from mail.smtp.line_protocol import SmtpTransaction
from mail.smtp.listener import SmtpFamilyListener
from mail.smtp.received_header import HELO_PATTERN, ReceivedField
from mail.smtp.replies import reply_from_error
from mail.smtp.session import SmtpFamilySession
from mail.throttling.network_failures import count_failure_and_ban_at_limit
from mail.tls.server_tls import CertificateSource, TlsStream
from models.runtime.concurrency_limits import ConcurrencyLimiter, ConcurrencySlot
from models.runtime.environment import Environment
from models.throttling.policy import BanCause

MAX_CONNECTIONS_PER_NETWORK = 20


@dataclass(frozen=True, slots=True)
class SmtpListenerConfig:
    """The configuration of a listener. Without a certificate it offers no TLS."""

    limits: SessionLimits = field(default_factory=SessionLimits)
    max_connections_per_network: int = MAX_CONNECTIONS_PER_NETWORK  # connections per network
    certificates: CertificateSource | None = None
    implicit_tls: bool = False  # TLS from the first byte
    proxy_networks: tuple[str, ...] = ()  # networks of balancers that speak the PROXY protocol

    @property
    def has_tls(self) -> bool:
        """True if a connection that begins now can use TLS."""
        return self.certificates is not None and self.certificates.is_ready


class SmtpListener(SmtpFamilyListener):
    """An SMTP listener with a limit of connections per network."""

    def __init__(
        self, environment: Environment, spool_folder: Path, config: SmtpListenerConfig
    ) -> None:
        self.config = config
        self.connection_limiter = ConcurrencyLimiter(
            config.limits.max_connections, config.max_connections_per_network
        )
        super().__init__(environment, spool_folder, config.limits)

    @property
    def limits(self) -> SessionLimits:
        """The limits of a session that begins now. The message size is a setting."""
        largest, limits = self.environment.options.message_max_size, self.config.limits
        return replace(
            limits, max_message_size=largest, byte_budget=max(limits.byte_budget, largest)
        )

    @property
    def _sends_refusal(self) -> bool:
        return not self.config.implicit_tls


class SmtpSession(SmtpFamilySession):
    """An SMTP session, without the delivery of messages."""

    def __init__(self, listener: SmtpListener) -> None:
        super().__init__(listener)
        self.config = listener.config
        self.helo = ""
        self.tls_description: str | None = None  # version and cipher
        self.login_name: str | None = None  # user who has signed in
        self._connection_limiter = listener.connection_limiter
        self._connection_slot: ConcurrencySlot | None = None
        self._is_esmtp = False
        self._is_handshaking = False
        self._tls_stream: TlsStream | None = None
        self._handlers |= {
            "HELO": self._handle_helo,
            "EHLO": self._handle_ehlo,
            "STARTTLS": self._handle_starttls,
        }

    @property
    def ip(self) -> str | None:
        """The address of the client, also behind a trusted proxy; None without one."""
        return self.peer.ip

    @property
    def client(self) -> SmtpClientInfo:
        """The address, HELO name, TLS and user of the client."""
        return SmtpClientInfo(self.ip, self.helo, self.tls_description, self.login_name)

    @property
    def network(self) -> str | None:
        """The network of the client, which limits apply to."""
        return network_for_limits(self.ip)

    async def _set_up_session_and_get_greeting(self) -> str:
        if is_in_networks(self.ip, self.config.proxy_networks):
            client_ip = await proxy_protocol.read_client_ip(self._command_reader)
            if client_ip is not None:
                self.peer = replace(self.peer, ip=client_ip, is_proxied=True)
            if self.listener.environment.refuses_ip(self.ip):
                if self.config.implicit_tls:
                    raise ConnectionClosed  # no reply before TLS
                self._is_ending = True
                return self._with_hostname(smtp_replies.NETWORK_BANNED_REPLY)
        self._connection_slot = self._connection_limiter.acquire(self.network)
        if self._connection_slot is None:
            self._is_ending = True
            return self._with_hostname(smtp_replies.TOO_MANY_CONNECTIONS_FROM_IP_REPLY)
        if self.config.implicit_tls:
            if not self.config.has_tls:
                raise ConnectionClosed  # no certificate yet, and plain text is not allowed
            await self._start_tls(self._command_reader.take_buffered())
        return f"220 {self.hostname} ESMTP"

    def _remove_session(self, task: asyncio.Task[None]) -> None:
        if self._connection_slot is not None:
            self._connection_slot.release()
        super()._remove_session(task)

    def _write(self, raw: bytes) -> None:
        if self._is_handshaking:
            return  # the client could not read it during the handshake
        if self._tls_stream is not None:
            self._tls_stream.write(raw)
        else:
            super()._write(raw)

    async def _start_tls(self, received: bytes = b"") -> None:
        """Do the TLS handshake; `received` are bytes of it already read.

        Raises ConnectionClosed if the handshake fails.
        """
        assert self.config.certificates is not None  # noqa: S101 - else it is not offered
        context = self.config.certificates.current_or_reloaded_context()
        tunnel = TlsStream(context, self._reader.read, super()._write, received)
        self._is_handshaking = True
        self.tls_description = await tunnel.do_handshake()
        self._is_handshaking, self._tls_stream = False, tunnel
        self._command_reader.read_from(tunnel.read)
        self._reset_timeout()

    def _closing_reply_at_limit(self) -> str | None:
        if self.listener.environment.refuses_ip(self.ip):
            return self._with_hostname(smtp_replies.NETWORK_BANNED_IN_SESSION_REPLY)
        return super()._closing_reply_at_limit()

    async def _count_abuse_and_ban_at_limit(self) -> None:
        """Count a reached limit as a failure of the client's network."""
        try:
            await count_failure_and_ban_at_limit(
                self.listener.environment, self.ip, BanCause.SMTP_ABUSE
            )
        except Exception as error:  # noqa: BLE001 - the session ends; the error is logged there
            reply_from_error(error)

    def close_with_reply(self, smtp_reply: str) -> None:
        """Cancel what the session does, send a reply and close the connection."""
        try:
            super().close_with_reply(smtp_reply)
        except ConnectionError:
            self.abort()

    def _extensions(self) -> list[str]:
        offers = super()._extensions()
        return offers if self.tls_description or not self.config.has_tls else [*offers, "STARTTLS"]

    async def _handle_helo(self, argument: str) -> str:
        return self._handle_hello(argument, is_esmtp=False)

    async def _handle_ehlo(self, argument: str) -> str:
        return self._handle_hello(argument, is_esmtp=True)

    def _handle_hello(self, argument: str, *, is_esmtp: bool) -> str:
        if not HELO_PATTERN.fullmatch(argument):
            return smtp_replies.syntax_reply(f"{'EHLO' if is_esmtp else 'HELO'} hostname")
        self.helo, self._is_esmtp = argument, is_esmtp
        offers = self._reset_and_reply_to_greeting()
        return offers if is_esmtp else f"250 {self.hostname}"

    async def _handle_starttls(self, argument: str) -> str:
        """Start TLS and discard all earlier input (RFC 3207)."""
        if argument:
            return smtp_replies.syntax_reply("STARTTLS")
        if not self.config.has_tls:
            return smtp_replies.TLS_NOT_AVAILABLE_REPLY
        if self.tls_description:
            return smtp_replies.TLS_ACTIVE_REPLY
        self._transaction, self._has_greeted, self.helo = None, False, ""
        await self.push(smtp_replies.START_TLS_REPLY)
        self._command_reader.take_buffered()
        await self._start_tls()
        return ""

    def _received_field(self, transaction: SmtpTransaction, queue_id: str) -> bytes:
        """Return the Received field."""
        environment = self.listener.environment
        utf8 = transaction.smtputf8
        hop = ReceivedField(
            self.client, self.hostname, queue_id, environment.now(), self._is_esmtp, utf8
        )
        return hop.to_bytes()
