"""Connect to SMTP servers, with STARTTLS or implicit TLS."""

import asyncio
import socket
import ssl
from dataclasses import replace
from typing import cast

from aiosmtplib import (
    SMTP,
    SMTPAuthenticationError,
    SMTPConnectResponseError,
    SMTPException,
    SMTPResponseException,
)

from mail.envelope.delivery_jobs import QueueLimits
from mail.outbound.smtp_client import (
    CLOSING,
    MAX_REPLY_CHARACTERS,
    UNPRINTABLE,
    ServerFailed,
    SmtpConnection,
    error_text,
    failure_code_or_451,
)
from mail.outbound.smtp_protocol import take_over_transport
from mail.outbound.tls_client import TlsContexts, TlsFailed, verify_and_describe_tls
from mail.routing.mx_hosts import NextHop, TlsLevel

NO_MAIL_GREETINGS = (521, 554)  # RFC 7504, section 3; RFC 5321, section 3.1


async def connect_to_next_hop(
    host: NextHop, limits: QueueLimits, *, local_hostname: str, tls_contexts: TlsContexts
) -> SmtpConnection:
    """Open a connection with EHLO, TLS and login as the host requires. Raises ServerFailed.

    If opportunistic TLS fails, it connects once more without TLS.
    """
    try:
        return await _connect_once(host, limits, local_hostname, tls_contexts)
    except TlsFailed as problem:
        if host.tls_level is not TlsLevel.OPPORTUNISTIC:
            raise ServerFailed(451, f"4.7.5 TLS handshake failed: {problem}") from problem
        unencrypted_host = replace(host, tls_level=TlsLevel.NEVER)
        return await _connect_once(unencrypted_host, limits, local_hostname, tls_contexts)


async def _connect_once(
    host: NextHop, limits: QueueLimits, local_hostname: str, tls_contexts: TlsContexts
) -> SmtpConnection:
    """Open a connection. Raises ServerFailed, or TlsFailed if TLS fails."""
    tls_context = tls_contexts.context_for_host(host)
    smtp = SMTP(
        hostname=host.name if host.tls_level is TlsLevel.WRAPPED else host.address,
        port=host.port,
        local_hostname=local_hostname,
        timeout=limits.connect_timeout,
        use_tls=host.tls_level is TlsLevel.WRAPPED,
        start_tls=False,
        tls_context=tls_context,
    )
    tls_description: str | None = None
    try:
        async with asyncio.timeout(limits.greeting_timeout):
            if host.tls_level is TlsLevel.WRAPPED:
                tls_description = await _connect_with_implicit_tls(smtp, host, limits)
            else:
                await smtp.connect()
            await _send_ehlo_or_helo(smtp)
            if host.tls_level not in (TlsLevel.WRAPPED, TlsLevel.NEVER):
                tls_description = await _start_tls_if_offered(smtp, host, tls_context)
            if host.username is not None:
                await smtp.login(host.username, host.password or "")
        protocol = take_over_transport(smtp.transport)
    except BaseException as problem:
        _abort_connection(smtp)
        if isinstance(problem, SMTPAuthenticationError):
            raise ServerFailed(454, f"4.7.0 Authentication failed: {problem.code}") from problem
        if isinstance(problem, SMTPResponseException):
            text = UNPRINTABLE.sub(" ", problem.message)[:MAX_REPLY_CHARACTERS]
            is_greeting = isinstance(problem, SMTPConnectResponseError)
            raise ServerFailed(
                failure_code_or_451(problem.code),
                text,
                is_unreachable=True,
                accepts_no_mail=is_greeting
                and problem.code in NO_MAIL_GREETINGS
                and not host.is_relay,  # its operator can correct it
            ) from problem
        if isinstance(problem, (SMTPException, OSError, ssl.SSLError)):
            text = error_text(problem)
            raise ServerFailed(451, f"4.4.1 {host.name}: {text}", is_unreachable=True) from problem
        raise
    return SmtpConnection(smtp, host, limits, protocol, tls_description)


def _abort_connection(smtp: SMTP) -> None:
    if smtp.transport is not None:
        cast(asyncio.WriteTransport, smtp.transport).abort()  # close() would send buffered bytes
    smtp.close()


async def _connect_with_implicit_tls(smtp: SMTP, host: NextHop, limits: QueueLimits) -> str:
    """Connect with TLS from the first byte. Returns the TLS description. Raises TlsFailed."""
    try:
        if host.address != host.name:
            await smtp.connect(port=None, sock=await _connect_socket(host, limits))
        else:
            await smtp.connect()
    except ssl.SSLCertVerificationError as problem:
        raise TlsFailed(error_text(problem)) from problem
    return verify_and_describe_tls(_tls_object(smtp), host)


async def _connect_socket(host: NextHop, limits: QueueLimits) -> socket.socket:
    """A socket that is connected to the IP address, so that TLS can check the host name."""
    family = socket.AF_INET6 if ":" in host.address else socket.AF_INET
    # asyncio sets TCP_NODELAY only if the protocol is named
    sock = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    sock.setblocking(False)
    try:
        async with asyncio.timeout(limits.connect_timeout):
            await asyncio.get_running_loop().sock_connect(sock, (host.address, host.port))
    except BaseException:
        sock.close()
        raise
    return sock


def _tls_object(smtp: SMTP) -> ssl.SSLObject:
    """The TLS object of the connection. Raises TlsFailed if the connection is lost."""
    tls_object = smtp.get_transport_info("ssl_object")
    if not isinstance(tls_object, ssl.SSLObject):
        raise TlsFailed("connection lost")
    return tls_object


async def _send_ehlo_or_helo(smtp: SMTP) -> None:
    """Send EHLO, or HELO if the server does not know EHLO."""
    try:
        await smtp.ehlo()
    except SMTPResponseException as problem:
        if problem.code == CLOSING:
            raise
        await smtp.helo()


async def _start_tls_if_offered(
    smtp: SMTP, host: NextHop, tls_context: ssl.SSLContext
) -> str | None:
    """Send STARTTLS and return the TLS description.

    Returns None if TLS is opportunistic and not offered. Raises TlsFailed if it fails.
    """
    if not smtp.supports_extension("starttls"):
        if host.tls_level is not TlsLevel.OPPORTUNISTIC:
            raise TlsFailed("STARTTLS not offered")
        return None
    try:
        await smtp.starttls(server_hostname=host.name, tls_context=tls_context)
        tls_description = verify_and_describe_tls(_tls_object(smtp), host)
        await _send_ehlo_or_helo(smtp)
    except (SMTPException, OSError, ssl.SSLError) as problem:
        raise TlsFailed(error_text(problem)) from problem
    return tls_description
