"""The SMTP listeners: for mail from other servers, and for submission."""

import asyncio
from collections.abc import Sequence
from contextlib import AsyncExitStack
from typing import NamedTuple

from mail.smtp.connection_limits import BYTE_BUDGET, SessionLimits
from mail.smtp.listener import SmtpFamilyListener
from mail.smtp.mx_server import MxListener, MxRules
from mail.smtp.smtp_server import SmtpListener, SmtpListenerConfig
from mail.smtp.submission_server import SubmissionListener
from mail.spam.greylist import Greylist
from mail.tls.server_tls import CertificateFiles
from mail.tls.sni_certificates import SniCertificates
from merganser.errors import EXIT_USAGE, CommandError
from merganser.server import sockets
from merganser.server.processes.process_roles import ProcessRole
from merganser.settings.settings import PREFIX, Settings
from models.runtime.environment import Environment
from resolvers.certificates import certificate_reload
from resolvers.submission.smtp_submission import SmtpSubmissionService

MAX_COMMANDS = 2000  # per connection
MAX_UNKNOWN_RECIPIENTS = 50  # per connection


class SharedListenerOptions(NamedTuple):
    """The options that all SMTP listeners of a process share."""

    certificates: SniCertificates
    spool_budget: int  # bytes of messages that are being received


def load_certificate_files(settings: Settings) -> CertificateFiles | None:
    """Load the certificate of MERGANSER_TLS_CERT; None if it is not set.

    Raises CommandError if the files can't be read.
    """
    if settings.tls_cert is None:
        return None
    try:
        return CertificateFiles(settings.tls_cert, settings.tls_key)
    except OSError as problem:
        reason = problem.strerror or str(problem)
        text = f"{PREFIX}TLS_CERT cannot be used: {settings.tls_cert}: {reason}"
        raise CommandError(text, exit_code=EXIT_USAGE) from problem


async def check_certificate_available(settings: Settings, environment: Environment) -> None:
    """Raise CommandError if a submission listener is set and no certificate is set or stored."""
    if settings.tls_cert is not None or await certificate_reload.is_any_certificate_stored(
        environment
    ):
        return
    for name in ("SUBMISSION", "SUBMISSION_TLS"):
        if name in sockets.listen_addresses(settings):
            text = (
                f"{PREFIX}{name}_LISTEN takes a certificate: set {PREFIX}TLS_CERT, or store one "
                "with `merganser certificate set`"
            )
            raise CommandError(text, exit_code=EXIT_USAGE)


async def _load_and_follow_certificates(
    settings: Settings, environment: Environment, stack: AsyncExitStack
) -> SniCertificates:
    """Load all certificates, and follow their changes until the stack closes."""
    certificates = certificate_reload.new_empty_keyring(
        environment, load_certificate_files(settings)
    )
    await certificate_reload.update_keyring_from_database(environment, certificates)
    follow_task = asyncio.create_task(
        certificate_reload.keep_keyring_up_to_date(environment, certificates)
    )
    stack.callback(follow_task.cancel)
    return certificates


async def start_listeners(
    settings: Settings, environment: Environment, process_role: ProcessRole, stack: AsyncExitStack
) -> Sequence[SmtpFamilyListener]:
    """Start the SMTP listeners that are set, and close them with the stack.

    Raises CommandError if a certificate is missing or an address can't be bound.
    """
    started: list[SmtpFamilyListener] = []
    stack.push_async_callback(close_listeners, started)
    await check_certificate_available(settings, environment)
    common = SharedListenerOptions(
        await _load_and_follow_certificates(settings, environment, stack),
        BYTE_BUDGET // process_role.listening_process_count,
    )
    for name, address in sockets.listen_addresses(settings).items():
        if name in ("HTTP", "LMTP", "ACME_HTTP"):
            continue
        listener = _create_listener(name, settings, environment, common)
        started.append(listener)
        if name in process_role.smtp_sockets:
            for bound_socket in process_role.smtp_sockets[name]:
                await listener.start(sock=bound_socket)
            continue
        host, port = sockets.split_host_port(address)
        try:
            await listener.start(host=host, port=port)
        except OSError as problem:
            raise sockets.bind_failure(name, address, problem) from problem
    return started


async def close_listeners(listeners: Sequence[SmtpFamilyListener]) -> None:
    """Close all listeners concurrently; each one finishes the message that it is storing."""
    await asyncio.gather(*(listener.close() for listener in listeners))


def _create_listener(
    listener_name: str,
    settings: Settings,
    environment: Environment,
    shared_options: SharedListenerOptions,
) -> SmtpListener:
    limits = SessionLimits(
        byte_budget=shared_options.spool_budget,
        disk_reserve=settings.disk_reserve,
        max_connections=settings.smtp_connections,
        max_recipients=settings.smtp_max_recipients,
        max_commands=MAX_COMMANDS,
        max_unknown_recipients=MAX_UNKNOWN_RECIPIENTS,
        command_timeout=settings.smtp_idle_timeout.total_seconds(),
        message_timeout=settings.smtp_message_timeout.total_seconds(),
        session_timeout=settings.smtp_connection_lifetime.total_seconds(),
    )
    terms = SmtpListenerConfig(
        limits,
        settings.smtp_connections_per_client,
        shared_options.certificates,
        implicit_tls=listener_name == "SUBMISSION_TLS",
        proxy_networks=settings.smtp_trusted_proxies,
    )
    spool = settings.data / "spool" / listener_name.lower()
    if listener_name != "SMTP":
        return SubmissionListener(environment, spool, terms, SmtpSubmissionService(environment))
    greylist = None
    if delay := settings.greylist_delay:
        greylist = Greylist(
            environment, delay, settings.greylist_retention, settings.greylist_exempt_networks
        )
    rates = settings.smtp_messages_per_hour_per_network, settings.smtp_messages_per_hour_per_account
    return MxListener(environment, spool, terms, MxRules(*rates, greylist=greylist))
